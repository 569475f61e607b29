import { MessageBusError } from "./base.js";

/** A callback threw `cause`. The other callbacks were called nevertheless. */
export class CallbackError extends MessageBusError {
  override name = "CallbackError";

  constructor(
    readonly channel: string,
    cause: unknown,
  ) {
    super(`a callback of ${channel} threw`, { cause });
  }
}
