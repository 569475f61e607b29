/**
 * Without a worker, the pages elect one that polls for all: it holds a lock, and when it ends the
 * next in the queue has it. Browsers slow hidden pages down, so a page that is shown takes the lock
 * from one that is hidden.
 */

import { SharingHub } from "./hub.js";
import { lifeLock, type Link, type LinkListener } from "./link.js";
import { whenReleased } from "./locks.js";
import type { ToHub, ToPage } from "./protocol.js";

type Envelope =
  | { readonly to: "hub"; readonly page: string; readonly message: ToHub }
  | { readonly to: "page"; readonly page: string; readonly hub: string; readonly message: ToPage }
  /** Who leads now, and whether that page is hidden. */
  | { readonly to: "all"; readonly hub: string; readonly isHidden: boolean }
  /** This one leads no more. Who hears of a new leader first, and of the old one's beginning
   * afterwards, asks again. */
  | { readonly to: "all"; readonly over: string }
  /** Who leads? */
  | { readonly to: "leader" };

export function electedLink(name: string, page: string, told: LinkListener): Link {
  const channelName = `messagebusd:${name}`;
  const channel = new BroadcastChannel(channelName);
  const post = (envelope: Envelope): void => channel.postMessage(envelope);
  let hub: string | undefined;
  let leaderIsHidden = false;
  let leadership: Leadership | undefined;
  let queued: AbortController | undefined;
  let isShown = true;
  let isClosed = false;

  channel.onmessage = ({ data }: MessageEvent<Envelope>) => {
    if (data.to === "page" && data.page === page && data.hub === hub) {
      told.receive(data.message);
    } else if (data.to === "all" && "over" in data) {
      if (data.over !== hub) return;
      hub = undefined;
      post({ to: "leader" });
    } else if (data.to === "all") {
      leaderIsHidden = data.isHidden;
      if (data.hub !== hub) {
        hub = data.hub;
        told.newHub();
      }
      if (leaderIsHidden && isShown && !leadership) lead(true);
    }
  };

  const lead = (steal: boolean): void => {
    queued?.abort();
    const request = (queued = new AbortController());
    let led: Leadership | undefined;
    navigator.locks
      .request(channelName, steal ? { steal } : { signal: request.signal }, () => {
        if (isClosed || request.signal.aborted) return undefined;
        leadership = led = new Leadership(channelName, () => !isShown);
        return led.ended;
      })
      .catch(() => {
        led?.end();
        if (leadership === led) leadership = undefined;
        // Stolen, perhaps before it was of use: another page polls now, and this one waits its
        // turn again; unless another request has taken this one's place.
        if (!isClosed && queued === request) lead(false);
      });
  };
  lead(false);
  post({ to: "leader" });

  return {
    sharedBy: "page",
    post: (message) => post({ to: "hub", page, message }),
    shown: (shown) => {
      isShown = shown;
      if (leadership) leadership.announce();
      else if (shown && leaderIsHidden) lead(true);
    },
    close: () => {
      isClosed = true;
      queued?.abort();
      leadership?.end();
      channel.close();
    },
  };
}

/** The time for which a page leads. */
class Leadership {
  readonly #id = crypto.randomUUID();
  readonly #hub = new SharingHub();
  readonly #channel: BroadcastChannel;
  readonly #isHidden: () => boolean;
  #end = (): void => undefined;
  readonly ended = new Promise<void>((resolve) => {
    this.#end = resolve;
  });

  constructor(channelName: string, isHidden: () => boolean) {
    this.#isHidden = isHidden;
    // One of its own: a channel does not hear itself, and this page is a member like any other.
    this.#channel = new BroadcastChannel(channelName);
    this.#channel.onmessage = ({ data }: MessageEvent<Envelope>) => {
      if (data.to === "leader") this.announce();
      if (data.to !== "hub") return;
      const { page } = data;
      const post = (message: ToPage): void =>
        this.#channel.postMessage({ to: "page", page, hub: this.#id, message } satisfies Envelope);
      const isNew = this.#hub.receive(page, data.message, post);
      if (isNew) whenReleased(lifeLock(page), () => this.#hub.leave(page));
    };
    this.announce();
  }

  announce(): void {
    const isHidden = this.#isHidden();
    this.#channel.postMessage({ to: "all", hub: this.#id, isHidden } satisfies Envelope);
  }

  end(): void {
    this.#channel.postMessage({ to: "all", over: this.#id } satisfies Envelope);
    this.#hub.close();
    this.#channel.close();
    this.#end();
  }
}
