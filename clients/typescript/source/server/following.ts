/**
 * Where a server's subscription is, and what it makes of each line that comes. No I/O.
 *
 * A stream is asked for from the positions that are known, and every line moves them: each message
 * is handed over once, however often the stream breaks, as long as the backlog has it. The rules are
 * in `clients/vectors/README.md`, the lines in `docs/http-api.md`.
 */

import { isMessage } from "../chunks.js";
import { ProtocolError } from "../errors/protocol.js";
import type { Message } from "../types.js";

/** What happened to a subscription besides messages. */
export type Notice =
  /** Messages after id `after` and up to `upTo` are gone from the backlog. */
  | {
      readonly kind: "gap";
      readonly channel: string;
      readonly after: number;
      readonly upTo: number;
    }
  /**
   * Ids began anew, as after a flush of the store. It goes on after `lastId`; what was published
   * before that, since the restart, was not seen. Without a channel the ids are global ones.
   */
  | {
      readonly kind: "restarted";
      readonly channel: string | undefined;
      readonly lastId: number;
    }
  /**
   * The stream ended, and is opened again in `retryIn` milliseconds. `code` is the daemon's word,
   * or `broken` when the connection was lost or could not be made. Nothing is missed by it, but
   * perhaps where all channels are followed and the store was away: `mayHaveMissed`.
   */
  | {
      readonly kind: "interrupted";
      readonly code: string;
      readonly detail: string;
      readonly retryIn: number;
      readonly mayHaveMissed: boolean;
    };

/** The stream's last line: why the daemon ends it. No error: it is opened again. */
export class StreamEnded {
  constructor(
    readonly code: string,
    readonly detail: string,
  ) {}
}

/** What a line brings. */
export interface Taken {
  readonly message?: Message;
  /** To be told before the message. */
  readonly notices: readonly Notice[];
}

/** Channels, or all of them. */
export interface Following {
  /** Read a line. Throws StreamEnded at the last one, and ProtocolError. */
  take(line: string): Taken;
}

const STATUS_CHANNEL = "/__status";
/** Where nothing is said: from now on. Unlike null it has the stream say where that is. */
export const FROM_NOW = -1;

/** Channels of one site, each from a position of its own. */
export class Channels implements Following {
  /** Ids, or -1 from now on, -1-n the last n. */
  readonly positions = new Map<string, number>();

  constructor(channels: Readonly<Record<string, number | null | undefined>> | readonly string[]) {
    const asked = Array.isArray(channels)
      ? channels.map((channel: string) => [channel, FROM_NOW] as const)
      : Object.entries(channels);
    for (const [channel, position] of asked) this.positions.set(channel, position ?? FROM_NOW);
    if (this.positions.size === 0) throw new TypeError("name at least one channel");
  }

  take(line: string): Taken {
    const document = read(line);
    if (!document) return { notices: [] };
    if (document.channel === STATUS_CHANNEL) return this.#takeStatus(document.data);
    if (!isMessage(document)) throw new ProtocolError("a line that is no message");
    const { channel, message_id: id, global_id: globalId } = document;
    const before = this.positions.get(channel);
    if (before === undefined) throw new ProtocolError("a channel that was not asked for");
    this.positions.set(channel, id);
    if (before >= id) {
      return { message: document, notices: [{ kind: "restarted", channel, lastId: id - 1 }] };
    }
    // PostgreSQL has one id for both, so that a channel's own ids have holes.
    if (before >= 0 && before < id - 1 && id !== globalId) {
      const gap: Notice = { kind: "gap", channel, after: before, upTo: id - 1 };
      return { message: document, notices: [gap] };
    }
    return { message: document, notices: [] };
  }

  #takeStatus(data: unknown): Taken {
    if (typeof data !== "object" || data === null || Array.isArray(data)) {
      throw new ProtocolError("a status without positions");
    }
    const notices: Notice[] = [];
    for (const [channel, id] of Object.entries(data)) {
      const before = this.positions.get(channel);
      if (before === undefined || !Number.isInteger(id)) {
        throw new ProtocolError("a status of something that was not asked for");
      }
      const lastId = id as number;
      if (before > lastId) notices.push({ kind: "restarted", channel, lastId });
      this.positions.set(channel, lastId);
    }
    return { notices };
  }
}

/** All channels, by global id. */
export class Everything implements Following {
  lastId: number;

  constructor(lastId: number | null | undefined) {
    this.lastId = lastId ?? FROM_NOW;
    if (this.lastId < FROM_NOW) throw new RangeError("all channels begin at a global id, or at -1");
  }

  take(line: string): Taken {
    const document = read(line);
    if (!document) return { notices: [] };
    const before = this.lastId;
    if (!isMessage(document)) throw new ProtocolError("a line that is no message");
    const id = (this.lastId = document.global_id);
    const restarted = (lastId: number): Notice => ({ kind: "restarted", channel: undefined, lastId });
    if (document.channel === STATUS_CHANNEL) {
      return { notices: before > id ? [restarted(id)] : [] };
    }
    return { message: document, notices: before < id ? [] : [restarted(id - 1)] };
  }
}

/** What a line says; undefined for a heartbeat. */
function read(line: string): Record<string, unknown> | undefined {
  if (!line.trim()) return undefined;
  let document: unknown;
  try {
    document = JSON.parse(line);
  } catch (cause) {
    throw new ProtocolError("a line that is not JSON", { cause });
  }
  if (typeof document !== "object" || document === null || Array.isArray(document)) {
    throw new ProtocolError("a line that is not a JSON object");
  }
  const { end } = document as { end?: { code?: unknown; detail?: unknown } };
  if (typeof end === "object" && end !== null) {
    throw new StreamEnded(String(end.code), String(end.detail));
  }
  return document as Record<string, unknown>;
}
