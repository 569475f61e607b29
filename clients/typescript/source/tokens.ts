/** Bearer tokens for polls: asked for once at a time, and anew when one was refused. */

import { TokenError } from "./errors/token.js";
import type { TokenProvider } from "./types.js";

export class Tokens {
  readonly #provider: () => TokenProvider | undefined;
  #mustRefresh = false;
  /** A refreshed token was refused too: the next refusal is a failure like any other. */
  #hasRefreshed = false;
  #asked: Promise<string | null | undefined> | undefined;

  constructor(provider: () => TokenProvider | undefined) {
    this.#provider = provider;
  }

  /** The header that polls are authorized by. Rejects with TokenError. */
  async headers(): Promise<Record<string, string>> {
    const provider = this.#provider();
    if (!provider) return {};
    const refresh = this.#mustRefresh;
    // Polls that are given up while the provider works share its answer with those that follow.
    this.#asked ??= Promise.resolve()
      .then(() => provider({ refresh }))
      .finally(() => {
        this.#asked = undefined;
      });
    let token: string | null | undefined;
    try {
      token = await this.#asked;
    } catch (cause) {
      throw new TokenError("the token provider failed", { cause });
    }
    if (refresh) this.#mustRefresh = false;
    return token ? { Authorization: `Bearer ${token}` } : {};
  }

  /** Note a 401; whether another poll with a new token makes sense at once. */
  refused(): boolean {
    if (!this.#provider()) return false;
    this.#mustRefresh = true;
    const tryAgain = !this.#hasRefreshed;
    this.#hasRefreshed = true;
    return tryAgain;
  }

  /** The server took the token. */
  accepted(): void {
    this.#hasRefreshed = false;
  }
}
