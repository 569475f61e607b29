/**
 * Several callbacks on one channel: each has a position of its own, a poll can ask for one.
 *
 * Pure; the rules are in `clients/vectors/README.md`. The original asks for the position of the
 * callback that was registered last, and the others lose what they have missed (REFERENCE 1.5).
 */

import type { Gap, Message } from "./types.js";

/** Somebody who receives a channel's messages from a position on. */
export interface Subscriber {
  readonly channel: string;
  /** How far it has been served: an id, or as subscribed: -1 from now on, -1-n the last n. */
  position: number;
  /** Whether the server has placed it there, by a message or a status. */
  confirmed: boolean;
  /** Take the next message. */
  receive(message: Message): void;
  /** A status has changed `position`. */
  moved(): void;
  /** Messages between may have been missed; called before `receive` and `moved`. */
  missed(gap: Gap): void;
}

/** What a poll asks of one channel, and for whom. */
export interface Ask {
  readonly position: number;
  readonly takingPart: readonly Subscriber[];
  /** Whether others of the channel have to wait for another poll. */
  readonly alone: boolean;
}

/** Decide what to ask for the subscribers of one channel; at least one. */
export function ask(subscribers: readonly Subscriber[]): Ask {
  const open = subscribers.find((each) => !each.confirmed);
  const lowest = Math.min(...subscribers.map((each) => each.position));
  if (open === undefined) return { position: lowest, takingPart: subscribers, alone: false };
  const { position } = open;
  const takingPart = subscribers.filter((each) => each.position === position);
  return { position, takingPart, alone: takingPart.length < subscribers.length };
}

/** One channel's part of a poll: hands out its messages and statuses. */
export class Catchup {
  readonly #others: readonly Subscriber[];
  /** Those who have been further than what is asked for, until they have caught up. */
  readonly #ahead = new Map<Subscriber, number>();
  readonly ask: Ask;

  constructor(subscribers: readonly Subscriber[]) {
    this.ask = ask(subscribers);
    this.#others = subscribers.filter((each) => !this.ask.takingPart.includes(each));
    for (const each of this.ask.takingPart) {
      if (each.position > this.ask.position) this.#ahead.set(each, each.position);
    }
  }

  message(message: Message, isActive: (subscriber: Subscriber) => boolean): void {
    const id = message.message_id;
    for (const each of this.ask.takingPart) {
      const known = this.#ahead.get(each);
      if (known !== undefined) {
        if (id > this.ask.position && id <= known) continue;
        this.#ahead.delete(each);
      }
      if (isActive(each)) receive(each, message);
    }
  }

  status(id: number, isActive: (subscriber: Subscriber) => boolean): void {
    this.#ahead.clear();
    for (const each of this.ask.takingPart) if (isActive(each)) move(each, id);
  }

  /**
   * The server has told all that it had.
   *
   * Who looked back and was told nothing is on a channel where nothing is stored: everything that
   * will be there is new. Otherwise it would miss what is published before the next poll, if that
   * is more than it looks back. A channel that is denied has no status: who wants to know where it
   * is now remains there, and does not keep the others waiting.
   */
  told(): void {
    const known = Math.max(-1, ...this.#others.map((each) => each.position));
    for (const each of this.ask.takingPart) {
      if (each.confirmed || (each.position === -1 && !this.ask.alone)) continue;
      if (each.position < 0) each.position = each.position < -1 ? Math.max(0, known) : known;
      each.confirmed = true;
    }
  }
}

/** Take a message: note the position, say what is missing before it, hand it over. */
export function receive(subscriber: Subscriber, message: Message): void {
  const id = message.message_id;
  const before = subscriber.position;
  subscriber.position = id;
  subscriber.confirmed = true;
  if (before >= 0 && id !== before + 1) {
    const reason = id > before ? "ids" : "reset";
    subscriber.missed({ channel: subscriber.channel, after: before, upTo: id - 1, reason });
  }
  subscriber.receive(message);
}

/** Take a status: the channel is at `id`, with nothing (more) for this subscriber up to there. */
export function move(subscriber: Subscriber, id: number): void {
  const before = subscriber.position;
  subscriber.position = id;
  subscriber.confirmed = true;
  if (before >= 0 && id !== before) {
    const reason = id > before ? "status" : "reset";
    subscriber.missed({ channel: subscriber.channel, after: before, upTo: id, reason });
  }
  subscriber.moved();
}
