import { MessageBusError } from "./base.js";

/** The answer is none of a message bus: the login page of a hotel's network, say. */
export class ProtocolError extends MessageBusError {
  override name = "ProtocolError";
}
