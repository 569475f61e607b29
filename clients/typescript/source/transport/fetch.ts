import { NetworkError } from "../errors/network.js";
import { FORM_TYPE, form, type Transport } from "./transport.js";

/** Polls by `fetch`, which may be another one than the platform's. */
export function fetchTransport(
  fetch: typeof globalThis.fetch = (...args) => globalThis.fetch(...args),
): Transport {
  return {
    name: "fetch",
    streams: canStream(),
    async send(exchange, listener) {
      let response: Response;
      try {
        response = await fetch(exchange.url, {
          method: "POST",
          headers: { "Content-Type": FORM_TYPE, ...exchange.headers },
          body: form(exchange.fields),
          credentials: exchange.credentials,
          cache: "no-store",
          signal: exchange.signal,
        });
      } catch (cause) {
        throw new NetworkError("no answer", { cause });
      }
      listener.head(response.status, (name) => response.headers.get(name));
      try {
        if (!exchange.streaming || !response.body) {
          listener.text(await response.text());
        } else {
          await read(response.body, (piece) => listener.text(piece));
        }
      } catch (cause) {
        // What a listener throws is its own affair.
        if (!(cause instanceof TypeError) && !isAbort(cause)) throw cause;
        throw new NetworkError("the answer broke off", { cause });
      }
    },
  };
}

async function read(body: ReadableStream<Uint8Array>, tell: (piece: string) => void): Promise<void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const piece = decoder.decode(value, { stream: !done });
      if (piece) tell(piece);
      if (done) return;
    }
  } catch (error) {
    // Nobody listens any more: let the connection go. After a failure there is nothing to cancel.
    reader.cancel().catch(() => undefined);
    throw error;
  }
}

function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Whether bodies can be read piece by piece; some polyfills of fetch cannot. */
export function canStream(): boolean {
  return (
    typeof ReadableStream === "function" &&
    typeof TextDecoder === "function" &&
    typeof Response === "function" &&
    new Response("").body instanceof ReadableStream
  );
}
