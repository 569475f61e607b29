// The daemon in numbers: what it has noted of the last minutes, and then every two seconds.

import { get } from "./api.js";

const PERIOD_MS = 2000;
const KEPT_SECONDS = 600;

export class Samples {
  rows = [];
  problem = null;
  missing = [];
  #columns = [];
  #watching = new Set();
  #timer = null;
  #running = false;

  /** Calls back with every change until the returned function is called. */
  watch(callback) {
    this.#watching.add(callback);
    callback();
    return () => this.#watching.delete(callback);
  }

  start() {
    if (this.#running) return;
    this.#running = true;
    this.#ask();
  }

  stop() {
    this.#running = false;
    clearTimeout(this.#timer);
    Object.assign(this, { rows: [], problem: null, missing: [] });
  }

  /** The newest number of a name, null if there is none. */
  latest(name) {
    return this.rows.at(-1)?.[name] ?? null;
  }

  async #ask() {
    if (!document.hidden) {
      try {
        const answer = await get("samples", { after: this.rows.at(-1)?.at });
        if (!this.#running) return;
        this.#columns = answer.columns;
        this.#add(answer.rows);
        this.missing = answer.unavailable_workers ?? [];
        this.problem = null;
      } catch (problem) {
        this.problem = problem;
      }
      if (!this.#running) return;
      for (const callback of this.#watching) callback();
    }
    this.#timer = setTimeout(() => this.#ask(), PERIOD_MS);
  }

  #add(rows) {
    for (const row of rows) {
      this.rows.push(Object.fromEntries(this.#columns.map((name, index) => [name, row[index]])));
    }
    const oldest = (this.rows.at(-1)?.at ?? 0) - KEPT_SECONDS;
    this.rows = this.rows.filter((each) => each.at > oldest);
  }
}
