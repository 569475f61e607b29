/** The client: what message-bus.js has by the same names, and what it never had. */

import type { Connect, Connection, Diagnostics, Host } from "./connection.js";
import { platform, type Environment } from "./environment.js";
import type { CallbackError } from "./errors/callback.js";
import { Emitter } from "./events.js";
import { iterate, type IterateOptions } from "./iterate.js";
import { Poller } from "./poller.js";
import { defaultSettings } from "./settings.js";
import { Subscription, type Reports } from "./subscription.js";
import type { Transport } from "./transport/transport.js";
import type {
  Callback,
  ConnectionState,
  Events,
  Gap,
  Message,
  Settings,
  TokenProvider,
} from "./types.js";

/** How to subscribe. */
export interface SubscribeOptions {
  /** As the third argument of the original: n after id n; -1 from now on; -1-n the last n. */
  lastId?: number | null | undefined;
  /** Ends the subscription. */
  signal?: AbortSignal | undefined;
  /** Called, before the messages after it, when this subscription may have missed some. */
  onGap?: ((gap: Gap) => void) | undefined;
}

/** Settings, and what a client is made of. */
export interface ClientOptions extends Partial<Settings> {
  /** How to get messages: by polls of its own, unless `sharedConnection` or another is given. */
  connect?: Connect;
  /** For tests. */
  environment?: Environment;
}

const DIRECT: Connect = (host) => new Poller(host);

/**
 * A client of a message bus.
 *
 * Settings are properties, as in the original, and methods may be called without their object.
 */
export class MessageBus implements Settings {
  declare baseUrl: string;
  declare clientId: string;
  declare headers: Record<string, string>;
  declare enableLongPolling: boolean;
  declare enableChunkedEncoding: boolean;
  declare callbackInterval: number;
  declare backgroundCallbackInterval: number;
  declare minPollInterval: number;
  declare maxPollInterval: number;
  declare alwaysLongPoll: boolean;
  declare shouldLongPollCallback: (() => boolean) | undefined;
  declare minHiddenPollInterval: number;
  declare firstChunkTimeout: number;
  declare retryChunkedAfterRequests: number;
  declare staleTimeout: number;
  declare credentials: RequestCredentials;
  declare tokenProvider: TokenProvider | undefined;
  declare transport: Transport | undefined;

  /** Everything that is subscribed, with its position; to look at. */
  readonly callbacks: Subscription[] = [];

  readonly #emitter = new Emitter<Events>();
  readonly #host: Host;
  readonly #reports: Reports;
  readonly #restored = new Map<string, number>();
  #connection: Connection;
  #state: ConnectionState = { status: "stopped", mode: undefined, transport: undefined };
  #isStarted = false;
  #isStopped = false;
  #isPaused = false;
  /** Too much was held back while paused: nothing more is asked for until `resume`. */
  #isFull = false;

