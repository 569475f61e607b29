/** When to poll next. Pure; the rules are in `clients/vectors/README.md`. */

export interface Intervals {
  readonly callbackInterval: number;
  readonly backgroundCallbackInterval: number;
  readonly minPollInterval: number;
  readonly maxPollInterval: number;
}

/** What became of a poll. */
export type Outcome =
  | { readonly kind: "changed" }
  | { readonly kind: "answered"; readonly gotData: boolean }
  | { readonly kind: "failed"; readonly failures: number; readonly retryAfter?: number | undefined }
  | { readonly kind: "rate_limited"; readonly retryAfter?: number | undefined };

const FIRST_BACKOFF = 1000;
const DEFAULT_RETRY_AFTER_SECONDS = 15;
const MAX_RETRY_AFTER_SECONDS = 3600;

/**
 * Return how many milliseconds to wait.
 *
 * `elapsed` is the time since that poll was sent, `random` a number in [0, 1).
 */
export function nextDelay(
  outcome: Outcome,
  intervals: Intervals,
  longPolling: boolean,
  elapsed: number,
  random: number,
): number {
  const { callbackInterval, backgroundCallbackInterval, minPollInterval } = intervals;
  if (outcome.kind === "changed") return Math.max(0, minPollInterval - elapsed);
  // A hidden page is never faster than this, whatever comes (the original since 4.3.1).
  const least = longPolling ? 0 : backgroundCallbackInterval - elapsed;
  switch (outcome.kind) {
    case "answered":
      if (longPolling && !outcome.gotData) {
        return Math.max(minPollInterval, callbackInterval - elapsed);
      }
      return Math.max(minPollInterval, least);
    case "failed": {
      const { failures, retryAfter = 0 } = outcome;
      const ceiling = backoffCeiling(failures, intervals);
      const delay = minPollInterval + random * (ceiling - minPollInterval);
      return Math.max(delay, bounded(retryAfter) * 1000, least);
    }
    case "rate_limited": {
      const seconds = Math.max(1, bounded(outcome.retryAfter ?? DEFAULT_RETRY_AFTER_SECONDS));
      return Math.max(minPollInterval, seconds * 1000 * (1 + random / 4), least);
    }
  }
}

function backoffCeiling(failures: number, intervals: Intervals): number {
  const { callbackInterval, minPollInterval, maxPollInterval } = intervals;
  const exponential = FIRST_BACKOFF * 2 ** Math.min(failures - 1, 30);
  // The second is what the original waits.
  const ceiling = Math.min(exponential, callbackInterval * failures, maxPollInterval);
  return Math.max(ceiling, minPollInterval);
}

function bounded(seconds: number): number {
  return Math.min(seconds, MAX_RETRY_AFTER_SECONDS);
}
