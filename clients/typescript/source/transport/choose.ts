import { canStream, fetchTransport } from "./fetch.js";
import type { Transport } from "./transport.js";
import { xhrTransport } from "./xhr.js";

/** The best transport of this platform. */
export function chooseTransport(): Transport {
  const hasFetch = typeof fetch === "function";
  if (hasFetch && canStream()) return fetchTransport();
  if (typeof XMLHttpRequest === "function") return xhrTransport();
  return fetchTransport();
}
