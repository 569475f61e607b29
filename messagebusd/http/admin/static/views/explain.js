// Why somebody got a message, or not.

import { get } from "../api.js";
import { field, h, problemNote } from "../dom.js";
import { clock } from "../format.js";

export const title = "Explain";
export const needs = ["admin"];

const ABOUT = { message: "Message", audience: "For whom", channel: "Channel", worker: "Worker", poll: "Poll", person: "Person", next: "Next" };
const GOOD = ["given", "had_it"];
const BAD = ["lost", "not_allowed"];

/** Where this view is shown for a message. */
export function explainLink({ channel, message_id: messageId, site_id: site }) {
  return `#/explain?${new URLSearchParams({ channel, message_id: messageId, ...(site === null ? {} : { site_id: site }) })}`;
}

export function show(body, { parameters }) {
  let controller = new AbortController();
  const inputs = {
    channel: h("input", { type: "text", required: true, placeholder: "/chat/1", spellcheck: "false" }),
    message_id: h("input", { type: "number", min: "0", required: true }),
    user_id: h("input", { type: "text", placeholder: "42, or \"42\" as text", spellcheck: "false" }),
    client_id: h("input", { type: "text", placeholder: "any", spellcheck: "false" }),
    site_id: h("input", { type: "text", placeholder: "default", spellcheck: "false" }),
  };
  const labels = { channel: "Channel", message_id: "Message id", user_id: "User", client_id: "Client", site_id: "Site" };
  for (const [name, input] of Object.entries(inputs)) input.value = parameters[name] ?? "";
  const result = h("div", { "aria-live": "polite" });

  async function ask() {
    controller.abort();
    controller = new AbortController();
    const query = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value.trim()]));
    result.setAttribute("aria-busy", "true");
    try {
      result.replaceChildren(answer(await get("explain", query, controller.signal)));
    } catch (problem) {
      if (problem.name === "AbortError") return;
      result.replaceChildren(problemNote(problem));
    }
    result.setAttribute("aria-busy", "false");
  }

  body.append(
    h("p", { class: "quiet" }, "Why did somebody get a message, or not? Told from what this node's workers remember of the last thousands of polls and deliveries."),
    h("form", { class: "filter", onsubmit: (event) => { event.preventDefault(); ask(); } },
      Object.entries(inputs).map(([name, input]) => field(labels[name], input)),
      h("button", { class: ["button", "primary"], type: "submit" }, "Explain")),
    result);
  inputs[parameters.channel ? "user_id" : "channel"].focus();
  return () => controller.abort();
}

function answer({ node, conclusion, answer: text, facts, unavailable_workers: missing = [] }) {
  const kind = GOOD.includes(conclusion) ? "good" : BAD.includes(conclusion) ? "bad" : "";
  return h("section", { class: "answer", "aria-label": "Answer" },
    h("div", { class: ["note", kind] }, h("strong", {}, `${text}.`), h("span", { class: "codes" }, "as node ", h("code", {}, node), " knows it")),
    missing.length > 0 && h("div", { class: "note" }, `Worker ${missing.join(", ")} does not answer: what it knows is missing.`),
    h("div", { class: "table-frame" }, h("table", { class: "table" },
      h("caption", { class: "hidden" }, "What is known"),
      h("thead", {}, h("tr", {}, ["About", "When", "What is known"].map((each) => h("th", { scope: "col" }, each)))),
      h("tbody", {}, facts.map((each) => h("tr", {},
        h("th", { scope: "row", class: "text" }, ABOUT[each.about] ?? each.about, " ", each.client_id ?? each.worker ?? ""),
        h("td", {}, when(each)),
        h("td", { class: "text" }, each.text)))))));
}

function when({ at, until }) {
  if (at === undefined) return null;
  const time = (each) => h("time", { datetime: new Date(each * 1000).toISOString(), title: new Date(each * 1000).toLocaleString("en-GB") }, clock(each));
  return until === undefined ? time(at) : [time(at), " to ", time(until)];
}
