// What is stored of one channel, the newest first.

import { get, getMessages } from "../api.js";
import { empty, h, problemNote } from "../dom.js";
import { count } from "../format.js";
import { messageCard } from "../message.js";
import { Pages } from "../pages.js";

export const title = "Backlog";
export const needs = ["read"];

const LIMIT = 25;
const MOST = 1000;

export function show(body, { may, parameters, heading }) {
  const { name = "", site } = parameters;
  const controller = new AbortController();
  const { signal } = controller;
  const about = { channel: name, site_id: site };
  const facts = h("p", { class: "quiet" });
  const result = h("div", { class: "messages" });
  const pages = new Pages(load);
  heading.replaceChildren(h("span", { class: "name" }, name));
  heading.before(h("p", { class: "crumb" }, h("a", { href: "#/channels" }, "Channels"), site === undefined ? "" : ` · site ${site}`));
  const query = new URLSearchParams({ name, ...(site === undefined ? {} : { site }) });

  async function load() {
    try {
      // Pages go back from here: the ids below this one.
      const below = pages.after ?? (await get("last_id", about, signal)).last_id + 1;
      if (pages.after === undefined) facts.textContent = `Last id ${count(below - 1)}`;
      const messages = await newest(about, below, signal);
      pages.came(messages.length === LIMIT ? messages[0].message_id : null,
        messages.length ? `${count(messages[0].message_id)} to ${count(messages.at(-1).message_id)}` : "");
      result.replaceChildren(...messages.length ? messages.reverse().map((each) => messageCard(each, { inChannel: true, canExplain: may("admin") }))
        : [pages.number > 1 ? empty("Nothing older", "This is where what is stored begins.")
          : empty("Nothing stored", below > 1 ? "There were messages, but none is stored any more." : "Nothing has been published to this channel.")]);
    } catch (problem) {
      if (problem.name !== "AbortError") result.replaceChildren(problemNote(problem, load));
    }
  }

  pages.previous.textContent = "Newer";
  pages.following.textContent = "Older";
  body.append(
    h("div", { class: "actions start" },
      h("a", { class: "button", href: `#/live?${query}` }, "Follow and publish"),
      h("button", { class: "button", type: "button", onclick: () => pages.restart() }, "Refresh"), facts),
    result, pages.element);
  load();
  return () => controller.abort();
}

/** The last messages below an id, oldest first. Ids may have wide gaps: it looks further back until there are enough. */
async function newest(about, below, signal) {
  for (let width = LIMIT; ; width *= 8) {
    let after = Math.max(0, below - 1 - width);
    const isAll = after === 0;
    const found = [];
    for (let more = true; more;) {
      const page = await getMessages("backlog", { ...about, last_id: after, limit: Math.min(width, MOST) }, signal);
      const fitting = page.messages.filter((each) => each.message_id < below);
      found.push(...fitting);
      found.splice(0, found.length - LIMIT);
      more = page.more && fitting.length === page.messages.length && fitting.length > 0;
      after = page.messages.at(-1)?.message_id;
    }
    if (isAll || found.length === LIMIT) return found;
  }
}
