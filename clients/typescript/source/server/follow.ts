/** Following channels on a server, over any number of streams. */

import { HttpError } from "../errors/http.js";
import { NetworkError } from "../errors/network.js";
import { ProtocolError } from "../errors/protocol.js";
import { isPassing, query, retryDelay, type Api } from "./api.js";
import {
  Channels,
  Everything,
  FROM_NOW,
  StreamEnded,
  type Following,
  type Notice,
  type Taken,
} from "./following.js";

/** The daemon sends a heartbeat every 15 seconds. */
const SILENCE = 30_000;
const FIRST_BACKOFF = 500;
const MAX_BACKOFF = 30_000;
/** No daemon sends lines like this. In UTF-16 units. */
const MAX_LINE = 64 * 1024 * 1024;

/** Settings of a subscription. */
export interface FollowOptions {
  /** Only this site's channels. */
  siteId?: string | undefined;
  /** Ends the subscription: iterating throws its reason. */
  signal?: AbortSignal | undefined;
  /** Told what happens besides messages, before the messages that follow. */
  onNotice?: ((notice: Notice) => void) | undefined;
}

/** Opens a stream from where a subscription is. */
type Open = (signal: AbortSignal | undefined) => Promise<ReadableStream<Uint8Array>>;

/** Channels, with the last few messages of those that look back. */
export function openChannels(api: Api, following: Channels, siteId: string | undefined): Open {
  /** Where the channels were of which the last few messages are wanted. */
  const floors = new Map<string, number>();
  return async (signal) => {
    const positions = Object.fromEntries(following.positions);
    const site = siteId === undefined ? {} : { site_id: siteId };
    const back = Object.keys(positions).filter((each) => (positions[each] ?? 0) < FROM_NOW);
    if (back.length > 0) {
      // What is published until the stream is open, perhaps at a later try, is wanted as well.
      const body = { channels: back, ...site };
      const { last_ids: lastIds } = await api.post<{ last_ids: Record<string, number> }>(
        "last_ids",
        body,
        signal,
      );
      for (const [channel, id] of Object.entries(lastIds)) {
        const floor = floors.get(channel) ?? id;
        floors.set(channel, floor);
        positions[channel] = (positions[channel] ?? FROM_NOW) - Math.max(0, id - floor);
      }
    }
    return api.stream("subscribe", { channels: positions, ...site }, signal);
  };
}

/** All channels, of all sites or of one. */
export function openEverything(
  api: Api,
  following: Everything,
  siteId: string | undefined,
): Open {
  return (signal) => {
    const call = `subscribe?${query({ last_id: following.lastId, site_id: siteId })}`;
    return api.stream(call, undefined, signal);
  };
}

/** Iterate over what comes, without end; opens the stream again when it breaks. */
export async function* follow(
  api: Api,
  following: Following,
  open: Open,
  { signal, onNotice }: FollowOptions,
): AsyncGenerator<NonNullable<Taken["message"]>> {
  let failures = 0;
  for (;;) {
    let lines = 0;
    let ending: unknown = new NetworkError("the stream broke off");
    try {
      for await (const line of readLines(await open(signal))) {
        // Streams begin with a heartbeat: after more, failures count anew.
        if (++lines > 1) failures = 0;
        const { message, notices } = following.take(line);
        for (const notice of notices) onNotice?.(notice);
        if (message) yield message;
      }
    } catch (error) {
      ending = error;
    }
    signal?.throwIfAborted();
    const delay = retryDelay(ending, failures, FIRST_BACKOFF, MAX_BACKOFF, api.random);
    const notice = interrupted(ending, delay, following instanceof Everything);
    onNotice?.(notice);
    failures += 1;
    await api.sleep(delay, signal);
  }
}

/** What is told of an ending. Throws it if opening the stream again is no use. */
function interrupted(ending: unknown, retryIn: number, isEverything: boolean): Notice {
  if (!(ending instanceof StreamEnded) && !isPassing(ending)) throw ending;
  const { code, detail } =
    ending instanceof StreamEnded
      ? ending
      : {
          code: ending instanceof HttpError ? ending.code : undefined,
          detail: (ending as Error).message,
        };
  // What was missed of a channel is in its backlog; of all channels only the store knows.
  const mayHaveMissed = isEverything && code === "interrupted";
  return { kind: "interrupted", code: code ?? "broken", detail, retryIn, mayHaveMissed };
}

/** Yield whole lines; what is left of the last one, when the stream breaks off, is not used. */
async function* readLines(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const letGo = (): void => void reader.cancel().catch(() => undefined);
  let rest = "";
  try {
    for (;;) {
      // As if it had ended: the connection is dead.
      const silence = setTimeout(letGo, SILENCE);
      const { done, value } = await reader.read().finally(() => clearTimeout(silence));
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      if (rest.length > MAX_LINE) throw new ProtocolError("a line does not end");
      yield* lines;
    }
  } catch (cause) {
    if (cause instanceof ProtocolError) throw cause;
    throw new NetworkError("the stream broke off", { cause });
  } finally {
    letGo();
  }
}
