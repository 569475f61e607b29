/** Shapes that users of the client see. */

import type { MessageBusError } from "./errors/base.js";
import type { Transport } from "./transport/transport.js";

/** A message as it is on the wire. */
export interface Message<T = unknown> {
  readonly global_id: number;
  readonly message_id: number;
  readonly channel: string;
  readonly data: T;
}

/** What is called for each message; the arguments of the original. */
export type Callback<T = unknown> = (data: T, globalId: number, messageId: number) => void;

/**
 * Messages after id `after` and up to `upTo` were not received.
 *
 * They may have been for other people, or trimmed from the backlog (`ids`, and `status` where the
 * server said so without a message); or the channel's ids began anew (`reset`). A page that shows
 * a whole state should load it again.
 */
export interface Gap {
  readonly channel: string;
  readonly after: number;
  readonly upTo: number;
  readonly reason: "ids" | "status" | "reset";
}

/** How a poll is answered: piece by piece, at the first news, or at once. */
export type Mode = "streaming" | "long-polling" | "polling";

/** How things are at present. */
export interface ConnectionState {
  /**
   * - `stopped`: not started, or stopped
   * - `idle`: nothing is subscribed
   * - `connecting`: the first poll, or the first one after failures, is on its way
   * - `connected`: the server answers
   * - `failing`: the last poll failed; the next one follows in `retryIn`
   * - `rate-limited`: the server asked to come back in `retryIn`
   * - `offline`: the browser says that there is no network
   */
  readonly status:
    | "stopped"
    | "idle"
    | "connecting"
    | "connected"
    | "failing"
    | "rate-limited"
    | "offline";
  /** How the latest poll is answered. */
  readonly mode: Mode | undefined;
  /** What carries it: `fetch`, `xhr`, `ajax`, or what a transport of one's own is called. */
  readonly transport: string | undefined;
  /** Whether another page's polls are shared: by a worker, or by the page that leads. */
  readonly sharedBy?: "worker" | "page";
  /** Milliseconds until the next poll, where that is worth telling. */
  readonly retryIn?: number;
}

/** Streaming does not work here; for a while the client asks for whole answers instead. */
export interface Fallback {
  /**
   * - `buffered`: nothing arrived within `firstChunkTimeout`; a proxy collects the answer
   * - `cut`: several streams in a row broke off
   */
  readonly reason: "buffered" | "cut";
  /** How many polls do without streaming. */
  readonly requests: number;
}

/** The events of a client, and what listeners are called with. */
export interface Events {
  state: ConnectionState;
  error: MessageBusError;
  gap: Gap;
  fallback: Fallback;
}

/**
 * Gives the bearer token for polls, which is kept until it is refused (401): then `refresh` is true.
 * Nothing stands for no token.
 */
export type TokenProvider = (request: {
  readonly refresh: boolean;
}) => string | null | undefined | Promise<string | null | undefined>;

/** All settings. They may be changed at any time and count from the next poll on. */
export interface Settings {
  /** Where the bus is mounted; a path or a URL. */
  baseUrl: string;
  /** What the server knows this client by. */
  clientId: string;
  /** Further request headers. */
  headers: Record<string, string>;

  /** Long poll at all? Otherwise every poll is answered at once. */
  enableLongPolling: boolean;
  /** Stream at all? */
  enableChunkedEncoding: boolean;
  /** Milliseconds between the starts of polls that ended without news to follow up. */
  callbackInterval: number;
  /** The same while the page is hidden. */
  backgroundCallbackInterval: number;
  /** Least time between a successful poll and the next. */
  minPollInterval: number;
  /** Longest time between polls that fail. */
  maxPollInterval: number;
  /** Long poll although the page is hidden. */
  alwaysLongPoll: boolean;
  /** Decides whether to long poll, instead of the page's visibility. */
  shouldLongPollCallback: (() => boolean) | undefined;
  /** Hidden pages of one origin poll at least so many milliseconds apart. */
  minHiddenPollInterval: number;
  /** When nothing of a stream has arrived by then, a proxy is taken to buffer. */
  firstChunkTimeout: number;
  /** How many polls do without streaming then. */
  retryChunkedAfterRequests: number;

  /** An open poll without a sign for so long is given up: the network has silently gone. Must be
   * longer than the server's `poll.long_polling_interval` (25 s). */
  staleTimeout: number;
  /** Whether cookies are sent; as in `fetch`. */
  credentials: RequestCredentials;
  /** Where bearer tokens come from. Set another one when another user logs in. */
  tokenProvider: TokenProvider | undefined;
  /** What carries the polls; chosen by what the platform can do if undefined. */
  transport: Transport | undefined;
}
