/** Reading a stream: frames out of pieces of text, wherever it was cut. No I/O here. */

import { ProtocolError } from "./errors/protocol.js";
import type { Message } from "./types.js";

const SEPARATOR = "\r\n|\r\n";
const ESCAPED = /\r\n\|\|\r\n/g;
/** No server sends frames like this: what grows beyond is not a stream. In UTF-16 units. */
const MAX_FRAME = 64 * 1024 * 1024;

export class ChunkParser {
  #buffer = "";

  /** What has come in and is no whole frame yet. */
  get rest(): string {
    return this.#buffer;
  }

  /**
   * Take a piece of text and yield the frames that are complete with it.
   *
   * Throws ProtocolError at the first frame that is none.
   */
  *push(text: string): Generator<Message[]> {
    // A separator may begin before this piece, but not be in what was searched already.
    let searchFrom = Math.max(0, this.#buffer.length - SEPARATOR.length + 1);
    this.#buffer += text;
    for (;;) {
      const end = this.#buffer.indexOf(SEPARATOR, searchFrom);
      if (end < 0) break;
      const frame = this.#buffer.slice(0, end).replace(ESCAPED, SEPARATOR);
      this.#buffer = this.#buffer.slice(end + SEPARATOR.length);
      searchFrom = 0;
      yield parseMessages(frame);
    }
    if (this.#buffer.length > MAX_FRAME) throw new ProtocolError("a frame does not end");
  }
}

/** Read one JSON array of messages. Throws ProtocolError. */
export function parseMessages(text: string): Message[] {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new ProtocolError("the answer is not JSON");
  }
  if (!Array.isArray(parsed) || !parsed.every(isMessage)) {
    throw new ProtocolError("the answer is not an array of messages");
  }
  return parsed;
}

/** Whether a parsed value has the shape of a message; its data may be anything. */
export function isMessage(value: unknown): value is Message {
  const message = value as Partial<Message> | null;
  return (
    typeof message === "object" &&
    message !== null &&
    typeof message.channel === "string" &&
    Number.isInteger(message.message_id) &&
    Number.isInteger(message.global_id)
  );
}
