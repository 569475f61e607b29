/** A page that gets its messages from a hub. */

import type { Connection, Diagnostics, Host } from "../connection.js";
import { MessageBusError } from "../errors/base.js";
import { move, receive, type Subscriber } from "../positions.js";
import { randomId } from "../settings.js";
import type { Link, LinkListener } from "./link.js";
import { lifeLock } from "./link.js";
import { hold } from "./locks.js";
import { fromPlain, type PageState, type SharedSubscription, type ToPage } from "./protocol.js";

/** Opens a way to a hub. */
export type OpenLink = (page: string, told: LinkListener) => Link;

export class Member implements Connection {
  readonly #host: Host;
  readonly #ways: OpenLink[];
  readonly #known = new Map<Subscriber, number>();
  readonly #byId = new Map<number, Subscriber>();
  #link: Link | undefined;
  #release: (() => void) | undefined;
  #unwatch: (() => void) | undefined;
  #life = 0;
  #nextId = 0;
  #isMember = false;

  /** `ways` are tried in order, when one fails the next. */
  constructor(host: Host, ways: readonly OpenLink[]) {
    this.#host = host;
    this.#ways = [...ways];
  }

  get isPolling(): boolean {
    return this.#isMember;
  }

  start(): void {
    if (this.#life % 2 === 1) return;
    const life = ++this.#life;
    this.#unwatch = this.#host.environment.watch((change) => {
      if (change === "visible" || change === "hidden") this.#link?.shown(change === "visible");
      if (this.#isMember) this.#link?.post({ type: "page", page: this.#page() });
    });
    const page = randomId();
    this.#host.emit("state", { status: "connecting", mode: undefined, transport: undefined });
    hold(lifeLock(page)).then(
      (release) => {
        if (this.#life !== life) return release();
        this.#release = release;
        this.#open(page);
      },
      (cause: unknown) => this.#cannot(cause),
    );
  }

  stop(): void {
    if (this.#life % 2 === 0) return;
    this.#life += 1;
    this.#unwatch?.();
    if (this.#isMember) this.#link?.post({ type: "leave" });
    this.#close();
    this.#release?.();
    this.#release = undefined;
    this.#host.emit("state", { status: "stopped", mode: undefined, transport: undefined });
  }

  changed(): void {
    if (!this.#isMember) return;
    const current = new Set(this.#host.subscribers);
    const remove = [...this.#known].filter(([each]) => !current.has(each)).map(([, id]) => id);
    for (const id of remove) this.#forget(id);
    const fresh = [...current].filter((each) => !this.#known.has(each));
    const add = fresh.map((each) => this.#describe(each));
    this.#link?.post({ type: "subscriptions", page: this.#page(), add, remove });
  }

  abort(): void {
    if (this.#isMember) this.#link?.post({ type: "abort" });
  }

  diagnostics(): Diagnostics {
    // The polls are the hub's.
    return { polls: 0, failures: 0, failuresInARow: 0, sinceLastPoll: undefined };
  }

  #open(page: string): void {
    const [way, ...others] = this.#ways;
    if (!way) return;
    const next = (cause?: unknown): void => {
      if (others.length === 0) return this.#cannot(cause);
      this.#ways.shift();
      this.#close();
      this.#open(page);
    };
    // A link may find a hub while it is being opened.
    let isWaiting = false;
    const newHub = (): void => {
      if (this.#link) this.#join();
      else isWaiting = true;
    };
    const receive = (message: ToPage): void => this.#receive(message);
    try {
      this.#link = way(page, { receive, newHub, failed: next });
    } catch (cause) {
      return next(cause);
    }
    this.#link.shown(!this.#host.environment.isHidden());
    if (isWaiting) this.#join();
  }

  /** Nothing is left to try: a sandboxed page, for example, has nothing in common with others. */
  #cannot(cause: unknown): void {
    this.#host.emit("error", new MessageBusError("pages cannot share here", { cause }));
  }

  #close(): void {
    this.#isMember = false;
    this.#link?.close();
    this.#link = undefined;
    this.#known.clear();
    this.#byId.clear();
  }

  #join(): void {
    this.#isMember = true;
    this.#known.clear();
    this.#byId.clear();
    const subscriptions = this.#host.subscribers.map((each) => this.#describe(each));
    this.#link?.post({ type: "join", page: this.#page(), subscriptions });
  }

  #describe(subscriber: Subscriber): SharedSubscription {
    const id = this.#nextId++;
    this.#known.set(subscriber, id);
    this.#byId.set(id, subscriber);
    const { channel, position, confirmed } = subscriber;
    return { id, channel, position, confirmed };
  }

  #forget(id: number): void {
    const subscriber = this.#byId.get(id);
    this.#byId.delete(id);
    if (subscriber) this.#known.delete(subscriber);
  }

  #page(): PageState {
    const { settings, environment } = this.#host;
    const { tokenProvider, transport, shouldLongPollCallback, alwaysLongPoll, ...rest } = settings;
    const { baseUrl } = rest;
    const plain = Object.fromEntries(
      Object.entries(rest).filter(([name]) => SHARED.has(name)),
    ) as Omit<PageState["settings"], "hasTokenProvider">;
    return {
      settings: {
        ...plain,
        // A worker's relative URLs are relative to its script.
        baseUrl: new URL(baseUrl, globalThis.location?.href).href,
        hasTokenProvider: tokenProvider !== undefined,
      },
      mayWait: alwaysLongPoll || (shouldLongPollCallback?.() ?? !environment.isHidden()),
      isOnline: environment.isOnline(),
    };
  }

  #receive(message: ToPage): void {
    switch (message.type) {
      case "welcome":
        this.#host.settings.clientId = message.clientId;
        break;
      case "message": {
        const subscriber = this.#byId.get(message.id);
        if (subscriber) receive(subscriber, message.message);
        break;
      }
      case "moved": {
        const subscriber = this.#byId.get(message.id);
        if (subscriber) move(subscriber, message.position);
        break;
      }
      case "state": {
        const link = this.#link;
        if (link) this.#host.emit("state", { ...message.state, sharedBy: link.sharedBy });
        break;
      }
      case "error":
        this.#host.emit("error", fromPlain(message.error));
        break;
      case "fallback":
        this.#host.emit("fallback", message.fallback);
        break;
      case "wants-token":
        void this.#giveToken(message.refresh);
        break;
    }
  }

  async #giveToken(refresh: boolean): Promise<void> {
    try {
      const token = await this.#host.settings.tokenProvider?.({ refresh });
      this.#link?.post({ type: "token", token });
    } catch (error) {
      this.#link?.post({ type: "token", error: error instanceof Error ? error.message : "failed" });
    }
  }
}

/** The settings that a hub has to know. */
const SHARED = new Set([
  "clientId",
  "headers",
  "enableLongPolling",
  "enableChunkedEncoding",
  "callbackInterval",
  "backgroundCallbackInterval",
  "minPollInterval",
  "maxPollInterval",
  "minHiddenPollInterval",
  "firstChunkTimeout",
  "retryChunkedAfterRequests",
  "staleTimeout",
  "credentials",
]);
