// Lines over time, drawn as SVG.

import { h, s } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 132;
const TOP = 8;
const BOTTOM = 20;
const LEFT = 46;
const RIGHT = 6;
// A hole in the numbers is a hole in the line.
const GAP_SECONDS = 5;

/**
 * A card with a plot. `series` are `{name, key}`, or `{name, of}` where it is made of a row;
 * `format` writes a value; `now` makes the large number of the newest row.
 */
export class Plot {
  #series; #format; #floor; #now; #rows = []; #window = 120; #at = null;
  #svg; #value; #legend; #spoken; #width = 320;

  constructor({ title, unit = "", series, format, now, floor = 1 }) {
    this.#series = series.map((each) => ({ of: (row) => row[each.key] ?? null, ...each }));
    this.#format = format;
    this.#floor = floor;
    this.#now = now ?? ((row) => this.#series[0].of(row));
    this.title = title;
    this.#svg = s("svg", { class: "plot", tabindex: "0", role: "img", height: HEIGHT });
    this.#value = h("p", { class: "value" });
    this.#legend = h("ul", { class: "legend" });
    this.#spoken = h("p", { class: "hidden", "aria-live": "polite" });
    this.element = h("section", { class: "card" },
      h("div", { class: "card-head" }, h("h2", {}, title, unit && h("span", { class: "unit" }, ` ${unit}`)), this.#value),
      this.#svg, this.#legend, this.#spoken);
    this.#svg.addEventListener("pointermove", (event) => this.#point(event));
    this.#svg.addEventListener("pointerleave", () => this.#choose(null));
    this.#svg.addEventListener("blur", () => this.#choose(null));
    this.#svg.addEventListener("keydown", (event) => this.#press(event));
    this.#resizing = new ResizeObserver(([entry]) => {
      this.#width = Math.max(160, entry.contentRect.width);
      this.#draw();
    });
    this.#resizing.observe(this.#svg);
  }

  #resizing;

  close() { this.#resizing.disconnect(); }

  /** Shows the last `seconds` of these rows. */
  update(rows, seconds) {
    const end = rows.at(-1)?.at ?? 0;
    this.#rows = rows.filter((row) => row.at > end - seconds);
    this.#window = seconds;
    if (this.#at !== null && !this.#rows.some((row) => row.at === this.#at)) this.#at = null;
    this.#draw();
  }

  #draw() {
    const rows = this.#rows;
    this.#svg.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    const last = rows.at(-1);
    // Where nothing happened of late, the last that did is better than a dash.
    const chosen = rows.find((row) => row.at === this.#at) ?? rows.findLast((row) => this.#now(row) !== null) ?? last;
    this.#value.textContent = chosen ? this.#format(this.#now(chosen)) : "–";
    this.#drawLegend(chosen);
    if (!last) {
      this.#svg.replaceChildren(s("text", { class: "tick", x: this.#width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "Waiting for the first numbers"));
      this.#svg.setAttribute("aria-label", `${this.title}: no numbers yet`);
      return;
    }
    const values = this.#series.flatMap((each) => rows.map(each.of)).filter((value) => value !== null);
    const top = niceTop(Math.max(this.#floor, ...values));
    const x = (at) => LEFT + (this.#width - LEFT - RIGHT) * (1 - (last.at - at) / this.#window);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
    const parts = [0, top / 2, top].flatMap((value) => [
      s("line", { class: "grid", x1: LEFT, x2: this.#width - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { class: "tick", x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, this.#format(value)),
    ]);
    for (const [part, anchor] of [[1, "start"], [0.5, "middle"], [0, "end"]]) {
      const at = last.at - this.#window * part;
      parts.push(s("text", { class: "tick", x: x(at), y: HEIGHT - 4, "text-anchor": anchor }, clock(at, this.#window < 300)));
    }
    for (const [index, series] of this.#series.entries()) parts.push(...line(series, index, rows, x, y));
    if (this.#at !== null && chosen) {
      parts.push(s("line", { class: "cross", x1: x(chosen.at), x2: x(chosen.at), y1: TOP, y2: HEIGHT - BOTTOM }));
      for (const [index, series] of this.#series.entries()) {
        const value = series.of(chosen);
        if (value !== null) parts.push(s("circle", { class: `dot s${index}`, cx: x(chosen.at), cy: y(value), r: 3.5 }));
      }
    }
    this.#svg.replaceChildren(...parts);
    const most = values.length ? `, at most ${this.#format(Math.max(...values))}` : "";
    this.#svg.setAttribute("aria-label", `${this.title}: ${this.#format(this.#now(chosen))} now${most} in the last ${Math.round(this.#window / 60)} minutes. Arrow keys read it.`);
  }

  #drawLegend(row) {
    const items = this.#series.map((series, index) => h("li", { class: `s${index}` },
      h("span", { class: "key" }), series.name, " ",
      h("b", {}, row ? this.#format(series.of(row)) : "–")));
    if (this.#at !== null && row) items.push(h("li", { class: "when" }, clock(row.at)));
    this.#legend.replaceChildren(...items);
  }

  #point(event) {
    const last = this.#rows.at(-1);
    if (!last) return;
    const box = this.#svg.getBoundingClientRect();
    const part = ((event.clientX - box.left) / box.width * this.#width - LEFT) / (this.#width - LEFT - RIGHT);
    const wanted = last.at - this.#window * (1 - part);
    this.#choose(this.#rows.reduce((best, row) => Math.abs(row.at - wanted) < Math.abs(best.at - wanted) ? row : best).at);
  }

  #press(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this.#choose(null);
    if (step === undefined || !this.#rows.length) return;
    event.preventDefault();
    const known = this.#rows.findIndex((row) => row.at === this.#at);
    const index = Math.min(this.#rows.length - 1, Math.max(0, (known < 0 ? this.#rows.length : known) + step));
    const row = this.#rows[index];
    this.#choose(row.at);
    this.#spoken.textContent = `${clock(row.at)}: ${this.#series.map((each) => `${each.name} ${this.#format(each.of(row))}`).join(", ")}`;
  }

  #choose(at) {
    this.#at = at;
    if (this.#rows.length) this.#draw();
  }
}

/** A series as paths: one for each stretch without a hole, a dot where it is a single number. */
function line(series, index, rows, x, y) {
  const stretches = [];
  let before = null;
  for (const row of rows) {
    const value = series.of(row);
    if (value === null) { before = null; continue; }
    if (before === null || row.at - before > GAP_SECONDS) stretches.push([]);
    stretches.at(-1).push([x(row.at).toFixed(1), y(value).toFixed(1)]);
    before = row.at;
  }
  return stretches.flatMap((points) => {
    if (points.length === 1) return [s("circle", { class: `dot s${index}`, cx: points[0][0], cy: points[0][1], r: 2 })];
    const path = `M${points.map((point) => point.join(",")).join("L")}`;
    const drawn = [s("path", { class: `line s${index}`, d: path })];
    if (index === 0) drawn.unshift(s("path", { class: "area s0", d: `${path}V${y(0)}H${points[0][0]}Z` }));
    return drawn;
  });
}

/** The least round number that is not smaller. */
function niceTop(value) {
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((each) => each * size).find((each) => each >= value * 0.999) ?? value;
}
