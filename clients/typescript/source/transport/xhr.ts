import { NetworkError } from "../errors/network.js";
import { FORM_TYPE, form, type Transport } from "./transport.js";

/** Polls by XMLHttpRequest, where `fetch` is missing or cannot stream. */
export function xhrTransport(): Transport {
  return {
    name: "xhr",
    streams: "onprogress" in XMLHttpRequest.prototype,
    send: (exchange, listener) =>
      new Promise((resolve, reject) => {
        const xhr = new XMLHttpRequest();
        let told: number | undefined;
        const tell = (): void => {
          try {
            if (told === undefined) {
              told = 0;
              listener.head(xhr.status, (name) => xhr.getResponseHeader(name));
            }
            const piece = xhr.responseText.slice(told);
            told += piece.length;
            if (piece) listener.text(piece);
          } catch (error) {
            reject(error as Error);
            xhr.abort();
          }
        };
        xhr.open("POST", exchange.url);
        xhr.withCredentials = exchange.credentials === "include";
        xhr.setRequestHeader("Content-Type", FORM_TYPE);
        for (const [name, value] of Object.entries(exchange.headers)) {
          xhr.setRequestHeader(name, value);
        }
        if (exchange.streaming) xhr.onprogress = tell;
        xhr.onload = () => {
          tell();
          resolve();
        };
        xhr.onerror = () =>
          reject(new NetworkError(told === undefined ? "no answer" : "the answer broke off"));
        xhr.onabort = () => reject(new NetworkError("aborted"));
        exchange.signal.addEventListener("abort", () => xhr.abort());
        xhr.send(form(exchange.fields));
      }),
  };
}
