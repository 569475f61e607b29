import { MessageBusError } from "./base.js";

/** No answer came, or it broke off. Messages are not lost: the next poll asks for them. */
export class NetworkError extends MessageBusError {
  override name = "NetworkError";
}
