// Who is logged in, which view is shown, and the frame around it.

import { onSessionEnd, send } from "./api.js";
import { h } from "./dom.js";
import { showLogin } from "./login.js";
import { Samples } from "./samples.js";
import * as channel from "./views/channel.js";
import * as channels from "./views/channels.js";
import * as clients from "./views/clients.js";
import * as explain from "./views/explain.js";
import * as live from "./views/live.js";
import * as lookups from "./views/lookups.js";
import * as overview from "./views/overview.js";
import * as settings from "./views/settings.js";
import * as store from "./views/store.js";

// In the order of the menu. Each tells what a key needs for it.
const VIEWS = { overview, channels, live, clients, explain, lookups, store, settings };
const HIDDEN_VIEWS = { channel };

const app = document.getElementById("app");
const samples = new Samples();
let session = null;
let close = () => {};

/** Whether this key may do something. `admin` is for keys of all channels and sites. */
function may(scope) {
  const unrestricted = session.channels === null && session.sites === null;
  return session.scopes.includes(scope) && (scope !== "admin" || unrestricted);
}

const isAllowed = (view) => view.needs.some(may);

/** Where the address says that we are: a view and its parameters. */
function place() {
  const [name, search] = location.hash.replace(/^#\/?/, "").split("?");
  const view = { ...VIEWS, ...HIDDEN_VIEWS }[name] ?? Object.values(VIEWS).find(isAllowed);
  return { view, parameters: Object.fromEntries(new URLSearchParams(search)) };
}

function show() {
  close();
  close = () => {};
  const { view, parameters } = place();
  const main = document.querySelector("main");
  if (!view) {
    main.replaceChildren(h("p", {}, "This key allows nothing that is shown here."));
    return;
  }
  for (const link of document.querySelectorAll("nav a")) {
    const isCurrent = VIEWS[link.dataset.view] === view || (view === channel && link.dataset.view === "channels");
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (isCurrent) link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  document.title = `${view.title} · messagebusd`;
  const heading = h("h1", { tabindex: "-1" }, view.title);
  const body = h("div", { class: "view" });
  main.replaceChildren(h("header", { class: "view-head" }, heading), body);
  if (!isAllowed(view)) {
    body.append(h("div", { class: "note" }, `This needs a key with the scope ${view.needs.join(" or ")}, for all channels and sites. You are logged in with “${session.name}”.`));
    return;
  }
  close = view.show(body, { may, samples, parameters, heading }) ?? close;
}

function frame() {
  const links = Object.entries(VIEWS).filter(([, view]) => isAllowed(view)).map(([name, view]) =>
    h("li", {}, h("a", { href: `#/${name}`, "data-view": name }, view.title)));
  const link = h("span", { class: "link", role: "status" });
  app.replaceChildren(
    h("a", { class: "skip", href: "#main", onclick: skip }, "Skip to content"),
    h("header", { class: "bar" },
      h("a", { class: "brand", href: "#/" }, h("span", { class: "sign", "aria-hidden": "true" }), "messagebusd"),
      link,
      h("div", { class: "who" },
        h("span", { class: "key-name", title: `Scopes: ${session.scopes.join(", ")}` }, session.name),
        h("button", { class: "button on-bar", type: "button", onclick: logOut }, "Log out"))),
    h("nav", { "aria-label": "Views" }, h("ul", {}, links)),
    h("main", { id: "main", tabindex: "-1" }));
  samples.watch(() => {
    const { problem, missing } = samples;
    link.classList.toggle("bad", problem !== null || missing.length > 0);
    const text = problem ? problem.message : missing.length ? `Worker ${missing.join(", ")} does not answer` : "";
    if (link.textContent !== text) link.textContent = text;
  });
  if (isAllowed(overview)) samples.start();
  show();
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

function leave(message) {
  close();
  close = () => {};
  samples.stop();
  session = null;
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  document.title = "Log in · messagebusd";
  showLogin(app, enter, message);
}

async function logOut() {
  // Whatever the answer: who wants to leave sees the page no more.
  await send("DELETE", "session").catch(() => {});
  leave("You are logged out.");
}

function enter(who) {
  session = who;
  frame();
  document.querySelector("h1")?.focus();
}

onSessionEnd(() => session && leave("Your session has ended. Log in to go on where you were."));
addEventListener("hashchange", () => session && show());

try {
  const response = await send("GET", "session");
  if (response.status === 200) enter(await response.json());
  else leave();
} catch (problem) {
  leave(problem.message);
}
