import { MessageBusError } from "./base.js";

/** The token provider rejected; the reason is the `cause`. */
export class TokenError extends MessageBusError {
  override name = "TokenError";
}
