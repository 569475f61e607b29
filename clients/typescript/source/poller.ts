/**
 * One poll at a time: when to send it, how, and what its end means for the next one.
 *
 * What waits is a timer with a reason. News that arrive meanwhile (a subscription, the page is
 * shown, the network is back) may bring it forward, but not past what the server asked for.
 */

import { Answer } from "./answer.js";
import type { Connection, Diagnostics, Host } from "./connection.js";
import type { Change } from "./environment.js";
import { MessageBusError } from "./errors/base.js";
import { HttpError, RateLimitError } from "./errors/http.js";
import { NetworkError } from "./errors/network.js";
import { nextDelay, type Outcome } from "./schedule.js";
import { Tokens } from "./tokens.js";
import { chooseTransport } from "./transport/choose.js";
import type { Transport } from "./transport/transport.js";
import type { ConnectionState, Fallback, Mode } from "./types.js";

/** So many streams in a row that break off, and another way is tried. */
const CUTS_UNTIL_FALLBACK = 3;
/** Ascends over all pollers of a page, and over pages that use one client id after the other: the
 * server lets the poll with the higher number stay. */
let latestSeq = 0;

/** When the network is back, not all clients come in the same moment. */
const BACK_ONLINE_SPREAD = 1000;

/** Why a poll was given up before its end. */
type GivenUp = "changed" | "replaced" | "stopped" | "offline" | "stale" | "buffered";
/** Why the next poll waits. */
type Waiting = "news" | "interval" | "failure" | "server";

interface Poll {
  readonly controller: AbortController;
  readonly started: number;
  answer?: Answer;
  streaming: boolean;
  accepted: boolean;
  givenUp?: GivenUp;
  firstChunkTimer?: unknown;
  staleTimer?: unknown;
}

export class Poller implements Connection {
  readonly #host: Host;
  readonly #tokens: Tokens;
  #chosen: Transport | undefined;
  #isRunning = false;
  #unwatch: (() => void) | undefined;
  #poll: Poll | undefined;
  #timer: unknown;
  #waiting: Waiting | undefined;
  #lastStart: number | undefined;
  #polls = 0;
  #failures = 0;
  #failuresInARow = 0;
  #cuts = 0;
  #withoutStreaming = 0;
  #mode: Mode | undefined;
  #status: ConnectionState["status"] = "stopped";
  #told = "";

  constructor(host: Host) {
    this.#host = host;
    this.#tokens = new Tokens(() => host.settings.tokenProvider);
  }

  get isPolling(): boolean {
    return this.#poll !== undefined;
  }

  start(): void {
    if (this.#isRunning) return;
    this.#isRunning = true;
    this.#unwatch = this.#host.environment.watch((change) => this.#noticed(change));
    this.changed();
  }

  stop(): void {
    if (!this.#isRunning) return;
    this.#isRunning = false;
    this.#unwatch?.();
    this.#clearTimer();
    this.#giveUp("stopped");
    this.#tell({ status: "stopped" });
  }

  changed(): void {
    if (!this.#isRunning) return;
    if (this.#host.subscribers.length === 0) {
      this.#clearTimer();
      this.#giveUp("changed");
      this.#tell({ status: "idle" });
    } else if (this.#waiting !== "failure" && this.#waiting !== "server") {
      this.#wait("news", this.#delay({ kind: "changed" }));
    }
  }

  abort(): void {
    this.#giveUp("changed");
  }

  diagnostics(): Diagnostics {
    return {
      polls: this.#polls,
      failures: this.#failures,
      failuresInARow: this.#failuresInARow,
      sinceLastPoll: this.#lastStart === undefined ? undefined : this.#elapsed(this.#lastStart),
    };
  }

  // -- waiting -------------------------------------------------------------------------------

  #noticed(change: Change): void {
    if (this.#host.subscribers.length === 0) return;
    if (change === "offline") {
      this.#giveUp("offline");
      // In case it is not true: browsers err with unusual networks.
      this.#wait("failure", this.#host.settings.backgroundCallbackInterval);
      this.#tell({ status: "offline" });
    } else if (change !== "hidden" && this.#waiting && this.#waiting !== "server") {
      const { minPollInterval } = this.#host.settings;
      const spread = this.#host.environment.random() * BACK_ONLINE_SPREAD;
      this.#wait("news", change === "online" ? minPollInterval + spread : 0);
    }
  }

  #wait(reason: Waiting, delay: number): void {
    this.#clearTimer();
    if (this.#host.subscribers.length === 0) return;
    this.#waiting = reason;
    this.#timer = this.#host.environment.setTimer(() => {
      this.#clearTimer();
      this.#begin();
    }, delay);
  }

  #clearTimer(): void {
    this.#host.environment.clearTimer(this.#timer);
    this.#waiting = undefined;
  }