  constructor({ connect = DIRECT, environment = platform(), ...settings }: ClientOptions = {}) {
    Object.assign(this, defaultSettings(), withoutUndefined(settings));
    const none: Subscription[] = [];
    const client = this;
    this.#host = {
      settings: this,
      environment,
      get subscribers() {
        return client.#isFull ? none : client.callbacks;
      },
      emit: (name, event) => {
        if (name === "state") this.#state = event as ConnectionState;
        this.#emitter.emit(name, event);
      },
    };
    this.#reports = {
      isPaused: () => this.#isPaused,
      threw: (error) => this.#threw(error),
      missed: (gap) => this.#emitter.emit("gap", gap),
      isFull: () => {
        if (this.#isFull) return;
        this.#isFull = true;
        this.#connection.changed();
      },
    };
    this.#connection = connect(this.#host);
  }

  // -- as in the original --------------------------------------------------------------------

  /** Begin to poll. */
  start = (): void => {
    if (this.#isStarted) return;
    this.#isStarted = true;
    this.#isStopped = false;
    this.#connection.start();
  };

  /** Stop polling. Positions are kept: after `start` nothing is missing. */
  stop = (): void => {
    this.#isStopped = true;
    this.#isStarted = false;
    this.#connection.stop();
  };

  /** Hold back messages until `resume`. */
  pause = (): void => {
    this.#isPaused = true;
  };

  /** Deliver what was held back, and everything from now on. */
  resume = (): void => {
    this.#isPaused = false;
    for (const each of [...this.callbacks]) each.resume();
    if (this.#isFull) {
      this.#isFull = false;
      this.#connection.changed();
    }
  };

  /** As the original says it; `connection` says more. */
  status = (): "paused" | "started" | "stopped" => {
    if (this.#isPaused) return "paused";
    return this.#isStarted ? "started" : "stopped";
  };

  /**
   * Call `callback` for each message of `channel`, and start unless `stop` was called.
   *
   * The third argument says from where on, or has options. Returns `callback`. Throws TypeError
   * if an argument has a wrong type.
   */
  subscribe = <T = unknown>(
    channel: string,
    callback: Callback<T>,
    lastIdOrOptions?: number | null | SubscribeOptions,
  ): Callback<T> => {
    const options =
      typeof lastIdOrOptions === "object" && lastIdOrOptions !== null
        ? lastIdOrOptions
        : { lastId: lastIdOrOptions };
    if (typeof channel !== "string") throw new TypeError("Channel name must be a string!");
    const lastId = options.lastId ?? this.#restored.get(channel) ?? -1;
    if (typeof lastId !== "number") {
      throw new TypeError(`lastId has type ${typeof lastId} but a number was expected.`);
    }
    const { signal, onGap } = options;
    if (signal?.aborted) return callback;
    const subscription = new Subscription(channel, callback, lastId, this.#reports, onGap);
    if (signal) {
      const aborted = (): void => void this.#remove((each) => each === subscription);
      signal.addEventListener("abort", aborted);
      subscription.release = () => signal.removeEventListener("abort", aborted);
    }
    this.callbacks.push(subscription);
    if (!this.#isStarted && !this.#isStopped) this.start();
    else this.#connection.changed();
    return callback;
  };

  /**
   * End the subscriptions of `callback`, or all, on a channel, or with a trailing `*` on all whose
   * names begin so. Returns whether there were any.
   */
  unsubscribe = (channel: string, callback?: Callback<never>): boolean => {
    const prefix = channel.endsWith("*") ? channel.slice(0, -1) : undefined;
    return this.#remove(
      (each) =>
        (prefix === undefined ? each.channel === channel : each.channel.startsWith(prefix)) &&
        (!callback || each.func === callback),
    );
  };

  /** Write how things are to the console, and return it. */
  diagnostics = (): Diagnostics & { status: string; connection: ConnectionState } => {
    const found = {
      status: this.status(),
      connection: this.#state,
      ...this.#connection.diagnostics(),
    };
    const positions = this.callbacks.map((each) => [each.channel, each.last_id]);
    console.log("message bus", found, positions);
    return found;
  };

  /** The open poll, which may be given up: another follows at once. Null if there is none. */
  get longPoll(): {
    /** Give the poll up. */
    abort(): void;
  } | null {
    return this.#connection.isPolling ? { abort: () => this.#connection.abort() } : null;
  }

  // -- beyond the original -------------------------------------------------------------------

  /** How things are; the event `state` tells when that changes. */
  get connection(): ConnectionState {
    return this.#state;
  }

  /** Listen to an event until the returned function is called, or `signal` aborts. */
  on = <Name extends keyof Events>(
    name: Name,
    listener: (event: Events[Name]) => void,
    options?: { signal?: AbortSignal | undefined },
  ): (() => void) => this.#emitter.on(name, listener, options);

  /** The messages of a channel: `for await (const { data } of bus.messages("/foo"))`. */
  messages = <T = unknown>(channel: string, options?: IterateOptions): AsyncGenerator<Message<T>> =>
    iterate<T>(this, channel, options);

  /**
   * How far each channel has been delivered: to be stored, and given to `importPositions` by the
   * next page. Of several callbacks on a channel the one that is behind counts.
   */
  exportPositions = (): Record<string, number> => {
    const positions: Record<string, number> = {};
    for (const { channel, last_id } of this.callbacks) {
      if (last_id >= 0) positions[channel] = Math.min(last_id, positions[channel] ?? last_id);
    }
    return positions;
  };

  /** Where later subscriptions begin that do not say where. Anything but ids is ignored. */
  importPositions = (positions: Readonly<Record<string, number>>): void => {
    for (const [channel, id] of Object.entries(positions)) {
      if (Number.isSafeInteger(id) && id >= 0) this.#restored.set(channel, id);
    }
  };

  /** Get messages in another way from now on; positions are kept. */
  connectBy = (connect: Connect): void => {
    this.#connection.stop();
    this.#connection = connect(this.#host);
    if (this.#isStarted) this.#connection.start();
  };

  #remove(matches: (each: Subscription) => boolean): boolean {
    const removed = this.callbacks.filter(matches);
    for (const each of removed) {
      each.isActive = false;
      each.release?.();
      this.callbacks.splice(this.callbacks.indexOf(each), 1);
    }
    if (removed.length > 0) this.#connection.changed();
    return removed.length > 0;
  }

  #threw(error: CallbackError): void {
    console.error(`message bus: ${error.message}`, error.cause);
    this.#emitter.emit("error", error);
  }
}

function withoutUndefined<T extends object>(values: T): Partial<T> {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as Partial<T>;
}
