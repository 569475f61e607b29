/** What pages and the hub that polls for them say to each other. Everything can be cloned. */

import { MessageBusError } from "../errors/base.js";
import { HttpError, RateLimitError, type Problem } from "../errors/http.js";
import { NetworkError } from "../errors/network.js";
import { ProtocolError } from "../errors/protocol.js";
import { TokenError } from "../errors/token.js";
import type { ConnectionState, Fallback, Message, Settings } from "../types.js";

/** What a hub is told of a page's settings: functions cannot be told. */
export type SharedSettings = Omit<
  Settings,
  "tokenProvider" | "transport" | "shouldLongPollCallback" | "alwaysLongPoll"
> & { readonly hasTokenProvider: boolean };

export interface SharedSubscription {
  readonly id: number;
  readonly channel: string;
  readonly position: number;
  readonly confirmed: boolean;
}

/** How a page is. */
export interface PageState {
  readonly settings: SharedSettings;
  /** Whether the server may let it wait: somebody looks, or it wants so. */
  readonly mayWait: boolean;
  readonly isOnline: boolean;
}

export type ToHub =
  | {
      readonly type: "join";
      readonly page: PageState;
      readonly subscriptions: readonly SharedSubscription[];
    }
  | {
      readonly type: "subscriptions";
      readonly page: PageState;
      readonly add: readonly SharedSubscription[];
      readonly remove: readonly number[];
    }
  | { readonly type: "page"; readonly page: PageState }
  | { readonly type: "abort" }
  | { readonly type: "token"; readonly token?: string | null | undefined; readonly error?: string }
  | { readonly type: "leave" };

export type ToPage =
  /** The page is a member: the answer to `join`. */
  | { readonly type: "welcome"; readonly clientId: string }
  | { readonly type: "message"; readonly id: number; readonly message: Message }
  | { readonly type: "moved"; readonly id: number; readonly position: number }
  | { readonly type: "state"; readonly state: ConnectionState }
  | { readonly type: "error"; readonly error: PlainError }
  | { readonly type: "fallback"; readonly fallback: Fallback }
  | { readonly type: "wants-token"; readonly refresh: boolean };

export interface PlainError {
  readonly name: string;
  readonly message: string;
  readonly status?: number;
  readonly problem?: Problem | undefined;
  readonly retryAfter?: number | undefined;
}

export function plainError(error: MessageBusError): PlainError {
  const { name, message } = error;
  if (!(error instanceof HttpError)) return { name, message };
  return { name, message, status: error.status, problem: error.problem, retryAfter: error.retryAfter };
}

const KINDS = [NetworkError, ProtocolError, TokenError];

export function fromPlain(plain: PlainError): MessageBusError {
  const { status, problem, retryAfter } = plain;
  if (status !== undefined) {
    return new (status === 429 ? RateLimitError : HttpError)(status, problem, retryAfter);
  }
  const Kind = KINDS.find((each) => each.name === plain.name) ?? MessageBusError;
  return new Kind(plain.message);
}
