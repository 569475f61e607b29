import { MessageBusError } from "./base.js";

/** A problem document (RFC 9457), as messagebusd sends it. */
export interface Problem {
  readonly type?: string;
  readonly title?: string;
  readonly status?: number;
  readonly detail?: string;
  /** A stable word for programs, such as `invalid_channel`. */
  readonly code?: string;
  /** What the server's log knows the request by. */
  readonly request_id?: string;
}

/** An answer with a status other than 2xx. */
export class HttpError extends MessageBusError {
  override name = "HttpError";

  constructor(
    readonly status: number,
    readonly problem: Problem | undefined = undefined,
    /** Seconds, if the answer says when to come back. */
    readonly retryAfter: number | undefined = undefined,
  ) {
    super(`status ${status}${problem?.detail ? `: ${problem.detail}` : ""}`);
  }

  /** The problem's stable word, such as `invalid_channel`. */
  get code(): string | undefined {
    return this.problem?.code;
  }
}

/** 429: come back later. Not a failure; the client waits as long as it was told. */
export class RateLimitError extends HttpError {
  override name = "RateLimitError";
}

/** Build the error for an answer from its body, if that is a problem document. */
export function httpError(
  status: number,
  header: (name: string) => string | null,
  body: string,
  now: number,
): HttpError {
  let problem: Problem | undefined;
  if ((header("content-type") ?? "").includes("json")) {
    try {
      const parsed: unknown = JSON.parse(body);
      if (typeof parsed === "object" && parsed !== null) problem = parsed;
    } catch {
      // Some proxy's own page under a wrong name; the status says enough.
    }
  }
  const retryAfter = parseRetryAfter(header("retry-after"), now);
  return new (status === 429 ? RateLimitError : HttpError)(status, problem, retryAfter);
}

/** Seconds from a Retry-After header, which has seconds or a date (RFC 9110, 10.2.3). */
export function parseRetryAfter(value: string | null, now: number): number | undefined {
  if (!value) return undefined;
  if (/^\s*\d+\s*$/.test(value)) return Number(value);
  const date = Date.parse(value);
  return Number.isNaN(date) ? undefined : Math.max(0, (date - now) / 1000);
}