  #delay(outcome: Outcome): number {
    const { settings, environment } = this.#host;
    const elapsed = this.#lastStart === undefined ? Infinity : this.#elapsed(this.#lastStart);
    return nextDelay(outcome, settings, this.#mayWait(), elapsed, environment.random());
  }

  #elapsed(since: number): number {
    return this.#host.environment.now() - since;
  }

  /** Whether the server may let us wait for news: not while nobody looks. */
  #mayWait(): boolean {
    const { settings, environment } = this.#host;
    if (settings.alwaysLongPoll) return true;
    return settings.shouldLongPollCallback?.() ?? !environment.isHidden();
  }

  // -- one poll ------------------------------------------------------------------------------

  #begin(): void {
    const { settings, environment } = this.#host;
    if (environment.isHidden() && environment.sinceAnyPoll() < settings.minHiddenPollInterval) {
      return this.#wait("interval", 500 + environment.random() * 500);
    }
    environment.notePoll();
    this.#giveUp("replaced");
    this.#lastStart = environment.now();
    this.#polls += 1;
    const poll: Poll = {
      controller: new AbortController(),
      started: this.#lastStart,
      streaming: false,
      accepted: false,
    };
    this.#poll = poll;
    if (this.#status !== "connected") this.#tell({ status: "connecting" });
    void this.#run(poll);
  }

  async #run(poll: Poll): Promise<void> {
    let error: unknown;
    try {
      await this.#exchange(poll);
    } catch (caught) {
      error = caught;
    }
    this.#stopTimers(poll);
    poll.controller.abort(); // of an answer that is none, the rest is not wanted
    poll.answer?.close(this.#elapsed(poll.started), error === undefined && !poll.givenUp);
    if (this.#poll !== poll) return; // given up, and what follows is arranged
    this.#poll = undefined;
    this.#ended(poll, error);
  }

  async #exchange(poll: Poll): Promise<void> {
    const { settings, environment } = this.#host;
    const seq = (latestSeq = Math.max(latestSeq + 1, Date.now()));
    // First of all, because it may take a while, and subscribers may change.
    const authorization = await this.#tokens.headers();
    if (poll.givenUp) return;
    const isCurrent = (): boolean => this.#poll === poll;
    const answer = new Answer(
      () => (isCurrent() ? this.#host.subscribers : []),
      () => this.#accepted(poll),
    );
    poll.answer = answer;
    const transport = settings.transport ?? (this.#chosen ??= chooseTransport());
    this.#mode = this.#chooseMode(transport, answer.keepsWaiting);
    poll.streaming = this.#mode === "streaming";
    if (poll.streaming) {
      const giveUp = (): void => this.#giveUp("buffered");
      poll.firstChunkTimer = environment.setTimer(giveUp, settings.firstChunkTimeout);
    }
    this.#watch(poll);
    await transport.send(
      {
        url: `${settings.baseUrl.replace(/\/?$/, "/")}message-bus/${settings.clientId}/poll${
          this.#mode === "polling" ? "?dlp=t" : ""
        }`,
        headers: {
          // Hosts that use the Ruby gem keep polls out of their logs by this.
          "X-SILENCE-LOGGER": "true",
          ...settings.headers,
          ...authorization,
          ...(poll.streaming ? {} : { "Dont-Chunk": "true" }),
        },
        fields: { ...answer.positions, __seq: seq },
        streaming: poll.streaming,
        credentials: settings.credentials,
        signal: poll.controller.signal,
      },
      {
        head: (status, header) => isCurrent() && answer.head(status, header),
        text: (piece) => {
          if (!isCurrent()) return;
          environment.clearTimer(poll.firstChunkTimer);
          this.#watch(poll);
          answer.text(piece);
        },
      },
    );
    if (isCurrent()) answer.end();
  }

  #chooseMode(transport: Transport, mustBeAtOnce: boolean): Mode {
    const { settings } = this.#host;
    if (mustBeAtOnce || !settings.enableLongPolling || !this.#mayWait()) return "polling";
    if (this.#withoutStreaming > 0) {
      this.#withoutStreaming -= 1;
      return "long-polling";
    }
    return settings.enableChunkedEncoding && transport.streams ? "streaming" : "long-polling";
  }

  /** Give up a poll that shows no sign of life: a network may go without a word. */
  #watch(poll: Poll): void {
    const { environment, settings } = this.#host;
    environment.clearTimer(poll.staleTimer);
    poll.staleTimer = environment.setTimer(() => this.#giveUp("stale"), settings.staleTimeout);
  }

  #accepted(poll: Poll): void {
    if (poll.accepted) return;
    poll.accepted = true;
    this.#failuresInARow = 0;
    this.#tokens.accepted();
    this.#tell({ status: "connected" });
  }

  #stopTimers(poll: Poll): void {
    this.#host.environment.clearTimer(poll.firstChunkTimer);
    this.#host.environment.clearTimer(poll.staleTimer);
  }

  /** End the open poll, if there is one, and arrange what follows. */
  #giveUp(reason: GivenUp): void {
    const poll = this.#poll;
    if (!poll) return;
    poll.givenUp = reason;
    this.#poll = undefined;
    this.#stopTimers(poll);
    poll.controller.abort();
    if (reason === "buffered") {
      this.#fallBack("buffered");
      this.#wait("news", this.#delay({ kind: "changed" }));
    } else if (reason === "stale") {
      this.#failed(new NetworkError("the connection has gone silent"));
    } else if (reason === "changed" && this.#isRunning && this.#waiting === undefined) {
      this.#wait("news", this.#delay({ kind: "changed" }));
    }
  }

  #ended(poll: Poll, error: unknown): void {
    if (error === undefined) {
      if (poll.streaming) this.#cuts = 0;
      const again = poll.answer?.keepsWaiting === true;
      const gotData = poll.answer?.wantsMore === true;
      const outcome: Outcome = again ? { kind: "changed" } : { kind: "answered", gotData };
      this.#waitUnlessSooner("interval", this.#delay(outcome));
      return;
    }
    const wrapped =
      error instanceof MessageBusError ? error : new NetworkError("the poll failed", { cause: error });
    if (wrapped instanceof HttpError && wrapped.status === 401 && this.#tokens.refused()) {
      this.#waitUnlessSooner("news", this.#delay({ kind: "changed" }));
      return;
    }
    if (wrapped instanceof RateLimitError) {
      const delay = this.#delay({ kind: "rate_limited", retryAfter: wrapped.retryAfter });
      this.#wait("server", delay);
      this.#tell({ status: "rate-limited", retryIn: delay });
      // Last, because a listener may stop the client.
      this.#host.emit("error", wrapped);
      return;
    }
    if (poll.streaming && poll.accepted && ++this.#cuts >= CUTS_UNTIL_FALLBACK) {
      this.#fallBack("cut");
    }
    this.#failed(wrapped);
  }

  #failed(error: MessageBusError): void {
    this.#failures += 1;
    this.#failuresInARow += 1;
    const retryAfter = error instanceof HttpError ? error.retryAfter : undefined;
    const delay = this.#delay({ kind: "failed", failures: this.#failuresInARow, retryAfter });
    this.#wait(retryAfter === undefined ? "failure" : "server", delay);
    this.#tell({ status: "failing", retryIn: delay });
    // Last, because a listener may stop the client.
    this.#host.emit("error", error);
  }

  /** News that came while the poll was open have arranged an earlier one. */
  #waitUnlessSooner(reason: Waiting, delay: number): void {
    if (this.#waiting !== "news") this.#wait(reason, delay);
  }

  #fallBack(reason: Fallback["reason"]): void {
    this.#cuts = 0;
    this.#withoutStreaming = this.#host.settings.retryChunkedAfterRequests;
    this.#host.emit("fallback", { reason, requests: this.#withoutStreaming });
  }

  /** Say how things are, unless that has been said already. */
  #tell(part: Omit<ConnectionState, "mode" | "transport">): void {
    const transport = this.#host.settings.transport ?? this.#chosen;
    const state: ConnectionState = { ...part, mode: this.#mode, transport: transport?.name };
    this.#status = part.status;
    const told = JSON.stringify(state);
    if (told === this.#told) return;
    this.#told = told;
    this.#host.emit("state", state);
  }
}
