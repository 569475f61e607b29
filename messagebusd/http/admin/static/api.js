// Asking the daemon. Paths are relative to the page; the session is a cookie that no script can see.

import { parse } from "./json.js";

/** An answer that is no success, or none at all (status 0). */
export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body.detail ?? "the daemon answered in an unexpected way");
    this.status = status;
    this.code = body.code ?? `status_${status}`;
    this.title = body.title ? `${body.title}:` : "";
    this.requestId = body.request_id;
    this.retryAfter = retryAfter;
  }
}

const ended = new EventTarget();
const ACTIVE_MS = 60_000;
let lastAction = Date.now();

for (const kind of ["pointerdown", "keydown", "wheel", "touchmove"]) {
  addEventListener(kind, () => { lastAction = Date.now(); }, { passive: true });
}

/** Calls back when a request was refused because nobody is logged in any more. */
export function onSessionEnd(callback) {
  ended.addEventListener("end", callback);
}

/** Sends a request; its response if that is a success. Throws Problem. */
export async function send(method, path, { query, body, raw, signal } = {}) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null && value !== "") parameters.append(name, value);
  }
  const search = parameters.size ? `?${parameters}` : "";
  // Without this header nothing is answered: other origins cannot send it. Its value keeps the
  // session of somebody alive who sits in front of the page, and of nobody else.
  const headers = { "X-Messagebusd-Admin": Date.now() - lastAction < ACTIVE_MS ? "active" : "idle" };
  const content = raw ?? (body === undefined ? undefined : JSON.stringify(body));
  if (content !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path + search, {
      method, headers, body: content, signal, credentials: "same-origin", cache: "no-store", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { code: "unreachable", detail: "The daemon does not answer." });
  }
  if (response.ok) return response;
  const problem = new Problem(response.status, await response.json().catch(() => ({})),
    Number(response.headers.get("Retry-After")) || undefined);
  if (response.status === 401 && path.startsWith("api/")) ended.dispatchEvent(new Event("end"));
  throw problem;
}

/** What a call of the API tells. */
export async function get(name, query, signal) {
  return (await send("GET", `api/${name}`, { query, signal })).json();
}

/** The same for messages: their numbers keep their digits. */
export async function getMessages(name, query, signal) {
  return parse(await (await send("GET", `api/${name}`, { query, signal })).text());
}

/** The lines of a subscription as they come; `opened` is called when it is open. Throws Problem. */
export async function* lines(query, signal, opened) {
  const response = await send("GET", "api/subscribe", { query, signal });
  opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const line of parts) if (line) yield parse(line);
    }
  } catch (error) {
    if (signal.aborted) return;
    throw new Problem(0, { code: "unreachable", detail: "The stream broke." });
  }
}
