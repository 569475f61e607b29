/**
 * Publishing and reading by the HTTP API: `messagebusd-client/publisher`.
 *
 * For servers: the key must not be given to browsers. Needs nothing but `fetch`.
 */

import { MessageBusError } from "./errors/base.js";
import { HttpError, httpError, type Problem } from "./errors/http.js";
import { NetworkError } from "./errors/network.js";
import { ProtocolError } from "./errors/protocol.js";
import type { Message } from "./types.js";

export { HttpError, MessageBusError, NetworkError, ProtocolError, type Problem };

export type Id = string | number;

export interface PublishOptions {
  /** Only these users, or members of `groupIds`. */
  userIds?: readonly Id[];
  /** Only members of these groups, or `userIds`. */
  groupIds?: readonly Id[];
  /** Only these clients, of those whom `userIds` and `groupIds` allow. */
  clientIds?: readonly Id[];
  siteId?: string;
  /** Messages to keep. */
  maxBacklogSize?: number;
  /** Seconds to keep them. */
  maxBacklogAge?: number;
  /** Have the daemon keep the message in its memory while its store is away. */
  queueInMemory?: boolean;
}

export interface Publication extends PublishOptions {
  channel: string;
  data: unknown;
}

export interface Published {
  channel: string;
  message_id: number;
  global_id: number;
}

/** The store is away, and the daemon keeps the message (`queueInMemory`). */
export interface Queued {
  channel: string;
  queued: true;
}

/** What became of one message of a batch. */
export type BatchResult = Published | Queued | { error: Problem };

export interface StoredMessage<T = unknown> extends Message<T> {
  site_id?: string | null;
  user_ids?: readonly Id[] | null;
  group_ids?: readonly Id[] | null;
  client_ids?: readonly Id[] | null;
}

export interface Backlog<T = unknown> {
  messages: StoredMessage<T>[];
  /** Whether there are more after the last one. */
  more: boolean;
}

export interface CallOptions {
  signal?: AbortSignal;
}

export interface OnceOptions extends CallOptions {
  /**
   * Requests with the same key publish once. Made anew for each call if missing, which covers the
   * retries of this call; give one of your own to be safe beyond it, over a restart for example.
   */
  idempotencyKey?: string;
}

export interface PublisherOptions {
  /** Where the daemon's API listens: `http://127.0.0.1:8091`. */
  url: string | URL;
  /** An API key; the header is left out if missing. */
  key?: string | undefined;
  fetch?: typeof globalThis.fetch;
  /** How often a request is sent again when the daemon cannot be reached or is busy. */
  retries?: number;
  /** Milliseconds for one request. */
  timeout?: number;
  /** For tests: waits before a request is sent again. */
  sleep?: (milliseconds: number, signal: AbortSignal | undefined) => Promise<void>;
  random?: () => number;
}

const FIRST_BACKOFF = 200;
const MAX_BACKOFF = 10_000;
const MAX_RETRY_AFTER = 60_000;

/** Publishes to messagebusd, and reads what is stored. Methods reject with MessageBusError. */
export class Publisher {
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #fetch: typeof globalThis.fetch;
  readonly #retries: number;
  readonly #timeout: number;
  readonly #sleep: NonNullable<PublisherOptions["sleep"]>;
  readonly #random: () => number;

  constructor(options: PublisherOptions) {
    this.#url = `${String(options.url).replace(/\/+$/, "")}/api/v1/`;
    this.#headers = options.key === undefined ? {} : { Authorization: `Bearer ${options.key}` };
    this.#fetch = options.fetch ?? ((...args) => globalThis.fetch(...args));
    this.#retries = options.retries ?? 4;
    this.#timeout = options.timeout ?? 10_000;
    this.#sleep = options.sleep ?? sleep;
    this.#random = options.random ?? Math.random;
  }

  /** Publish a message. It is published once, however often the request had to be sent. */
  publish(
    channel: string,
    data: unknown,
    { idempotencyKey, signal, ...options }: PublishOptions & OnceOptions = {},
  ): Promise<Published | Queued> {
    const body = fields({ channel, data, ...options });
    return this.#post("publish", body, once(idempotencyKey), signal);
  }

