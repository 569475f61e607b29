// Lists that come a page at a time.

import { h } from "./dom.js";

/** Where a list is: it remembers the way back. */
export class Pages {
  #before = [];
  #after;
  #next = null;

  constructor(load) {
    this.load = load;
    this.previous = h("button", { class: "button", type: "button", disabled: true, onclick: () => { this.#after = this.#before.pop(); load(); } }, "Previous");
    this.following = h("button", { class: "button", type: "button", disabled: true, onclick: () => this.forward() }, "Next");
    this.place = h("span", { class: "place", role: "status" });
    this.element = h("div", { class: "pages" }, this.place, this.previous, this.following);
  }

  /** What to ask with. */
  get after() { return this.#after; }

  get number() { return this.#before.length + 1; }

  restart() {
    this.#before = [];
    this.#after = undefined;
    this.load();
  }

  forward() {
    this.#before.push(this.#after);
    this.#after = this.#next;
    this.load();
  }

  /** A page has come, and this is where the next one begins, if there is one. */
  came(next, text) {
    this.#next = next;
    this.previous.disabled = this.#before.length === 0;
    this.following.disabled = next === null;
    this.place.textContent = text;
  }
}
