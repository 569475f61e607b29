// The channels that the store knows.

import { get } from "../api.js";
import { empty, field, h, problemNote } from "../dom.js";
import { bytes, count } from "../format.js";
import { Pages } from "../pages.js";

export const title = "Channels";
export const needs = ["admin", "read"];

const LIMIT = 50;

/** The address of a channel's backlog. */
export function channelLink(name, site) {
  const query = new URLSearchParams({ name, ...(site === null ? {} : { site }) });
  return `#/channel?${query}`;
}

export function show(body, { may }) {
  return may("admin") ? showList(body) : showChoice(body);
}

/** Who may read but not list has to know the name. */
function showChoice(body) {
  const name = h("input", { type: "text", required: true, placeholder: "/chat/1", spellcheck: "false" });
  const site = h("input", { type: "text", placeholder: "default" });
  function open(event) {
    event.preventDefault();
    location.hash = channelLink(name.value, site.value.trim() || null);
  }
  body.append(
    h("p", { class: "quiet" }, "This key may read channels, but not list them."),
    h("form", { class: "filter", onsubmit: open }, field("Channel", name), field("Site", site),
      h("button", { class: ["button", "primary"], type: "submit" }, "Open")));
}

function showList(body) {
  let controller = new AbortController();
  const name = h("input", { type: "search", placeholder: "/chat/* or a part of the name" });
  const site = h("input", { type: "search", placeholder: "any" });
  const result = h("div", { "aria-busy": "true" });
  const pages = new Pages(load);

  function search(event) {
    event.preventDefault();
    pages.restart();
  }

  /** A part of a name is looked for anywhere in it. */
  function pattern() {
    const text = name.value.trim();
    return !text || text.includes("*") ? text : `*${text}*`;
  }

  async function load() {
    controller.abort();
    controller = new AbortController();
    const { signal } = controller;
    result.setAttribute("aria-busy", "true");
    try {
      const page = await get("channels", { limit: LIMIT, after: pages.after, channel: pattern(), site_id: site.value.trim() }, signal);
      const first = (pages.number - 1) * LIMIT + 1;
      const isFiltered = pattern() || site.value.trim();
      pages.came(page.next, page.channels.length ? isFiltered ? `Page ${pages.number}` : `${count(first)} to ${count(first + page.channels.length - 1)}` : "");
      result.replaceChildren(page.channels.length ? table(page.channels)
        : page.next !== null ? empty("Nothing here yet", "Nothing among the channels looked at so far; there are more.",
          h("button", { class: "button", type: "button", onclick: () => pages.forward() }, "Look further"))
          : isFiltered ? empty("No such channel", "No stored channel fits this name and site.")
            : empty("No channels yet", "A channel comes to be with the first message that is published to it.",
              h("a", { class: "button", href: "#/live" }, "Publish one")));
    } catch (problem) {
      if (problem.name !== "AbortError") result.replaceChildren(problemNote(problem, load));
    }
    if (!signal.aborted) result.setAttribute("aria-busy", "false");
  }

  body.append(
    h("form", { class: "filter", role: "search", onsubmit: search },
      field("Channel", name), field("Site", site),
      h("button", { class: "button", type: "submit" }, "Search")),
    result, pages.element);
  load();
  return () => controller.abort();
}

function table(channels) {
  return h("div", { class: "table-frame" }, h("table", { class: "table" },
    h("caption", { class: "hidden" }, "Channels"),
    h("thead", {}, h("tr", {},
      h("th", { scope: "col" }, "Channel"), h("th", { scope: "col" }, "Site"),
      ...["Last id", "Stored", "Size", "Waiting"].map((each) => h("th", { scope: "col", class: "number" }, each)))),
    h("tbody", {}, channels.map((each) => h("tr", {},
      h("th", { scope: "row" }, h("a", { class: "name", href: channelLink(each.channel, each.site_id) }, each.channel)),
      h("td", { "data-label": "Site" }, each.site_id ?? h("span", { class: "quiet" }, "default")),
      h("td", { class: "number", "data-label": "Last id" }, count(each.last_id)),
      h("td", { class: "number", "data-label": "Stored" }, count(each.backlog_size)),
      h("td", { class: "number", "data-label": "Size" }, bytes(each.backlog_bytes)),
      h("td", { class: "number", "data-label": "Waiting" }, count(each.subscribers)))))));
}
