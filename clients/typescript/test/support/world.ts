/** A world with a clock that tests turn, and timers that they see. */

import type { Change, Environment } from "../../source/environment.js";

interface Timer {
  readonly at: number;
  readonly run: () => void;
}

export class World implements Environment {
  time = 0;
  /** What `random` gives. */
  chance = 0.5;
  hidden = false;
  online = true;
  lastPoll = Number.NEGATIVE_INFINITY;
  readonly #timers = new Set<Timer>();
  readonly #listeners = new Set<(change: Change) => void>();

  now = (): number => this.time;
  random = (): number => this.chance;
  setTimer = (run: () => void, milliseconds: number): unknown => {
    const timer = { at: this.time + milliseconds, run };
    this.#timers.add(timer);
    return timer;
  };
  clearTimer = (timer: unknown): void => void this.#timers.delete(timer as Timer);
  isHidden = (): boolean => this.hidden;
  isOnline = (): boolean => this.online;
  watch = (listener: (change: Change) => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };
  notePoll = (): void => void (this.lastPoll = this.time);
  sinceAnyPoll = (): number => this.time - this.lastPoll;

  /** How many timers wait. */
  get timers(): number {
    return this.#timers.size;
  }

  /** Let so many milliseconds pass, and what is due happen. */
  async pass(milliseconds: number): Promise<void> {
    const end = this.time + milliseconds;
    await settle();
    for (;;) {
      const [next] = [...this.#timers].filter((t) => t.at <= end).sort((a, b) => a.at - b.at);
      if (!next) break;
      this.#timers.delete(next);
      this.time = Math.max(this.time, next.at);
      next.run();
      await settle();
    }
    this.time = end;
  }

  show(isShown: boolean): void {
    this.hidden = !isShown;
    this.#tell(isShown ? "visible" : "hidden");
  }

  connect(isOnline: boolean): void {
    this.online = isOnline;
    this.#tell(isOnline ? "online" : "offline");
  }

  #tell(change: Change): void {
    for (const listener of this.#listeners) listener(change);
  }
}

/** Let everything happen that waits for nothing but its turn. */
export function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
