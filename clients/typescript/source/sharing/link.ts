import type { ToHub, ToPage } from "./protocol.js";

/** A page's way to a hub. */
export interface Link {
  readonly sharedBy: "worker" | "page";
  post(message: ToHub): void;
  /** The page is shown, or hidden. */
  shown(isShown: boolean): void;
  close(): void;
}

/** What a link tells its page. */
export interface LinkListener {
  receive(message: ToPage): void;
  /** There is a hub that knows nothing of the page yet. */
  newHub(): void;
  /** There is none, and will not be. */
  failed(): void;
}

/** The lock that shows that a page exists. */
export function lifeLock(page: string): string {
  return `messagebusd:page:${page}`;
}
