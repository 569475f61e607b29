/** What the client needs of the world around it, and the browsers' ways to give it. */

/** What happened to the page, or to its network. */
export type Change = "visible" | "hidden" | "online" | "offline";

/** The world. Tests pass their own, with a clock that they turn. */
export interface Environment {
  /** Milliseconds that only ever ascend. */
  now(): number;
  /** In [0, 1). */
  random(): number;
  /** Call `run` later, once. */
  setTimer(run: () => void, milliseconds: number): unknown;
  /** Forget a timer; harmless for one that is over, and for none. */
  clearTimer(timer: unknown): void;
  /** Whether nobody sees the page. */
  isHidden(): boolean;
  /** Whether there may be a network. */
  isOnline(): boolean;
  /** Tell changes of the page's visibility and network until the returned function is called. */
  watch(listener: (change: Change) => void): () => void;
  /** Note that a poll is sent, for `sinceAnyPoll` in all pages of this origin. */
  notePoll(): void;
  /** Milliseconds since some page of this origin sent a poll; Infinity if unknown. */
  sinceAnyPoll(): number;
}

/** Timers take no more than 31 bits; longer ones would fire at once. */
const MAX_TIMER = 2 ** 31 - 1;
/** The original's key: both clients may run side by side. */
const LAST_POLL = "__mbLastAjax";

/** The browser's page, a worker, or Node. */
export function platform(): Environment {
  const page = typeof document === "undefined" ? undefined : document;
  const isOnline = (): boolean => globalThis.navigator?.onLine !== false;
  return {
    now: () => performance.now(),
    random: () => Math.random(),
    setTimer: (run, milliseconds) => setTimeout(run, Math.min(milliseconds, MAX_TIMER)),
    clearTimer: (timer) => clearTimeout(timer as number),
    isHidden: () => page?.hidden === true,
    isOnline,
    watch: (listener) => {
      const visibility = (): void => listener(page?.hidden ? "hidden" : "visible");
      const network = (): void => listener(isOnline() ? "online" : "offline");
      const shown = (event: Event): void => {
        // Back from the back/forward cache: what was open then is dead.
        if ((event as PageTransitionEvent).persisted) listener("online");
      };
      const controller = new AbortController();
      const { signal } = controller;
      page?.addEventListener("visibilitychange", visibility, { signal });
      if (typeof addEventListener === "function") {
        addEventListener("online", network, { signal });
        addEventListener("offline", network, { signal });
        addEventListener("pageshow", shown, { signal });
      }
      return () => controller.abort();
    },
    notePoll: () => {
      try {
        if (page) localStorage.setItem(LAST_POLL, String(Date.now()));
      } catch {
        // Storage is forbidden or full: hidden pages do without knowing of each other.
      }
    },
    sinceAnyPoll: () => {
      try {
        const noted = page ? Number(localStorage.getItem(LAST_POLL) ?? Number.NaN) : Number.NaN;
        const since = Date.now() - noted;
        return since >= 0 ? since : Number.POSITIVE_INFINITY;
      } catch {
        return Number.POSITIVE_INFINITY;
      }
    },
  };
}
