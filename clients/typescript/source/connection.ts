/** How a client gets its messages: by polls of its own, or through those of another page. */

import type { Environment } from "./environment.js";
import type { Subscriber } from "./positions.js";
import type { Events, Settings } from "./types.js";

/** What a connection works for. */
export interface Host {
  /** May change at any time. */
  readonly settings: Settings;
  readonly environment: Environment;
  /** May change at any time, and is followed by `Connection.changed`. */
  readonly subscribers: readonly Subscriber[];
  /** Tell the client's listeners. */
  emit<Name extends keyof Events>(name: Name, event: Events[Name]): void;
}

/** How a client gets messages. */
export interface Connection {
  /** Begin; calling it twice is harmless. */
  start(): void;
  /** End; may be started again. Calling it twice is harmless. */
  stop(): void;
  /** `subscribers` has changed. */
  changed(): void;
  /** Give up the poll that is open, if there is one, and ask again at once. */
  abort(): void;
  /** Whether a poll is open. */
  readonly isPolling: boolean;
  /** Numbers for people who look for a fault. */
  diagnostics(): Diagnostics;
}

/** Numbers of a connection since it was made. */
export interface Diagnostics {
  readonly polls: number;
  readonly failures: number;
  readonly failuresInARow: number;
  /** Milliseconds since the latest poll was sent. */
  readonly sinceLastPoll: number | undefined;
}

/** Makes the connection of a client. */
export type Connect = (host: Host) => Connection;
