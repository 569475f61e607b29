export { MessageBus, type ClientOptions, type SubscribeOptions } from "./client.js";
export type { Connect, Connection, Diagnostics, Host } from "./connection.js";
export type { Change, Environment } from "./environment.js";
export { MessageBusError } from "./errors/base.js";
export { CallbackError } from "./errors/callback.js";
export { HttpError, RateLimitError, type Problem } from "./errors/http.js";
export { NetworkError } from "./errors/network.js";
export { ProtocolError } from "./errors/protocol.js";
export { TokenError } from "./errors/token.js";
export type { IterateOptions } from "./iterate.js";
export type { Subscriber } from "./positions.js";
export type { Subscription } from "./subscription.js";
export { ajaxTransport, type Ajax, type AjaxOptions, type AnswerHead } from "./transport/ajax.js";
export { fetchTransport } from "./transport/fetch.js";
export type { Exchange, Listener, Transport } from "./transport/transport.js";
export { xhrTransport } from "./transport/xhr.js";
export type {
  Callback,
  ConnectionState,
  Events,
  Fallback,
  Gap,
  Message,
  Mode,
  Settings,
  TokenProvider,
} from "./types.js";
