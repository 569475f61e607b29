/** Bearer tokens for polls: kept, asked for once at a time, and anew when one was refused. */

import { TokenError } from "./errors/token.js";
import type { TokenProvider } from "./types.js";

type Token = string | null | undefined;

export class Tokens {
  readonly #provider: () => TokenProvider | undefined;
  /** The provider that gave, or is giving, the token; another one starts afresh. */
  #giver: TokenProvider | undefined;
  #token: Promise<Token> | undefined;
  #mustRefresh = false;
  /** A refreshed token was refused too: the next refusal is a failure like any other. */
  #hasRefreshed = false;

  constructor(provider: () => TokenProvider | undefined) {
    this.#provider = provider;
  }

  /** The header that polls are authorized by. Rejects with TokenError. */
  async headers(): Promise<Record<string, string>> {
    const provider = this.#provider();
    if (provider !== this.#giver) {
      this.#giver = provider;
      this.#token = undefined;
      this.#mustRefresh = this.#hasRefreshed = false;
    }
    if (!provider) return {};
    // Polls that are given up while the provider works share its answer with those that follow.
    this.#token ??= this.#ask(provider, this.#mustRefresh);
    const token = await this.#token;
    return token ? { Authorization: `Bearer ${token}` } : {};
  }

  /** Note a 401; whether another poll with a new token makes sense at once. */
  refused(): boolean {
    if (!this.#giver) return false;
    this.#token = undefined;
    this.#mustRefresh = true;
    const tryAgain = !this.#hasRefreshed;
    this.#hasRefreshed = true;
    return tryAgain;
  }

  /** The server took the token. */
  accepted(): void {
    this.#hasRefreshed = false;
  }

  async #ask(provider: TokenProvider, refresh: boolean): Promise<Token> {
    try {
      const token = await provider({ refresh });
      if (provider === this.#giver) this.#mustRefresh = false;
      return token;
    } catch (cause) {
      if (provider === this.#giver) this.#token = undefined;
      throw new TokenError("the token provider failed", { cause });
    }
  }
}
