/** The answer to one poll, while it comes in: to messages, and from there to subscribers. */

import { ChunkParser, parseMessages } from "./chunks.js";
import { httpError } from "./errors/http.js";
import { ProtocolError } from "./errors/protocol.js";
import { Catchup, type Subscriber } from "./positions.js";
import type { Listener } from "./transport/transport.js";
import type { Message } from "./types.js";

const STATUS_CHANNEL = "/__status";
/** Of a refusal no more is kept than a problem document needs. */
const MAX_REFUSAL = 16_384;
/** Beyond, a server may have ended its answer in the middle of a backlog. In UTF-16 units. */
const LARGE = 1_000_000;
/** A server that lets a poll wait has told everything before. */
const WAITED = 1000;

export class Answer implements Listener {
  readonly #catchups = new Map<string, Catchup>();
  readonly #parser = new ChunkParser();
  #status = 0;
  #header: (name: string) => string | null = () => null;
  #isStream = false;
  #whole = "";
  #length = 0;
  #arrays = 0;
  #messages = 0;

  constructor(
    private readonly subscribers: () => readonly Subscriber[],
    /** Called with every array of messages, before they are handed out. */
    private readonly accepted: () => void,
  ) {
    const byChannel = new Map<string, Subscriber[]>();
    for (const each of subscribers()) {
      const others = byChannel.get(each.channel);
      if (others) others.push(each);
      else byChannel.set(each.channel, [each]);
    }
    for (const [channel, each] of byChannel) this.#catchups.set(channel, new Catchup(each));
  }

  /** What to ask for. */
  get positions(): Record<string, number> {
    return Object.fromEntries([...this.#catchups].map(([name, each]) => [name, each.ask.position]));
  }

  /** Whether some subscribers have to wait until this poll has ended. */
  get keepsWaiting(): boolean {
    return [...this.#catchups.values()].some((each) => each.ask.alone);
  }

  /** Whether the next poll shall follow closely: there may be more. */
  get wantsMore(): boolean {
    return this.#messages > 0 && (!this.#isStream || this.#length > LARGE);
  }

  head(status: number, header: (name: string) => string | null): void {
    this.#status = status;
    this.#header = header;
    this.#isStream = !(header("content-type") ?? "").startsWith("application/json");
  }

  text(piece: string): void {
    this.#length += piece.length;
    if (!this.#isOk || !this.#isStream) {
      if (this.#isOk || this.#whole.length < MAX_REFUSAL) this.#whole += piece;
      return;
    }
    for (const messages of this.#parser.push(piece)) this.#deliver(messages);
  }

  /** The answer has ended as it should. Throws HttpError or ProtocolError. */
  end(): void {
    if (!this.#isOk) throw httpError(this.#status, this.#header, this.#whole, Date.now());
    if (this.#isStream) {
      if (this.#arrays === 0 || this.#parser.rest.trim()) {
        throw new ProtocolError("the answer is no stream of messages");
      }
      return;
    }
    this.#deliver(parseMessages(this.#whole));
  }

  /** No more will come; `elapsed` milliseconds after the poll was sent. */
  close(elapsed: number, isWhole: boolean): void {
    if (this.#arrays === 0) return;
    const told = this.#isStream ? elapsed > WAITED : isWhole && this.#length < LARGE;
    for (const each of this.#catchups.values()) {
      if (told || (isWhole && each.ask.alone)) each.told();
    }
  }

  get #isOk(): boolean {
    return this.#status >= 200 && this.#status < 300;
  }

  #deliver(messages: readonly Message[]): void {
    this.#arrays += 1;
    this.accepted();
    const active = this.subscribers();
    // A callback may unsubscribe others: they are not called any more.
    const isActive = (each: Subscriber): boolean => active.includes(each);
    for (const message of messages) {
      if (message.channel === STATUS_CHANNEL) {
        for (const [channel, id] of Object.entries(message.data ?? {})) {
          if (Number.isInteger(id)) this.#catchups.get(channel)?.status(id as number, isActive);
        }
      } else {
        this.#messages += 1;
        this.#catchups.get(message.channel)?.message(message, isActive);
      }
    }
  }
}
