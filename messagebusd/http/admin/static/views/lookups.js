// How it is found out who polls.

import { get } from "../api.js";
import { h, problemNote } from "../dom.js";
import { count, latency, percent, rate, span } from "../format.js";
import { Plot } from "../plot.js";
import { windowChoice } from "../window.js";

export const title = "Lookups";
export const needs = ["admin"];

const ANSWERED = ["hit", "shared", "stale"];
const ALL = [...ANSWERED, "miss", "bypass"];
const MODES = {
  none: "Nobody is asked: everybody is anonymous.",
  headers: "A trusted proxy says who polls, in headers.",
  jwt: "A signed token says who polls.",
  webhook: "The application is asked who polls.",
};

const cached = (row, names) => names.reduce((sum, name) => sum + row[`lookup_cache_${name}`], 0);
const ratio = (row) => {
  const all = cached(row, ALL);
  return all ? cached(row, ANSWERED) / all : null;
};

export function show(body, { samples, heading }) {
  const controller = new AbortController();
  const state = h("div", { class: "state" }, "Asking…");
  const facts = h("dl", { class: "facts" });
  const choice = windowChoice(update);
  heading.after(choice.element);
  const plots = [
    new Plot({
      title: "Outcomes", unit: "a second", format: rate,
      now: (row) => row.lookup_identified + row.lookup_refused + row.lookup_unavailable,
      series: [{ name: "identified", key: "lookup_identified" }, { name: "refused", key: "lookup_refused" }, { name: "unavailable", key: "lookup_unavailable" }],
    }),
    new Plot({
      title: "Time", unit: "for one lookup", format: latency, floor: 0.002, now: (row) => row.lookup_p99,
      series: [{ name: "half within", key: "lookup_p50" }, { name: "99 % within", key: "lookup_p99" }],
    }),
    new Plot({ title: "Answered from memory", unit: "of all lookups", format: percent, now: ratio, series: [{ name: "hit ratio", of: ratio }] }),
  ];
  let mode = null;
  body.append(h("section", { class: "summary", "aria-label": "State" }, state, facts), h("div", { class: "cards" }, plots.map((each) => each.element)));

  function update() {
    const rows = samples.rows.filter((row) => row.at > (samples.latest("at") ?? 0) - choice.seconds);
    for (const plot of plots) plot.update(samples.rows, choice.seconds);
    if (mode === null) return;
    const paused = samples.latest("lookup_paused") ?? 0;
    state.className = `state ${paused ? "bad" : mode === "none" ? "" : "good"}`;
    state.replaceChildren(
      h("strong", {}, paused ? "Paused" : mode === "none" ? "Off" : "Working"),
      h("span", {}, paused ? `${count(paused)} ${paused === 1 ? "worker leaves" : "workers leave"} the application alone, because it failed several times in a row. It is tried again soon; meanwhile older answers are used, or polls are told to come back.` : MODES[mode]));
    const total = (of) => rows.reduce((sum, row) => sum + of(row) * 2, 0);
    const all = total((row) => cached(row, ALL));
    const shown = {
      "Mode": mode,
      "In the last": span(choice.seconds),
      "Identified": count(total((row) => row.lookup_identified)),
      "Refused": count(total((row) => row.lookup_refused)),
      "Unavailable": count(total((row) => row.lookup_unavailable)),
      ...(mode === "webhook" ? {
        "Hit ratio": percent(all ? total((row) => cached(row, ANSWERED)) / all : null),
        "Hit": count(total((row) => row.lookup_cache_hit)),
        "Shared a call": count(total((row) => row.lookup_cache_shared)),
        "Stale": count(total((row) => row.lookup_cache_stale)),
        "Asked": count(total((row) => row.lookup_cache_miss + row.lookup_cache_bypass)),
      } : {}),
    };
    facts.replaceChildren(...Object.entries(shown).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  const unwatch = samples.watch(update);
  get("settings", {}, controller.signal).then(({ settings }) => {
    mode = settings.find((each) => each.key === "lookup.mode").value.replaceAll("\"", "");
    update();
  }).catch((problem) => problem.name !== "AbortError" && state.replaceWith(problemNote(problem)));
  return () => {
    controller.abort();
    unwatch();
    for (const plot of plots) plot.close();
  };
}
