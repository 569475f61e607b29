/**
 * Everything that this package throws, or reports by the event `error`:
 *
 *     MessageBusError
 *     ├── NetworkError      no answer, or an answer that broke off
 *     ├── HttpError         an answer that says no; has `status` and the server's `problem`
 *     │   └── RateLimitError    429; has `retryAfter`
 *     ├── ProtocolError     an answer that is none of a message bus
 *     ├── TokenError        the token provider failed
 *     └── CallbackError     a callback threw; has the `channel`, and what was thrown as `cause`
 */
export class MessageBusError extends Error {
  override name = "MessageBusError";
}
