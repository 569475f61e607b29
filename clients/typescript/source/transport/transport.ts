/** What carries a poll to the server and its answer back. */

/** A poll to be carried. */
export interface Exchange {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Channels with their positions, and `__seq`; sent as a form. */
  readonly fields: Readonly<Record<string, number>>;
  /** Whether the answer shall be told piece by piece. */
  readonly streaming: boolean;
  readonly credentials: RequestCredentials;
  readonly signal: AbortSignal;
}

/** Is told the answer. */
export interface Listener {
  /** Once, before any text. `header` gives null for what is missing or hidden. */
  head(status: number, header: (name: string) => string | null): void;
  /** The next piece of the body, decoded. */
  text(piece: string): void;
}

/** Carries polls. */
export interface Transport {
  /** Shown in the connection's state. */
  readonly name: string;
  /** Whether it can tell an answer before its end. */
  readonly streams: boolean;
  /**
   * Send a poll. Resolves when the answer has ended as it should, whatever its status.
   *
   * Rejects when there is none or when it breaks off; after an abort in whatever way.
   */
  send(exchange: Exchange, listener: Listener): Promise<void>;
}

/** The form that a poll's body is: nothing that browsers ask permission for across origins. */
export const FORM_TYPE = "application/x-www-form-urlencoded; charset=UTF-8";

export function form(fields: Exchange["fields"]): string {
  return new URLSearchParams(Object.entries(fields).map(([k, v]) => [k, String(v)])).toString();
}
