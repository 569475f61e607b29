// How much of the past the plots show.

import { h } from "./dom.js";

const CHOICES = { "2 min": 120, "5 min": 300, "10 min": 600 };
let chosen = 120;

/** Buttons to choose from; `seconds` is the choice, `changed` is called when it is another. */
export function windowChoice(changed) {
  const buttons = Object.entries(CHOICES).map(([name, seconds]) =>
    h("button", {
      type: "button", "aria-pressed": String(seconds === chosen),
      onclick: (event) => {
        chosen = seconds;
        for (const button of buttons) button.setAttribute("aria-pressed", String(button === event.currentTarget));
        changed();
      },
    }, name));
  return {
    element: h("div", { class: "choice", role: "group", "aria-label": "Time shown" }, buttons),
    get seconds() { return chosen; },
  };
}
