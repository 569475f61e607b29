// A message to try things with.

import { send } from "./api.js";
import { field, h } from "./dom.js";

const IDS_HINT = "With commas: 7 is a number, \"7\" and anna are texts. Empty: not restricted.";

/** The form; `name` and `site` fill it in. */
export function publishForm({ name = "", site = "" }) {
  const channel = h("input", { type: "text", required: true, value: name, placeholder: "/hello", spellcheck: "false" });
  const data = h("textarea", { rows: "6", required: true, spellcheck: "false" });
  data.value = '{"text": "Hello!"}';
  const siteId = h("input", { type: "text", value: site, placeholder: "default" });
  const audience = {
    user_ids: h("input", { type: "text", spellcheck: "false" }),
    group_ids: h("input", { type: "text", spellcheck: "false" }),
    client_ids: h("input", { type: "text", spellcheck: "false" }),
  };
  const numbers = {
    max_backlog_size: h("input", { type: "number", min: "1", placeholder: "as configured" }),
    max_backlog_age: h("input", { type: "number", min: "1", placeholder: "as configured" }),
  };
  const queue = h("input", { type: "checkbox", id: "queue" });
  const outcome = h("div", { class: "outcome", role: "status" });
  const button = h("button", { class: ["button", "primary"], type: "submit" }, "Publish");

  function body() {
    const fields = { channel: channel.value };
    if (siteId.value.trim()) fields.site_id = siteId.value.trim();
    for (const [name, input] of Object.entries(audience)) {
      const ids = readIds(input.value, name === "client_ids");
      if (ids.length) fields[name] = ids;
    }
    for (const [name, input] of Object.entries(numbers)) if (input.value) fields[name] = Number(input.value);
    if (queue.checked) fields.queue_in_memory = true;
    // The data go out as they were written: to read and write them anew would change numbers.
    return `${JSON.stringify(fields).slice(0, -1)},"data":${data.value}}`;
  }

  async function submit(event) {
    event.preventDefault();
    try {
      JSON.parse(data.value);
    } catch (error) {
      tell("bad", "The data are not JSON.", error.message);
      data.focus();
      return;
    }
    button.disabled = true;
    try {
      const answer = await (await send("POST", "api/publish", { raw: body() })).json();
      if (answer.queued) tell("good", "Queued in memory.", "The store is away; it is published when the store is back.");
      else tell("good", "Published.", `${answer.channel}, message ${answer.message_id}, global id ${answer.global_id}`);
    } catch (problem) {
      tell("bad", problem.title || "Refused:", problem.message, problem);
    } finally {
      button.disabled = false;
    }
  }

  function tell(kind, title, text, problem) {
    outcome.replaceChildren(h("div", { class: ["note", kind] },
      h("strong", {}, title), " ", text,
      problem && h("span", { class: "codes" }, h("code", {}, problem.code), problem.requestId && h("span", {}, " request ", h("code", {}, problem.requestId)))));
  }

  return h("section", { class: "panel", "aria-label": "Publish" },
    h("div", { class: "panel-head" }, h("h2", {}, "Publish")),
    h("form", { class: "form", onsubmit: submit },
      field("Channel", channel),
      field("Data", data, "JSON, sent as written."),
      h("details", {},
        h("summary", {}, "For whom"),
        field("Users", audience.user_ids, IDS_HINT),
        field("Groups", audience.group_ids),
        field("Clients", audience.client_ids)),
      h("details", {},
        h("summary", {}, "Options"),
        field("Site", siteId),
        field("Messages to keep", numbers.max_backlog_size),
        field("Seconds to keep them", numbers.max_backlog_age),
        h("label", { class: "check", for: "queue" }, queue, "Keep it in memory while the store is away")),
      button, outcome));
}

/** Ids as they are written in a line; those of clients are texts, whatever they look like. */
function readIds(text, areTexts) {
  return text.split(",").map((each) => each.trim()).filter(Boolean).map((each) => {
    const quoted = /^"(.*)"$/.exec(each);
    if (quoted) return quoted[1];
    return !areTexts && /^-?\d{1,15}$/.test(each) ? Number(each) : each;
  });
}
