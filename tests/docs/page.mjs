// A page without a browser: the scripts of its HTML, or a script alone, with the client that the daemon
// serves. Arguments: the client's file, the daemon's URL, what a visitor's token is. Standard input: the
// page. What the page logs or shows is printed.
import { readFileSync } from "node:fs";
import vm from "node:vm";

const [client, url, token] = process.argv.slice(2);
const page = readFileSync(0, "utf8");

const scripts = [...page.matchAll(/<script([^>]*)>([^]*?)<\/script>/g)];
const data = {};
for (const [, attributes, content] of scripts) {
  const id = /id="(\w+)"/.exec(attributes)?.[1];
  if (id) data[id] = { textContent: content };
}
const code = scripts.length
  ? scripts.filter(([, attributes]) => !attributes.includes("application/json")).map((each) => each[2])
  : [page];

const ask = globalThis.fetch;
Object.assign(globalThis, {
  document: {
    hidden: false,
    addEventListener() {},
    removeEventListener() {},
    createElement: () => ({}),
    getElementById: (id) => data[id] ?? { append: (line) => console.log(line.textContent) },
  },
  // The page's own application.
  fetch: (target, options) =>
    target === "/messagebus/token" ? Response.json({ token }) : ask(target, options),
  token,
  fetchToken: async () => token,
  show: (text) => console.log(text),
});
vm.runInThisContext(readFileSync(client, "utf8"), { filename: client });
MessageBus.baseUrl = url;
for (const each of code) vm.runInThisContext(each);
// What a page listens to that shows only how to say who it is.
if (!page.includes(".subscribe(")) MessageBus.subscribe("/private", show, 0);
