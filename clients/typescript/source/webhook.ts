/**
 * Checking that a webhook comes from messagebusd, as standardwebhooks.com says:
 * `messagebusd-client/webhook`. For hosts that answer `lookup.webhook.url`.
 */

import { InvalidWebhook, type WebhookFault } from "./errors/webhook.js";

export { InvalidWebhook, type WebhookFault };

const PREFIX = "whsec_";
const VERSION = "v1,";
const TIMESTAMP = /^[0-9]{1,12}$/;

/** Headers of any framework: of `fetch`, of Node, or a plain object. */
export type WebhookHeaders =
  | {
      /** As the `Headers` of fetch have it. */
      get(name: string): string | null;
    }
  | Readonly<Record<string, string | readonly string[] | undefined>>;

/** What is known of a webhook that is genuine. */
export interface VerifiedWebhook {
  /** Who repeats a webhook gives it the same id. */
  readonly id: string;
  /** Seconds since 1970. */
  readonly timestamp: number;
}

/** Settings of a WebhookVerifier. */
export interface WebhookOptions {
  /** Seconds by which the timestamp may be off, either way: so long a record can be repeated. */
  tolerance?: number;
  /** Milliseconds since 1970. */
  now?: () => number;
}

/** Checks webhooks by the secrets that the daemon may sign them with. */
export class WebhookVerifier {
  readonly #keys: Promise<CryptoKey>[];
  readonly #tolerance: number;
  readonly #now: () => number;

  /**
   * Each secret is `whsec_` and base64, or text, as in the daemon's `lookup.webhook.secret`. To
   * replace one, name both until the daemon signs with the new one. Throws TypeError.
   */
  constructor(secrets: string | readonly string[], options: WebhookOptions = {}) {
    const all = typeof secrets === "string" ? [secrets] : secrets;
    if (all.length === 0) throw new TypeError("name at least one secret");
    const algorithm = { name: "HMAC", hash: "SHA-256" };
    this.#keys = all.map(keyBytes).map((bytes) =>
      crypto.subtle.importKey("raw", bytes, algorithm, false, ["sign"]),
    );
    this.#tolerance = options.tolerance ?? 300;
    this.#now = options.now ?? Date.now;
  }

  /**
   * Check a request by the bytes of its body, as they came: verify first, decode then.
   *
   * Rejects with InvalidWebhook.
   */
  async verify(body: Uint8Array | string, headers: WebhookHeaders): Promise<VerifiedWebhook> {
    const id = header(headers, "webhook-id");
    const timestamp = header(headers, "webhook-timestamp");
    const signatures = header(headers, "webhook-signature");
    if (!TIMESTAMP.test(timestamp)) throw new InvalidWebhook("invalid_timestamp");
    const age = this.#now() / 1000 - Number(timestamp);
    if (age > this.#tolerance) throw new InvalidWebhook("too_old");
    if (age < -this.#tolerance) throw new InvalidWebhook("too_new");
    const head = new TextEncoder().encode(`${id}.${timestamp}.`);
    const content = typeof body === "string" ? new TextEncoder().encode(body) : body;
    const signed = new Uint8Array(head.length + content.length);
    signed.set(head);
    signed.set(content, head.length);
    const expected = await Promise.all(
      this.#keys.map(async (key) => base64(await crypto.subtle.sign("HMAC", await key, signed))),
    );
    let matches = false;
    for (const given of signatures.split(" ")) {
      for (const each of expected) matches = isSame(given, VERSION + each) || matches;
    }
    if (!matches) throw new InvalidWebhook("no_matching_signature");
    return { id, timestamp: Number(timestamp) };
  }
}

function keyBytes(secret: string): Uint8Array<ArrayBuffer> {
  if (!secret) throw new TypeError("the secret is empty");
  if (!secret.startsWith(PREFIX)) return new TextEncoder().encode(secret);
  let bytes: string;
  try {
    bytes = atob(secret.slice(PREFIX.length));
  } catch {
    throw new TypeError("what follows whsec_ must be base64");
  }
  if (!bytes) throw new TypeError("the secret is empty");
  return Uint8Array.from(bytes, (character) => character.charCodeAt(0));
}

function header(headers: WebhookHeaders, name: string): string {
  let value: unknown;
  if (typeof headers.get === "function") {
    value = headers.get(name);
  } else {
    value = Object.entries(headers).find(([each]) => each.toLowerCase() === name)?.[1];
  }
  if (typeof value !== "string" || !value) throw new InvalidWebhook("missing_header");
  return value;
}

function base64(bytes: ArrayBuffer): string {
  return btoa(String.fromCharCode(...new Uint8Array(bytes)));
}

/** Compare in a time that does not tell where they differ. */
function isSame(given: string, expected: string): boolean {
  if (given.length !== expected.length) return false;
  let difference = 0;
  for (let at = 0; at < given.length; at += 1) {
    difference |= given.charCodeAt(at) ^ expected.charCodeAt(at);
  }
  return difference === 0;
}
