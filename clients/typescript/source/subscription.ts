/** A callback on a channel, with the fields that the original shows in `MessageBus.callbacks`. */

import { CallbackError } from "./errors/callback.js";
import type { Subscriber } from "./positions.js";
import type { Callback, Gap, Message } from "./types.js";

/** A page that pauses for long does not fill its memory: the backlog keeps the rest. */
export const MAX_HELD_BACK = 1000;

/** What a subscription tells its client. */
export interface Reports {
  isPaused(): boolean;
  threw(error: CallbackError): void;
  missed(gap: Gap): void;
  /** Too much is held back. */
  isFull(): void;
}

/** A callback on a channel, and where it is. */
export class Subscription implements Subscriber {
  position: number;
  confirmed = false;
  isActive = true;
  /** Lets go of what would end it. */
  release: (() => void) | undefined;
  /** The position of what the callback has been called with: behind `position` while paused. */
  last_id: number;
  readonly #reports: Reports;
  readonly #onGap: ((gap: Gap) => void) | undefined;
  readonly #heldBack: Message[] = [];

  constructor(
    readonly channel: string,
    readonly func: Callback<never>,
    lastId: number,
    reports: Reports,
    onGap?: (gap: Gap) => void,
  ) {
    this.#reports = reports;
    this.#onGap = onGap;
    this.position = this.last_id = lastId;
  }

  /** Call the callback, or hold the message back while paused. */
  receive(message: Message): void {
    if (this.#reports.isPaused()) {
      this.#heldBack.push(message);
      if (this.#heldBack.length >= MAX_HELD_BACK) this.#reports.isFull();
    } else {
      this.#call(message);
    }
  }

  moved(): void {
    if (this.#heldBack.length === 0) this.last_id = this.position;
  }

  missed(gap: Gap): void {
    this.#onGap?.(gap);
    this.#reports.missed(gap);
  }

  /** Call the callback with what was held back. */
  resume(): void {
    for (const message of this.#heldBack.splice(0)) if (this.isActive) this.#call(message);
    this.last_id = this.position;
  }

  #call(message: Message): void {
    this.last_id = message.message_id;
    try {
      (this.func as Callback)(message.data, message.global_id, message.message_id);
    } catch (error) {
      this.#reports.threw(new CallbackError(this.channel, error));
    }
  }
}
