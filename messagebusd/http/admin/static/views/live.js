// What is published, as it comes; and publishing something to see where it goes.

import { lines } from "../api.js";
import { empty, field, h } from "../dom.js";
import { count } from "../format.js";
import { messageCard } from "../message.js";
import { publishForm } from "../publish.js";

export const title = "Live";
export const needs = ["read", "publish"];

const KEPT = 100;
const AGAIN_MS = 2000;
const DRAW_MS = 100;

export function show(body, { parameters, may }) {
  const tail = may("read") ? tailPanel(parameters, may) : null;
  const form = may("publish") ? publishForm(parameters) : null;
  body.append(h("div", { class: "two" }, tail?.element, form));
  tail?.start();
  return () => tail?.stop();
}

function tailPanel({ name = "", site = "" }, may) {
  const channel = h("input", { type: "search", value: name, placeholder: "all channels", spellcheck: "false" });
  const siteId = h("input", { type: "search", value: site, placeholder: "any" });
  const button = h("button", { class: ["button", "primary"], type: "submit" }, "Follow");
  const state = h("span", { role: "status" });
  const received = h("span");
  const head = h("p", { class: "tail-state" }, state, received);
  // Not read aloud: there can be thousands.
  const list = h("div", { class: "messages", role: "log", "aria-live": "off", "aria-label": "Messages", tabindex: "0" });
  let controller = null;
  let seen = 0;
  let waiting = [];
  let timer = 0;

  function say(text, kind = "") {
    head.className = `tail-state ${kind}`;
    if (state.textContent !== text) state.textContent = text;
    received.textContent = seen ? ` · ${count(seen)} received` : "";
  }

  /** However many come, they are shown some times a second, and only as many as are kept. */
  function add(message) {
    seen += 1;
    waiting.push(message);
    if (waiting.length > KEPT) waiting.shift();
    timer ||= setTimeout(drawWaiting, DRAW_MS);
  }

  function drawWaiting() {
    timer = 0;
    if (seen === waiting.length) list.replaceChildren();
    list.prepend(...waiting.reverse().map((each) => messageCard(each, { canExplain: may("admin") })));
    waiting = [];
    while (list.childElementCount > KEPT) list.lastElementChild.remove();
    say("Live", "on");
  }

  async function follow(signal, about) {
    let position;
    let failures = 0;
    while (!signal.aborted) {
      try {
        say("Connecting…");
        // It says that it is open before there is anything to tell.
        const opened = () => say("Live", "on");
        for await (const line of lines({ ...about, last_id: position }, signal, opened)) {
          failures = 0;
          if (line.end) {
            say(line.end.detail, "off");
            if (line.end.code === "unauthorized") return;
          } else if (line.global_id >= 0) {
            position = about.channel ? line.message_id : line.global_id;
            add(line);
          }
        }
      } catch (problem) {
        if (problem.name === "AbortError") return;
        say(`${problem.message}${problem.status === 0 || problem.status === 503 ? " Trying again…" : ""}`, "off");
        if (problem.status >= 400 && problem.status < 500 && problem.status !== 429) return stop(false);
      }
      failures += 1;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS * Math.min(failures, 5)));
    }
  }

  function start() {
    stop(false);
    controller = new AbortController();
    seen = 0;
    waiting = [];
    list.replaceChildren(empty("Nothing yet", "Messages appear here the moment they are published, whoever they are for."));
    button.textContent = "Stop";
    button.classList.remove("primary");
    follow(controller.signal, { channel: channel.value.trim(), site_id: siteId.value.trim() });
  }

  function stop(told = true) {
    controller?.abort();
    controller = null;
    clearTimeout(timer);
    timer = 0;
    button.textContent = "Follow";
    button.classList.add("primary");
    if (told) say("Stopped");
  }

  const restart = () => controller && start();
  channel.addEventListener("change", restart);
  siteId.addEventListener("change", restart);
  const element = h("section", { class: "panel", "aria-label": "Live tail" },
    h("div", { class: "panel-head" }, h("h2", {}, "Tail"), head),
    h("form", { class: "filter", onsubmit: (event) => { event.preventDefault(); controller ? stop() : start(); } },
      field("Channel", channel), field("Site", siteId), button),
    list);
  return { element, start, stop };
}
