// One message, to read.

import { h } from "./dom.js";
import { idText, pretty } from "./json.js";
import { channelLink } from "./views/channels.js";
import { explainLink } from "./views/explain.js";

const AUDIENCE = { user_ids: "users", group_ids: "groups", client_ids: "clients" };
const SHOWN_IDS = 12;

/** A message with whom it is for. `inChannel` leaves out what all of a page have in common,
 *  `canExplain` says that whoever looks may ask who got it. */
export function messageCard(message, { inChannel = false, canExplain = false } = {}) {
  const audience = Object.entries(AUDIENCE).filter(([name]) => message[name] !== null)
    .map(([name, label]) => h("span", { class: "chip" }, `${label} `, ids(message[name])));
  return h("article", { class: "message", "aria-label": `${message.channel}, message ${message.message_id}` },
    h("header", {},
      h("span", { class: "id" }, `#${message.message_id}`),
      !inChannel && h("a", { class: "name", href: channelLink(message.channel, message.site_id) }, message.channel),
      !inChannel && message.site_id !== null && h("span", { class: "chip" }, `site ${message.site_id}`),
      audience.length ? audience : h("span", { class: ["chip", "quiet"] }, "everybody"),
      h("span", { class: "global", title: "Global id" }, `global ${message.global_id}`),
      canExplain && h("a", { class: "why", href: explainLink(message), title: "Who got it, and who did not?" }, "Why?")),
    pretty(message.data));
}

function ids(all) {
  const rest = all.length - SHOWN_IDS;
  return h("b", {}, all.slice(0, SHOWN_IDS).map(idText).join(", "), rest > 0 && ` and ${rest} more`);
}
