import type { Settings } from "./types.js";

/** The original's defaults, and ours for what it does not have. */
export function defaultSettings(): Settings {
  return {
    baseUrl: "/",
    clientId: randomId(),
    headers: {},
    enableLongPolling: true,
    enableChunkedEncoding: true,
    callbackInterval: 15_000,
    backgroundCallbackInterval: 60_000,
    minPollInterval: 100,
    maxPollInterval: 180_000,
    alwaysLongPoll: false,
    shouldLongPollCallback: undefined,
    minHiddenPollInterval: 1500,
    firstChunkTimeout: 3000,
    retryChunkedAfterRequests: 30,
    staleTimeout: 90_000,
    credentials: "same-origin",
    tokenProvider: undefined,
    transport: undefined,
  };
}

/** 32 hexadecimal digits that nobody can guess: client ids may be addressed by publishers. */
export function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
