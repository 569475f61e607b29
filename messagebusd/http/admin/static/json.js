// JSON as it was published: numbers keep their digits, and it is shown with its structure.

import { h } from "./dom.js";

// More than so many parts are shown without colours, more than so many characters not at once.
const MAX_TOKENS = 1500;
const MAX_CHARACTERS = 6000;
const LINE = 76;

/** A number whose text says more than JavaScript's own number would. */
class Exact {
  constructor(text) { this.text = text; }
}

/** Reads JSON. Throws SyntaxError. */
export function parse(text) {
  return JSON.parse(text, (_key, value, context) => {
    const source = context?.source;
    return typeof value === "number" && source !== undefined && String(value) !== source ? new Exact(source) : value;
  });
}

/** A value as tokens of a kind and a text; what is short stands on one line. */
function tokens(value, indent = "") {
  if (value instanceof Exact) return [["number", value.text]];
  if (value === null || typeof value === "boolean") return [["word", String(value)]];
  if (typeof value === "number") return [["number", String(value)]];
  if (typeof value === "string") return [["string", JSON.stringify(value)]];
  const isList = Array.isArray(value);
  const [open, close] = isList ? "[]" : "{}";
  const inner = `${indent}  `;
  const members = Object.entries(value).map(([name, member]) => [
    ...(isList ? [] : [["name", JSON.stringify(name)], ["mark", ": "]]), ...tokens(member, inner),
  ]);
  if (!members.length) return [["mark", open + close]];
  const isShort = lengthOf(members.flat()) + 2 * members.length + indent.length <= LINE
    && !members.flat().some(([kind, text]) => kind === "mark" && text.includes("\n"));
  const [first, between, last] = isShort ? ["", " ", ""] : [`\n${inner}`, `\n${inner}`, `\n${indent}`];
  return [
    ...members.flatMap((member, index) => [["mark", index ? `,${between}` : open + first], ...member]),
    ["mark", last + close],
  ];
}

const lengthOf = (parts) => parts.reduce((sum, [, text]) => sum + text.length, 0);

/** A value as an element to read. */
export function pretty(value) {
  const found = tokens(value);
  const show = (parts) => parts.length <= MAX_TOKENS
    ? parts.map(([kind, text]) => kind === "mark" ? text : h("span", { class: `json-${kind}` }, text))
    : parts.map(([, text]) => text).join("");
  const block = h("pre", { class: "json", tabindex: "0", "aria-label": "Data" });
  if (lengthOf(found) <= MAX_CHARACTERS) {
    block.append(...[show(found)].flat());
    return block;
  }
  const all = found.map(([, text]) => text).join("");
  const more = h("button", { class: ["button", "small"], type: "button" }, `Show all of ${all.length.toLocaleString("en")} characters`);
  block.append(`${all.slice(0, MAX_CHARACTERS)}…`);
  more.addEventListener("click", () => { block.textContent = all; more.remove(); });
  return h("div", {}, block, more);
}

/** An id so that 7 and "7", which are two people, look different. */
export function idText(id) {
  if (id instanceof Exact) return id.text;
  return typeof id === "string" && /^-?\d/.test(id) ? JSON.stringify(id) : String(id);
}
