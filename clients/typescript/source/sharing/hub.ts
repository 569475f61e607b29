/** Polls for all pages that have joined: one connection, however many there are. */

import type { Host } from "../connection.js";
import { platform, type Change, type Environment } from "../environment.js";
import { Poller } from "../poller.js";
import type { Subscriber } from "../positions.js";
import { defaultSettings } from "../settings.js";
import type { Settings, TokenProvider } from "../types.js";
import { plainError, type PageState, type SharedSubscription, type ToHub, type ToPage } from "./protocol.js";

/** A page that was asked for a token and says nothing is passed over. */
const TOKEN_TIMEOUT = 10_000;

interface Page {
  readonly post: (message: ToPage) => void;
  state: PageState;
  readonly subscribers: Map<number, Subscriber>;
  answerToken?: ((token: string | null | undefined) => void) | undefined;
  refuseToken?: ((reason: Error) => void) | undefined;
}

export class SharingHub {
  readonly #pages = new Map<string, Page>();
  readonly #settings: Settings = defaultSettings();
  readonly #listeners = new Set<(change: Change) => void>();
  readonly #environment: Environment;
  readonly #poller: Poller;
  #subscribers: Subscriber[] = [];
  #latest: ToPage | undefined;
  #mayWait = false;
  #isOnline = true;

  constructor(environment: Environment = platform()) {
    this.#environment = {
      ...environment,
      isHidden: () => !this.#mayWait,
      isOnline: () => this.#isOnline,
      watch: (listener) => {
        this.#listeners.add(listener);
        return () => this.#listeners.delete(listener);
      },
      // There is nobody to take turns with.
      sinceAnyPoll: () => Number.POSITIVE_INFINITY,
    };
    const hub = this;
    const host: Host = {
      settings: this.#settings,
      environment: this.#environment,
      get subscribers() {
        return hub.#subscribers;
      },
      emit: (name, event) => {
        if (name === "state") {
          this.#latest = { type: "state", state: event as never };
          this.#tellAll(this.#latest);
        } else if (name === "error") {
          this.#tellAll({ type: "error", error: plainError(event as never) });
        } else if (name === "fallback") {
          this.#tellAll({ type: "fallback", fallback: event as never });
        }
      },
    };
    this.#poller = new Poller(host);
  }

  /** Take what a page says; `post` answers it. Returns whether it has just become a member. */
  receive(name: string, message: ToHub, post: (message: ToPage) => void): boolean {
    const page = this.#pages.get(name);
    if (message.type === "join") {
      if (this.#pages.size === 0) this.#settings.clientId = message.page.settings.clientId;
      const joined: Page = { post, state: message.page, subscribers: new Map() };
      this.#pages.set(name, joined);
      this.#add(joined, message.subscriptions);
      post({ type: "welcome", clientId: this.#settings.clientId });
      if (this.#latest) post(this.#latest);
      this.#pageChanged(joined);
      this.#subscribersChanged();
      this.#poller.start();
      return page === undefined;
    }
    if (!page) return false;
    switch (message.type) {
      case "subscriptions":
        for (const id of message.remove) page.subscribers.delete(id);
        this.#add(page, message.add);
        page.state = message.page;
        this.#pageChanged(page);
        this.#subscribersChanged();
        break;
      case "page":
        page.state = message.page;
        this.#pageChanged(page);
        break;
      case "abort":
        this.#poller.abort();
        break;
      case "token":
        if (message.error === undefined) page.answerToken?.(message.token);
        else page.refuseToken?.(new Error(message.error));
        break;
      case "leave":
        this.leave(name);
        break;
    }
    return false;
  }

  /** A page has gone. */
  leave(name: string): void {
    const page = this.#pages.get(name);
    if (!page) return;
    this.#pages.delete(name);
    page.refuseToken?.(new Error("the page has gone"));
    if (this.#pages.size === 0) this.#poller.stop();
    this.#notice();
    this.#subscribersChanged();
  }

  /** Stop for good. */
  close(): void {
    this.#pages.clear();
    this.#poller.stop();
  }

  #add(page: Page, subscriptions: readonly SharedSubscription[]): void {
    for (const { id, channel, position, confirmed } of subscriptions) {
      const subscriber: Subscriber = {
        channel,
        position,
        confirmed,
        receive: (message) => page.post({ type: "message", id, message }),
        moved: () => page.post({ type: "moved", id, position: subscriber.position }),
        missed: () => undefined, // the page sees it itself
      };
      page.subscribers.set(id, subscriber);
    }
  }

  #subscribersChanged(): void {
    this.#subscribers = [...this.#pages.values()].flatMap((page) => [...page.subscribers.values()]);
    this.#poller.changed();
  }

  /** The page that spoke last decides on the settings, but not on what only the hub knows. */
  #pageChanged(page: Page): void {
    const { hasTokenProvider, clientId: _, ...settings } = page.state.settings;
    Object.assign(this.#settings, settings);
    const hasAny = hasTokenProvider || [...this.#pages.values()].some(providesTokens);
    this.#settings.tokenProvider = hasAny ? this.#provideToken : undefined;
    this.#notice();
  }

  #notice(): void {
    const states = [...this.#pages.values()].map((page) => page.state);
    const mayWait = states.some((state) => state.mayWait);
    const isOnline = states.length === 0 || states.some((state) => state.isOnline);
    const changes: Change[] = [];
    if (mayWait !== this.#mayWait) changes.push(mayWait ? "visible" : "hidden");
    if (isOnline !== this.#isOnline) changes.push(isOnline ? "online" : "offline");
    this.#mayWait = mayWait;
    this.#isOnline = isOnline;
    for (const change of changes) for (const listener of this.#listeners) listener(change);
  }

  #tellAll(message: ToPage): void {
    for (const page of this.#pages.values()) page.post(message);
  }

  /** Ask the pages, visible ones first, until one has a token. Rejects if none has. */
  readonly #provideToken: TokenProvider = async ({ refresh }) => {
    let problem: unknown = new Error("no page provides tokens");
    const pages = [...this.#pages.values()].filter(providesTokens);
    for (const page of pages.sort((a, b) => Number(b.state.mayWait) - Number(a.state.mayWait))) {
      try {
        return await this.#askForToken(page, refresh);
      } catch (error) {
        problem = error;
      }
    }
    throw problem;
  };

  #askForToken(page: Page, refresh: boolean): Promise<string | null | undefined> {
    return new Promise((resolve, reject) => {
      const late = (): void => reject(new Error("the page does not answer"));
      const timer = this.#environment.setTimer(late, TOKEN_TIMEOUT);
      page.answerToken = (token) => {
        this.#environment.clearTimer(timer);
        resolve(token);
      };
      page.refuseToken = (reason) => {
        this.#environment.clearTimer(timer);
        reject(reason);
      };
      page.post({ type: "wants-token", refresh });
    });
  }
}

function providesTokens(page: Page): boolean {
  return page.state.settings.hasTokenProvider;
}
