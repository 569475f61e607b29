// The settings in effect.

import { get } from "../api.js";
import { empty, field, h, problemNote } from "../dom.js";

export const title = "Settings";
export const needs = ["admin"];

export function show(body) {
  const controller = new AbortController();
  const text = h("input", { type: "search", placeholder: "poll, interval, …" });
  const onlySet = h("input", { type: "checkbox", id: "only-set" });
  const result = h("div");
  let all = [];

  function draw() {
    const wanted = text.value.trim().toLowerCase();
    const rows = all.filter((each) => (!onlySet.checked || each.source !== "default") && each.key.toLowerCase().includes(wanted));
    const sections = group(rows);
    result.replaceChildren(...rows.length ? [...sections].map(([name, keys]) => table(name, keys))
      : [empty("No such setting", onlySet.checked ? "Nothing that is set has this in its name." : "No key has this in its name.")]);
  }

  async function load() {
    try {
      all = (await get("settings", {}, controller.signal)).settings;
      draw();
    } catch (problem) {
      if (problem.name !== "AbortError") result.replaceChildren(problemNote(problem, load));
    }
  }

  text.addEventListener("input", draw);
  onlySet.addEventListener("change", draw);
  body.append(
    h("p", { class: "quiet" }, "As the daemon uses them, and where each comes from. Secrets are hidden. ", h("code", {}, "messagebusd config"), " shows the same."),
    h("form", { class: "filter", role: "search", onsubmit: (event) => event.preventDefault() },
      field("Key", text),
      h("label", { class: "check", for: "only-set" }, onlySet, "Only what is set")),
    result);
  load();
  return () => controller.abort();
}

const section = (key) => (key.includes(".") ? key.slice(0, key.lastIndexOf(".")) : key);

function group(rows) {
  const groups = new Map();
  for (const row of rows) groups.set(section(row.key), [...(groups.get(section(row.key)) ?? []), row]);
  return groups;
}

function table(name, rows) {
  return h("section", { class: "settings" }, h("h2", {}, `[${name}]`),
    h("div", { class: "table-frame" }, h("table", { class: "table" },
      h("caption", { class: "hidden" }, `Settings of ${name}`),
      h("thead", { class: "hidden" }, h("tr", {}, ["Key", "Value", "Source"].map((each) => h("th", { scope: "col" }, each)))),
      h("tbody", {}, rows.map((each) => h("tr", { class: each.source !== "default" && "set" },
        h("th", { scope: "row", class: "name" }, each.key.slice(each.key.lastIndexOf(".") + 1)),
        h("td", { class: "value-cell" }, h("code", {}, each.value)),
        h("td", { class: "source" }, each.source)))))));
}