  /** Publish several messages, in order; one that is refused does not stop the others. */
  async publishBatch(
    messages: readonly Publication[],
    { idempotencyKey, signal }: OnceOptions = {},
  ): Promise<BatchResult[]> {
    const body = { messages: messages.map(fields) };
    const answer = await this.#post<{ results: BatchResult[] }>(
      "publish/batch",
      body,
      once(idempotencyKey),
      signal,
    );
    return answer.results;
  }

  /** The id of the latest message of a channel; 0 if there was none. */
  async lastId(channel: string, options: { siteId?: string } & CallOptions = {}): Promise<number> {
    const query = { channel, site_id: options.siteId };
    const answer = await this.#get<{ last_id: number }>("last_id", query, options.signal);
    return answer.last_id;
  }

  /** The same for many channels: what a page is rendered with, to subscribe from there on. */
  async lastIds(
    channels: readonly string[],
    options: { siteId?: string } & CallOptions = {},
  ): Promise<Record<string, number>> {
    const body = { channels, ...(options.siteId === undefined ? {} : { site_id: options.siteId }) };
    const answer = await this.#post<{ last_ids: Record<string, number> }>(
      "last_ids",
      body,
      {},
      options.signal,
    );
    return answer.last_ids;
  }

  /** A page of a channel's stored messages after an id. */
  backlog<T = unknown>(
    channel: string,
    options: { lastId?: number; limit?: number; siteId?: string } & CallOptions = {},
  ): Promise<Backlog<T>> {
    const { lastId, limit, siteId, signal } = options;
    return this.#get("backlog", { channel, last_id: lastId, limit, site_id: siteId }, signal);
  }

  /** All of a channel's stored messages after an id, page by page. */
  async *allBacklog<T = unknown>(
    channel: string,
    options: { lastId?: number; siteId?: string } & CallOptions = {},
  ): AsyncGenerator<StoredMessage<T>> {
    let lastId = options.lastId ?? 0;
    for (;;) {
      const { messages, more } = await this.backlog<T>(channel, { ...options, lastId });
      yield* messages;
      lastId = messages.at(-1)?.message_id ?? lastId;
      if (!more) return;
    }
  }

  /** One stored message, or undefined. */
  async message<T = unknown>(
    channel: string,
    id: number | "last",
    options: { siteId?: string } & CallOptions = {},
  ): Promise<StoredMessage<T> | undefined> {
    const which = id === "last" ? { last: "true" } : { message_id: id };
    try {
      return await this.#get(
        "message",
        { channel, site_id: options.siteId, ...which },
        options.signal,
      );
    } catch (error) {
      if (error instanceof HttpError && error.code === "not_found") return undefined;
      throw error;
    }
  }

  #get<T>(
    call: string,
    query: Record<string, string | number | undefined>,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    const given = Object.entries(query).flatMap(([k, v]) => (v === undefined ? [] : [[k, `${v}`]]));
    return this.#call<T>(`${call}?${new URLSearchParams(given).toString()}`, {}, signal);
  }

  #post<T>(
    call: string,
    body: unknown,
    headers: Record<string, string>,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    const json = { "Content-Type": "application/json", ...headers };
    return this.#call<T>(
      call,
      { method: "POST", headers: json, body: JSON.stringify(body) },
      signal,
    );
  }

  async #call<T>(call: string, init: RequestInit, signal: AbortSignal | undefined): Promise<T> {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return (await this.#once(call, init, signal)) as T;
      } catch (error) {
        signal?.throwIfAborted();
        if (attempt >= this.#retries || !isPassing(error)) throw error;
        const backoff = this.#random() * Math.min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** attempt);
        const asked = error instanceof HttpError ? (error.retryAfter ?? 0) * 1000 : 0;
        await this.#sleep(Math.max(backoff, Math.min(asked, MAX_RETRY_AFTER)), signal);
      }
    }
  }

  async #once(call: string, init: RequestInit, signal: AbortSignal | undefined): Promise<unknown> {
    const late = AbortSignal.timeout(this.#timeout);
    let response: Response;
    let body: string;
    try {
      response = await this.#fetch(this.#url + call, {
        ...init,
        headers: { ...this.#headers, ...(init.headers as Record<string, string>) },
        // A key goes to the daemon and nowhere else.
        redirect: "error",
        signal: signal ? AbortSignal.any([signal, late]) : late,
      });
      body = await response.text();
    } catch (cause) {
      signal?.throwIfAborted();
      throw new NetworkError("messagebusd does not answer", { cause });
    }
    if (!response.ok) {
      throw httpError(response.status, (name) => response.headers.get(name), body, Date.now());
    }
    try {
      return JSON.parse(body);
    } catch (cause) {
      throw new ProtocolError("the answer is not JSON", { cause });
    }
  }
}

/** Whether the same request may do better later. */
function isPassing(error: unknown): boolean {
  if (error instanceof NetworkError) return true;
  return error instanceof HttpError && (error.status === 429 || error.status >= 500);
}

function once(key: string = crypto.randomUUID()): Record<string, string> {
  return { "Idempotency-Key": key };
}

const FIELDS = {
  userIds: "user_ids",
  groupIds: "group_ids",
  clientIds: "client_ids",
  siteId: "site_id",
  maxBacklogSize: "max_backlog_size",
  maxBacklogAge: "max_backlog_age",
  queueInMemory: "queue_in_memory",
} as const;

function fields({ channel, data, ...options }: Publication): Record<string, unknown> {
  // `undefined` would vanish from the JSON, and with it the field that has to be there.
  const body: Record<string, unknown> = { channel, data: data === undefined ? null : data };
  for (const [name, field] of Object.entries(FIELDS)) {
    const value = options[name as keyof PublishOptions];
    if (value !== undefined) body[field] = value;
  }
  return body;
}

function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const aborted = (): void => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", aborted);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", aborted);
  });
}
