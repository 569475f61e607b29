import { MessageBusError } from "./base.js";

/** Why a webhook is not trusted. */
export type WebhookFault =
  | "missing_header"
  | "invalid_timestamp"
  | "too_old"
  | "too_new"
  | "no_matching_signature";

/** A request is not, or not now, from messagebusd. */
export class InvalidWebhook extends MessageBusError {
  override name = "InvalidWebhook";

  constructor(readonly fault: WebhookFault) {
    super(`the webhook cannot be trusted: ${fault.replaceAll("_", " ")}`);
  }
}
