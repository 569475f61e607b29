/**
 * Publishing and reading by the HTTP API: `messagebusd-client/publisher`.
 *
 * For servers: the key must not be given to browsers. Needs nothing but `fetch`.
 */

import { MessageBusError } from "./errors/base.js";
import { HttpError, type Problem } from "./errors/http.js";
import { NetworkError } from "./errors/network.js";
import { ProtocolError } from "./errors/protocol.js";
import { Api, query, type PublisherOptions } from "./server/api.js";
import { follow, openChannels, openEverything, type FollowOptions } from "./server/follow.js";
import { Channels, Everything, type Notice } from "./server/following.js";
import type { Message } from "./types.js";

export { HttpError, MessageBusError, NetworkError, ProtocolError, type Problem };
export type { FollowOptions, Message, Notice, PublisherOptions };

/** Of a user, a group or a client. `7` and `"7"` are different ones. */
export type Id = string | number;

/** Whom a message is for, and how long it is kept. */
export interface PublishOptions {
  /** Only these users, or members of `groupIds`. */
  userIds?: readonly Id[];
  /** Only members of these groups, or `userIds`. */
  groupIds?: readonly Id[];
  /** Only these clients, of those whom `userIds` and `groupIds` allow. */
  clientIds?: readonly Id[];
  /** The site whose channel it is. */
  siteId?: string;
  /** Messages to keep. */
  maxBacklogSize?: number;
  /** Seconds to keep them. */
  maxBacklogAge?: number;
  /** Have the daemon keep the message in its memory while its store is away. */
  queueInMemory?: boolean;
}

/** A message to publish. */
export interface Publication extends PublishOptions {
  channel: string;
  data: unknown;
}

/** A message was published, and got these ids: of its channel, and over all channels. */
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

/** A message with whom it is for; null does not restrict. */
export interface StoredMessage<T = unknown> extends Message<T> {
  site_id?: string | null;
  user_ids?: readonly Id[] | null;
  group_ids?: readonly Id[] | null;
  client_ids?: readonly Id[] | null;
}

/** A page of what is stored of a channel. */
export interface Backlog<T = unknown> {
  /** In the order of their ids. */
  messages: StoredMessage<T>[];
  /** Whether there are more after the last one. */
  more: boolean;
}

/** What all calls take. */
export interface CallOptions {
  /** Gives the call up: it rejects with its reason. */
  signal?: AbortSignal;
}

/** What publishing calls take. */
export interface OnceOptions extends CallOptions {
  /**
   * Requests with the same key publish once. Made anew for each call if missing, which covers the
   * retries of this call; give one of your own to be safe beyond it, over a restart for example.
   */
  idempotencyKey?: string;
}

/** Messages of channels, as an endless iteration that goes on where it was over any interruption. */
export interface ServerSubscription<T = unknown> extends AsyncGenerator<StoredMessage<T>> {
  /**
   * Where each channel is: after the message that was handed over last. Saved once that is dealt
   * with, and given to `subscribe`, it goes on from there in another process.
   */
  readonly positions: Record<string, number>;
}

/** Messages of all channels; see ServerSubscription. */
export interface FullSubscription<T = unknown> extends AsyncGenerator<StoredMessage<T>> {
  /** Where it is, as a global id; -1 while that is not known. */
  readonly lastId: number;
}

/** Publishes to messagebusd, and reads what is stored. Methods reject with MessageBusError. */
export class Publisher {
  readonly #api: Api;

  constructor(options: PublisherOptions) {
    this.#api = new Api(options);
  }

  /** Publish a message. It is published once, however often the request had to be sent. */
  publish(
    channel: string,
    data: unknown,
    { idempotencyKey, signal, ...options }: PublishOptions & OnceOptions = {},
  ): Promise<Published | Queued> {
    const body = fields({ channel, data, ...options });
    return this.#api.post("publish", body, signal, once(idempotencyKey));
  }

  /** Publish several messages, in order; one that is refused does not stop the others. */
  async publishBatch(
    messages: readonly Publication[],
    { idempotencyKey, signal }: OnceOptions = {},
  ): Promise<BatchResult[]> {
    const body = { messages: messages.map(fields) };
    const answer = await this.#api.post<{ results: BatchResult[] }>(
      "publish/batch",
      body,
      signal,
      once(idempotencyKey),
    );
    return answer.results;
  }

  /** The id of the latest message of a channel; 0 if there was none. */
  async lastId(channel: string, options: { siteId?: string } & CallOptions = {}): Promise<number> {
    const fields = { channel, site_id: options.siteId };
    const answer = await this.#get<{ last_id: number }>("last_id", fields, options.signal);
    return answer.last_id;
  }

  /** The same for many channels: what a page is rendered with, to subscribe from there on. */
  async lastIds(
    channels: readonly string[],
    options: { siteId?: string } & CallOptions = {},
  ): Promise<Record<string, number>> {
    const body = { channels, ...(options.siteId === undefined ? {} : { site_id: options.siteId }) };
    const answer = await this.#api.post<{ last_ids: Record<string, number> }>(
      "last_ids",
      body,
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

  /**
   * Follow channels, from now on or each from its position, whoever messages are for: for servers.
   *
   *     for await (const { channel, data } of publisher.subscribe({ "/orders": lastSeen })) …
   *
   * It never ends by itself: when the stream breaks it is opened again where it was, so that every
   * message comes once, as long as the backlog has it; `onNotice` is told. Iterating throws when
   * going on is no use: the key is refused, for example. Leaving the loop ends it.
   */
  subscribe<T = unknown>(
    channels: Readonly<Record<string, number | null | undefined>> | readonly string[],
    options: FollowOptions = {},
  ): ServerSubscription<T> {
    const following = new Channels(channels);
    const open = openChannels(this.#api, following, options.siteId);
    const messages = follow(this.#api, following, open, options);
    return Object.defineProperty(messages, "positions", {
      get: () => Object.fromEntries(following.positions),
    }) as ServerSubscription<T>;
  }

  /** Follow all channels, of all sites or of one, after a global id or from now on. */
  subscribeAll<T = unknown>(
    lastId?: number | null,
    options: FollowOptions = {},
  ): FullSubscription<T> {
    const following = new Everything(lastId);
    const open = openEverything(this.#api, following, options.siteId);
    const messages = follow(this.#api, following, open, options);
    return Object.defineProperty(messages, "lastId", {
      get: () => following.lastId,
    }) as FullSubscription<T>;
  }

  #get<T>(
    call: string,
    fields: Record<string, string | number | undefined>,
    signal: AbortSignal | undefined,
  ): Promise<T> {
    return this.#api.get<T>(`${call}?${query(fields)}`, signal);
  }
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
