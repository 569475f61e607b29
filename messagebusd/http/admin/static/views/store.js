// Where messages are kept, and whether that works.

import { get } from "../api.js";
import { h, problemNote } from "../dom.js";
import { count, latency, rate } from "../format.js";
import { Plot } from "../plot.js";
import { windowChoice } from "../window.js";

export const title = "Store";
export const needs = ["admin"];

const CHECK_MS = 5000;
const PARTS = {
  store: "Store: read, written, and announcements come back",
  accepting: "Accepting new polls",
  inbox: "Redis door",
};

export function show(body, { samples, heading }) {
  const controller = new AbortController();
  const health = h("div");
  const choice = windowChoice(update);
  heading.after(choice.element);
  const plots = [
    new Plot({
      title: "Time", unit: "for one operation", format: latency, floor: 0.002, now: (row) => row.store_p99,
      series: [{ name: "half within", key: "store_p50" }, { name: "99 % within", key: "store_p99" }],
    }),
    new Plot({
      title: "Failures", unit: "a second", format: rate,
      series: [{ name: "failed operations", key: "store_errors" }, { name: "reconnects", key: "store_reconnects" }],
    }),
    new Plot({
      title: "Healing", unit: "messages a second", format: rate,
      series: [{ name: "announced from backlogs", key: "store_replays" }, { name: "not announced", key: "store_gaps" }],
    }),
    new Plot({ title: "Waiting for the store", unit: "messages", format: count, floor: 4, series: [{ name: "in memory", key: "waiting_messages" }] }),
  ];
  body.append(health, h("div", { class: "cards" }, plots.map((each) => each.element)));

  function update() {
    for (const plot of plots) plot.update(samples.rows, choice.seconds);
  }

  async function check() {
    if (!document.hidden) {
      try {
        health.replaceChildren(...(await describe(controller.signal)));
      } catch (problem) {
        if (problem.name === "AbortError") return;
        health.replaceChildren(problemNote(problem));
      }
    }
    timer = setTimeout(check, CHECK_MS);
  }

  let timer;
  const unwatch = samples.watch(update);
  check();
  return () => {
    controller.abort();
    clearTimeout(timer);
    unwatch();
    for (const plot of plots) plot.close();
  };
}

async function describe(signal) {
  const { workers, unavailable_workers: missing = [] } = await get("health", {}, signal);
  const several = workers.length + missing.length > 1;
  const rows = workers.flatMap(({ worker, checks }) => Object.entries(checks).map(([name, result]) => h("tr", {},
    several && h("td", { "data-label": "Worker" }, worker),
    h("th", { scope: "row" }, PARTS[name] ?? name),
    h("td", { class: "reason", "data-label": "State" }, h("span", { class: ["badge", result === "ok" ? "good" : "bad"] }, result === "ok" ? "OK" : "Not OK"), result === "ok" ? "" : ` ${result}`))));
  rows.push(...missing.map((worker) => h("tr", {}, h("td", { "data-label": "Worker" }, worker), h("th", { scope: "row" }, "All of it"),
    h("td", { class: "reason", "data-label": "State" }, h("span", { class: "badge bad" }, "Not OK"), " does not answer"))));
  return [h("div", { class: "table-frame" }, h("table", { class: "table" },
    h("caption", { class: "hidden" }, "Parts of readiness"),
    h("thead", {}, h("tr", {}, several && h("th", { scope: "col" }, "Worker"), h("th", { scope: "col" }, "Part"), h("th", { scope: "col" }, "State"))),
    h("tbody", {}, rows)))];
}
