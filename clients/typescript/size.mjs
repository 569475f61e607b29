// Prints what pages download, minified and compressed, beside the original; README.md has the table.
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

console.log("| | minified | with gzip |\n| --- | ---: | ---: |");
for (const [name, text] of Object.entries(all)) {
  const sizes = [Buffer.byteLength(text), gzipSync(text, { level: 9 }).length];
  console.log(`| ${name} | ${sizes.map((bytes) => `${(bytes / 1000).toFixed(1)} kB`).join(" | ")} |`);
}
