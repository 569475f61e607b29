/** README.md names everything that there is. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { MessageBus } from "../source/index.js";
import { Publisher } from "../source/publisher.js";
import { defaultSettings } from "../source/settings.js";

const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf-8");
const rows = readme.split("\n").filter((line) => line.startsWith("| `"));
/** What stands in the first column of tables, in code. */
const named = new Set(
  rows.flatMap((row) => [...(row.split(" | ")[0] ?? "").matchAll(/`(?:new )?(\w+)/g)].map((m) => m[1])),
);

test("every setting, with its default", () => {
  for (const [name, value] of Object.entries(defaultSettings())) {
    const row = rows.find((each) => each.startsWith(`| \`${name}\` |`));
    assert(row, name);
    if (typeof value === "number") assert(row.includes(`| ${value} |`), row);
  }
});

test("every method", () => {
  const own = Object.getOwnPropertyNames(Publisher.prototype);
  const methods = Object.entries(new MessageBus()).filter(([, value]) => value instanceof Function);
  for (const name of [...methods.map(([key]) => key), ...own.filter((n) => n !== "constructor")]) {
    assert(named.has(name), name);
  }
});

test("every event", () => {
  for (const name of ["state", "error", "gap", "fallback"]) assert(named.has(name), name);
});
