/** A transport whose polls the test answers itself. */

import { NetworkError } from "../../source/errors/network.js";
import type { Exchange, Listener, Transport } from "../../source/transport/transport.js";
import { settle } from "./world.js";

export const STREAM = "text/plain; charset=utf-8";
export const JSON_TYPE = "application/json; charset=utf-8";

export function message(channel: string, id: number, data: unknown = id): object {
  return { global_id: 1000 + id, message_id: id, channel, data };
}

export function status(positions: Record<string, number>): object {
  return { global_id: -1, message_id: -1, channel: "/__status", data: positions };
}

export class Poll {
  isOpen = true;
  isAborted = false;
  #hasHead = false;

  constructor(
    readonly exchange: Exchange,
    private readonly listener: Listener,
    private readonly resolve: () => void,
    private readonly reject: (error: Error) => void,
  ) {
    exchange.signal.addEventListener("abort", () => {
      this.isAborted = this.isOpen;
      this.#close(() => reject(new NetworkError("aborted")));
    });
  }

  /** What is asked for, without the sequence number. */
  get positions(): Record<string, number> {
    const { __seq: _, ...positions } = this.exchange.fields;
    return positions;
  }

  get mode(): string {
    if (this.exchange.url.endsWith("?dlp=t")) return "polling";
    return this.exchange.streaming ? "streaming" : "long-polling";
  }

  /** Send a frame of a stream. */
  async frame(...messages: object[]): Promise<void> {
    this.head(200, { "content-type": STREAM });
    this.text(`${JSON.stringify(messages)}\r\n|\r\n`);
    await settle();
  }

  /** Answer with an array as a whole. */
  async json(...messages: object[]): Promise<void> {
    this.head(200, { "content-type": JSON_TYPE });
    this.text(JSON.stringify(messages));
    await this.end();
  }

  async refuse(statusCode: number, headers: Record<string, string> = {}, body = ""): Promise<void> {
    this.head(statusCode, headers);
    this.text(body);
    await this.end();
  }

  head(statusCode: number, headers: Record<string, string>): void {
    if (this.#hasHead) return;
    this.#hasHead = true;
    this.#guarded(() => this.listener.head(statusCode, (name) => headers[name] ?? null));
  }

  text(piece: string): void {
    if (piece) this.#guarded(() => this.listener.text(piece));
  }

  async end(): Promise<void> {
    this.#close(this.resolve);
    await settle();
  }

  /** The network fails. */
  async cut(): Promise<void> {
    this.#close(() => this.reject(new NetworkError("cut")));
    await settle();
  }

  /** What a listener throws ends a transport. */
  #guarded(tell: () => void): void {
    try {
      tell();
    } catch (error) {
      this.#close(() => this.reject(error as Error));
    }
  }

  #close(settleIt: () => void): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    settleIt();
  }
}

export class Server implements Transport {
  readonly name = "test";
  streams = true;
  readonly polls: Poll[] = [];

  send(exchange: Exchange, listener: Listener): Promise<void> {
    return new Promise((resolve, reject) => {
      this.polls.push(new Poll(exchange, listener, resolve, reject));
    });
  }

  /** The latest poll. */
  get poll(): Poll {
    const poll = this.polls.at(-1);
    if (!poll) throw new Error("there was no poll");
    return poll;
  }
}
