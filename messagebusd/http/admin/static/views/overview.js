// How the daemon is doing.

import { get } from "../api.js";
import { h, problemNote } from "../dom.js";
import { count, duration, latency, rate, span } from "../format.js";
import { Plot } from "../plot.js";
import { windowChoice } from "../window.js";

export const title = "Overview";
export const needs = ["admin"];

const FACTS_MS = 10_000;

const sum = (...names) => (row) => names.reduce((total, name) => total + row[name], 0);

const plots = () => [
  new Plot({
    title: "Waiting polls", format: count, now: sum("stream", "long_poll"), floor: 4,
    series: [{ name: "streams", key: "stream" }, { name: "long polls", key: "long_poll" }],
  }),
  new Plot({
    title: "Deliveries", unit: "a second", format: rate,
    series: [{ name: "delivered", key: "deliveries" }, { name: "withheld", key: "withheld" }],
  }),
  new Plot({
    title: "Publishes", unit: "a second", format: rate,
    series: [{ name: "published", key: "publishes" }, { name: "refused requests", key: "refusals" }],
  }),
  new Plot({
    title: "Delivery latency", unit: "to the write", format: latency, floor: 0.002,
    series: [{ name: "half within", key: "delivery_p50" }, { name: "99 % within", key: "delivery_p99" }],
    now: (row) => row.delivery_p99,
  }),
  new Plot({
    title: "First frame", unit: "to the first bytes", format: latency, floor: 0.002,
    series: [{ name: "half within", key: "first_frame_p50" }, { name: "99 % within", key: "first_frame_p99" }],
    now: (row) => row.first_frame_p99,
  }),
  new Plot({
    title: "Event loop lag", unit: "worst worker", format: duration, floor: 0.002,
    series: [{ name: "lag", key: "lag" }],
  }),
];

export function show(body, { samples, heading }) {
  const controller = new AbortController();
  const state = h("div", { class: "state" }, "Asking…");
  const facts = h("dl", { class: "facts" });
  const trouble = h("div");
  const drawn = plots();
  const choice = windowChoice(update);
  heading.after(choice.element);
  body.append(
    h("section", { class: "summary", "aria-label": "State" }, state, facts),
    trouble,
    h("div", { class: "cards" }, drawn.map((plot) => plot.element)));

  function update() {
    for (const plot of drawn) plot.update(samples.rows, choice.seconds);
  }

  async function refresh() {
    if (!document.hidden) {
      // Each by itself: without the store there are no numbers, but there is a state.
      const [health, stats] = await Promise.allSettled([
        get("health", {}, controller.signal), get("stats", {}, controller.signal),
      ]);
      if (controller.signal.aborted) return;
      showState(state, health);
      if (stats.status === "fulfilled") showFacts(facts, stats.value, health.value);
      const isNews = stats.status === "rejected" && health.value?.ready;
      trouble.replaceChildren(...(isNews ? [problemNote(stats.reason)] : []));
    }
    timer = setTimeout(refresh, FACTS_MS);
  }

  let timer;
  const unwatch = samples.watch(update);
  refresh();
  return () => {
    controller.abort();
    clearTimeout(timer);
    unwatch();
    for (const plot of drawn) plot.close();
  };
}

function showState(state, { value: health, reason }) {
  const wrong = health ? complaints(health) : [reason.message];
  const isReady = health?.ready && !wrong.length;
  state.className = `state ${isReady ? "good" : "bad"}`;
  state.replaceChildren(
    h("strong", {}, isReady ? "Ready" : !health ? "No answer" : health.ready ? "Ready, but" : "Not ready"),
    h("span", {}, isReady ? "The store answers, and polls and publishes are taken." : wrong.join("; ")));
}

/** What is wrong, and with which workers if not with all of them. */
function complaints({ workers, unavailable_workers: missing = [] }) {
  const found = new Map();
  for (const { worker, checks } of workers) {
    for (const [name, result] of Object.entries(checks)) {
      if (result === "ok") continue;
      const text = `${name}: ${result}`;
      found.set(text, [...(found.get(text) ?? []), worker]);
    }
  }
  const total = workers.length + missing.length;
  return [
    ...[...found].map(([text, where]) => (where.length === total ? text : `${text} (worker ${where.join(", ")})`)),
    ...missing.map((worker) => `worker ${worker} does not answer`),
  ];
}

function showFacts(facts, stats, health) {
  const shown = {
    "Up": span(stats.uptime),
    "Version": stats.version,
    "Workers": health ? count(health.workers.length) : null,
    "Messages so far": count(stats.last_global_id),
    "Subscriptions": count(stats.subscriptions),
  };
  facts.replaceChildren(...Object.entries(shown).filter(([, value]) => value !== null)
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
