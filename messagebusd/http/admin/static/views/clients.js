// The polls that wait.

import { get, send } from "../api.js";
import { confirm, empty, field, h, problemNote, toast } from "../dom.js";
import { count, span } from "../format.js";
import { idText } from "../json.js";
import { Pages } from "../pages.js";

export const title = "Clients";
export const needs = ["admin"];

const LIMIT = 50;
const MODES = { stream: "stream", long_poll: "long poll" };

export function show(body, { samples }) {
  let controller = new AbortController();
  const inputs = {
    client_id: h("input", { type: "search", placeholder: "whole id" }),
    user_id: h("input", { type: "search", placeholder: "42, or \"42\" as text" }),
    site_id: h("input", { type: "search", placeholder: "any" }),
    channel: h("input", { type: "search", placeholder: "/chat/1" }),
  };
  const labels = { client_id: "Client", user_id: "User", site_id: "Site", channel: "Listens to" };
  const result = h("div", );
  const total = h("p", { class: "quiet" });
  const pages = new Pages(load);

  async function load() {
    controller.abort();
    controller = new AbortController();
    const { signal } = controller;
    const filter = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value.trim()]));
    result.setAttribute("aria-busy", "true");
    try {
      const page = await get("clients", { limit: LIMIT, after: pages.after, ...filter }, signal);
      const isFiltered = Object.values(filter).some(Boolean);
      const first = (pages.number - 1) * LIMIT + 1;
      pages.came(page.next, page.clients.length ? `${count(first)} to ${count(first + page.clients.length - 1)}` : "");
      result.replaceChildren(page.clients.length ? table(page.clients, disconnect)
        : isFiltered ? empty("Nobody like that", "No waiting poll fits these conditions.")
          : empty("Nobody is waiting", "Pages that listen appear here as soon as they poll."));
    } catch (problem) {
      if (problem.name !== "AbortError") result.replaceChildren(problemNote(problem, load));
    }
    if (!signal.aborted) result.setAttribute("aria-busy", "false");
  }

  async function disconnect(client) {
    const sure = await confirm("End this poll?", `The poll of ${client.client_id} ends now. Its page comes back by itself in a moment and misses nothing.`, "Disconnect");
    if (!sure) return;
    try {
      await send("POST", "api/clients/disconnect", {
        body: { client_id: client.client_id, ...(client.site_id === null ? {} : { site_id: client.site_id }) },
      });
      toast(`${client.client_id} is disconnected.`);
      load();
    } catch (problem) {
      toast(problem.message, "bad");
    }
  }

  body.append(
    h("form", { class: "filter", role: "search", onsubmit: (event) => { event.preventDefault(); pages.restart(); } },
      Object.entries(inputs).map(([name, input]) => field(labels[name], input)),
      h("button", { class: "button", type: "submit" }, "Search")),
    h("div", { class: "actions start" }, h("button", { class: "button", type: "button", onclick: load }, "Refresh"), total),
    result, pages.element);
  const unwatch = samples.watch(() => {
    const waiting = samples.latest("stream") === null ? null : samples.latest("stream") + samples.latest("long_poll");
    total.textContent = waiting === null ? "" : waiting === 1 ? "1 poll waits on this node" : `${count(waiting)} polls wait on this node`;
  });
  load();
  return () => {
    controller.abort();
    unwatch();
  };
}

function table(clients, disconnect) {
  return h("div", { class: "table-frame" }, h("table", { class: "table" },
    h("caption", { class: "hidden" }, "Waiting polls"),
    h("thead", {}, h("tr", {},
      ["Client", "User", "Site", "Mode"].map((each) => h("th", { scope: "col" }, each)),
      ["Channels", "Waits for"].map((each) => h("th", { scope: "col", class: "number" }, each)),
      h("th", { scope: "col" }, h("span", { class: "hidden" }, "Action")))),
    h("tbody", {}, clients.map((each) => h("tr", {},
      h("th", { scope: "row", class: "name" }, each.client_id),
      h("td", { "data-label": "User" }, each.user_id === null ? h("span", { class: "quiet" }, "anonymous") : idText(each.user_id)),
      h("td", { "data-label": "Site" }, each.site_id ?? h("span", { class: "quiet" }, "default")),
      h("td", { "data-label": "Mode" }, MODES[each.mode] ?? each.mode),
      h("td", { class: "number", "data-label": "Channels" }, count(each.channels)),
      h("td", { class: "number", "data-label": "Waits for" }, span(Math.max(1, each.age))),
      h("td", { class: "end" }, h("button", {
        class: ["button", "small"], type: "button", "aria-label": `Disconnect ${each.client_id}`, onclick: () => disconnect(each),
      }, "Disconnect")))))));
}
