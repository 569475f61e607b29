// The way in.

import { send } from "./api.js";
import { field, h } from "./dom.js";

/** Shows the form; `enter` is called with whoever logs in. `message` says why it is shown. */
export function showLogin(app, enter, message) {
  const input = h("input", {
    type: "password", name: "key", required: true, autocomplete: "off", spellcheck: "false", autocapitalize: "none",
  });
  const note = h("p", { class: ["note", !message && "gone"], role: "alert" }, message);
  const button = h("button", { class: ["button", "primary"], type: "submit" }, "Log in");

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    try {
      const response = await send("POST", "session", { body: { key: input.value } });
      input.value = "";
      enter(await response.json());
    } catch (problem) {
      const wait = problem.retryAfter ? ` Try again in ${problem.retryAfter} seconds.` : "";
      note.className = "note bad";
      note.textContent = problem.status === 401 ? "This key is not known, or has expired." : problem.message + wait;
      input.select();
      input.focus();
    } finally {
      button.disabled = false;
    }
  }

  app.replaceChildren(h("main", { class: "login" },
    h("form", { class: "login-card", onsubmit: submit },
      h("div", { class: "login-head" }, h("span", { class: "sign", "aria-hidden": "true" }), h("h1", {}, "messagebusd")),
      note,
      field("API key", input),
      button,
      h("p", { class: "hint" }, "The key is sent once and not kept in this browser. A cookie stands for it until you log out, for 12 hours at most."))));
  input.focus();
}
