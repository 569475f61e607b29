// Prints what pages download, minified and compressed, beside the original; README.md has the table.
// Fails if something has outgrown its budget: raise that only for a feature, and say so.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

import { build, transform } from "esbuild";

const ORIGINAL = "../../node_modules/message-bus-client/assets/message-bus.js";
const ADAPTER = "../../tests/browser/ajax.js"; // the original needs it, or jQuery

/** Bundle what a page imports. */
async function bundled(source) {
  const stdin = { contents: source, resolveDir: "." };
  const { outputFiles } = await build({
    stdin,
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    write: false,
  });
  return outputFiles[0].text;
}

async function minified(...paths) {
  const source = paths.map((path) => readFileSync(path, "utf-8")).join("\n");
  return (await transform(source, { minify: true })).code;
}

/** What each may have, in bytes with gzip. */
const BUDGETS = {
  "`message-bus.js`, classic": 7300,
  "`sharing.js`, classic: the same and `share`": 10_000,
  "`worker.js`": 6400,
  "`import { MessageBus }`": 6900,
  "the same with `sharedConnection`": 9500,
  "`import { Publisher }`": 3600,
};

const all = {
  "original, with the adapter it needs without jQuery": await minified(ORIGINAL, ADAPTER),
  "`message-bus.js`, classic": readFileSync("dist/classic/message-bus.js", "utf-8"),
  "`sharing.js`, classic: the same and `share`": readFileSync("dist/classic/sharing.js", "utf-8"),
  "`worker.js`": readFileSync("dist/classic/worker.js", "utf-8"),
  "`import { MessageBus }`": await bundled(
    'export { MessageBus } from "./dist/index.js";',
  ),
  "the same with `sharedConnection`": await bundled(
    'export { MessageBus } from "./dist/index.js";export * from "./dist/sharing/index.js";',
  ),
  "`import { Publisher }`": await bundled('export { Publisher } from "./dist/publisher.js";'),
};

const compressed = (text) => gzipSync(text, { level: 9 }).length;
const [original] = Object.values(all).map(compressed);
const kilo = (bytes) => `${(bytes / 1000).toFixed(1)} kB`;
console.log("| | minified | with gzip | of the original |\n| --- | ---: | ---: | ---: |");
for (const [name, text] of Object.entries(all)) {
  const bytes = compressed(text);
  const times = `${(bytes / original).toFixed(1)} ×`;
  console.log(`| ${name} | ${kilo(Buffer.byteLength(text))} | ${kilo(bytes)} | ${times} |`);
  if (bytes > (BUDGETS[name] ?? Infinity)) {
    console.error(`${name}: ${bytes} bytes with gzip, and its budget is ${BUDGETS[name]}`);
    process.exitCode = 1;
  }
}
