/** Calls of the daemon's HTTP API: the key, retries, and errors. */

import { HttpError, httpError } from "../errors/http.js";
import { NetworkError } from "../errors/network.js";
import { ProtocolError } from "../errors/protocol.js";

/** Settings of a Publisher. */
export interface PublisherOptions {
  /** Where the daemon's API listens: `http://127.0.0.1:8091`. */
  url: string | URL;
  /** An API key; the header is left out if missing. */
  key?: string | undefined;
  /** Another `fetch` than the platform's. */
  fetch?: typeof globalThis.fetch;
  /** How often a request is sent again when the daemon cannot be reached or is busy; 4 if missing. */
  retries?: number;
  /** Milliseconds for one request; 10000 if missing. */
  timeout?: number;
  /** For tests: waits before a request is sent again. */
  sleep?: (milliseconds: number, signal: AbortSignal | undefined) => Promise<void>;
  /** For tests: a number in [0, 1). */
  random?: () => number;
}

const FIRST_BACKOFF = 200;
const MAX_BACKOFF = 10_000;
const MAX_RETRY_AFTER = 60_000;

export class Api {
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #fetch: typeof globalThis.fetch;
  readonly #retries: number;
  readonly #timeout: number;
  readonly sleep: NonNullable<PublisherOptions["sleep"]>;
  readonly random: () => number;

  constructor(options: PublisherOptions) {
    this.#url = `${String(options.url).replace(/\/+$/, "")}/api/v1/`;
    this.#headers = options.key === undefined ? {} : { Authorization: `Bearer ${options.key}` };
    this.#fetch = options.fetch ?? ((...args) => globalThis.fetch(...args));
    this.#retries = options.retries ?? 4;
    this.#timeout = options.timeout ?? 10_000;
    this.sleep = options.sleep ?? sleep;
    this.random = options.random ?? Math.random;
  }

  get<T>(call: string, signal: AbortSignal | undefined): Promise<T> {
    return this.#call<T>(call, {}, signal);
  }

  post<T>(
    call: string,
    body: unknown,
    signal: AbortSignal | undefined,
    headers: Record<string, string> = {},
  ): Promise<T> {
    return this.#call<T>(call, json(body, headers), signal);
  }

  /** Send a request once, and return the body of its answer while that comes in. */
  async stream(
    call: string,
    body: unknown,
    signal: AbortSignal | undefined,
  ): Promise<ReadableStream<Uint8Array>> {
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), this.#timeout);
    try {
      const response = await this.#request(
        call,
        body === undefined ? {} : json(body),
        either(signal, late.signal),
        signal,
      );
      if (!response.ok) throw refusal(response, await text(response, signal));
      if (!response.body) throw new ProtocolError("an answer without a body");
      return response.body;
    } finally {
      clearTimeout(timer);
    }
  }

  async #call<T>(call: string, init: RequestInit, signal: AbortSignal | undefined): Promise<T> {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return (await this.#once(call, init, signal)) as T;
      } catch (error) {
        signal?.throwIfAborted();
        if (attempt >= this.#retries || !isPassing(error)) throw error;
        const delay = retryDelay(error, attempt, FIRST_BACKOFF, MAX_BACKOFF, this.random);
        await this.sleep(delay, signal);
      }
    }
  }

  async #once(call: string, init: RequestInit, signal: AbortSignal | undefined): Promise<unknown> {
    const late = AbortSignal.timeout(this.#timeout);
    const response = await this.#request(call, init, either(signal, late), signal);
    const body = await text(response, signal);
    if (!response.ok) throw refusal(response, body);
    try {
      return JSON.parse(body);
    } catch (cause) {
      throw new ProtocolError("the answer is not JSON", { cause });
    }
  }

  async #request(
    call: string,
    init: RequestInit,
    signal: AbortSignal,
    given: AbortSignal | undefined,
  ): Promise<Response> {
    try {
      return await this.#fetch(this.#url + call, {
        ...init,
        headers: { ...this.#headers, ...(init.headers as Record<string, string>) },
        // A key goes to the daemon and nowhere else.
        redirect: "error",
        signal,
      });
    } catch (cause) {
      throw unanswered(cause, given);
    }
  }
}

function either(given: AbortSignal | undefined, late: AbortSignal): AbortSignal {
  return given ? AbortSignal.any([given, late]) : late;
}

/** A query without what is undefined. */
export function query(fields: Record<string, string | number | undefined>): string {
  const given = Object.entries(fields).flatMap(([k, v]) => (v === undefined ? [] : [[k, `${v}`]]));
  return new URLSearchParams(given).toString();
}

/** Whether the same request may do better later. */
export function isPassing(error: unknown): boolean {
  if (error instanceof NetworkError) return true;
  return error instanceof HttpError && (error.status === 429 || error.status >= 500);
}

/** Milliseconds to wait after failure number `attempt`, from 0: full jitter, and Retry-After. */
export function retryDelay(
  error: unknown,
  attempt: number,
  first: number,
  most: number,
  random: () => number,
): number {
  const backoff = random() * Math.min(most, first * 2 ** Math.min(attempt, 30));
  const asked = error instanceof HttpError ? (error.retryAfter ?? 0) * 1000 : 0;
  return Math.max(backoff, Math.min(asked, MAX_RETRY_AFTER));
}

function json(body: unknown, headers: Record<string, string> = {}): RequestInit {
  return {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify(body),
  };
}

function refusal(response: Response, body: string): HttpError {
  return httpError(response.status, (name) => response.headers.get(name), body, Date.now());
}

async function text(response: Response, given: AbortSignal | undefined): Promise<string> {
  try {
    return await response.text();
  } catch (cause) {
    throw unanswered(cause, given);
  }
}

/** Why no answer came: the caller's own wish, or the network. */
function unanswered(cause: unknown, given: AbortSignal | undefined): unknown {
  if (given?.aborted) return given.reason;
  return new NetworkError("messagebusd does not answer", { cause });
}

function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const aborted = (): void => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    if (signal?.aborted) return reject(signal.reason as Error);
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", aborted);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", aborted);
  });
}
