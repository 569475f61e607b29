import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { ChunkParser } from "../source/chunks.js";
import { ProtocolError } from "../source/errors/protocol.js";
import { Catchup, type Subscriber } from "../source/positions.js";
import { Channels, Everything, StreamEnded, type Notice } from "../source/server/following.js";
import { nextDelay, type Intervals, type Outcome } from "../source/schedule.js";
import type { Message } from "../source/types.js";
import { vectors } from "./support/vectors.js";

interface ChunkCase {
  name: string;
  text: string;
  frames?: Message[][];
  rest?: string;
  error?: boolean;
}

function parse(pieces: Uint8Array[]): { frames: Message[][]; rest: string; error: boolean } {
  const parser = new ChunkParser();
  const decoder = new TextDecoder();
  const frames: Message[][] = [];
  try {
    for (const piece of pieces) {
      for (const frame of parser.push(decoder.decode(piece, { stream: true }))) frames.push(frame);
    }
  } catch (error) {
    assert(error instanceof ProtocolError);
    return { frames, rest: "", error: true };
  }
  return { frames, rest: parser.rest, error: false };
}

describe("chunks", () => {
  for (const each of vectors<{ cases: ChunkCase[] }>("chunks").cases) {
    test(each.name, () => {
      const bytes = new TextEncoder().encode(each.text);
      const splits = [[bytes], Array.from(bytes, (byte) => Uint8Array.of(byte))];
      for (let at = 1; at < bytes.length; at += 1) {
        splits.push([bytes.subarray(0, at), bytes.subarray(at)]);
      }
      for (const pieces of splits) {
        const found = parse(pieces);
        assert.equal(found.error, each.error ?? false);
        if (each.frames) assert.deepEqual(found.frames, each.frames);
        if (!each.error) assert.equal(found.rest, each.rest ?? "");
      }
    });
  }
});

interface ScheduleCase {
  name: string;
  settings?: Partial<Intervals>;
  outcome: {
    kind: string;
    got_data?: boolean;
    failures?: number;
    retry_after_seconds?: number | null;
  };
  long_polling: boolean;
  elapsed: number;
  random: number;
  delay: number;
}

describe("schedule", () => {
  const { settings, cases } = vectors<{ settings: Intervals; cases: ScheduleCase[] }>("schedule");
  for (const each of cases) {
    test(each.name, () => {
      const { kind, got_data, failures, retry_after_seconds } = each.outcome;
      const outcome = {
        kind,
        gotData: got_data,
        failures,
        retryAfter: retry_after_seconds ?? undefined,
      } as Outcome;
      const intervals = { ...settings, ...each.settings };
      const delay = nextDelay(outcome, intervals, each.long_polling, each.elapsed, each.random);
      assert.equal(delay, each.delay);
    });
  }
});

interface PositionCase {
  name: string;
  callbacks: { position: number; confirmed: boolean }[];
  asked: number;
  taking_part: number[];
  alone: boolean;
  answer: { message?: number; status?: number }[];
  received: number[][];
  positions: number[];
}

describe("positions", () => {
  for (const each of vectors<{ cases: PositionCase[] }>("positions").cases) {
    test(each.name, () => {
      const received = each.callbacks.map((): number[] => []);
      const subscribers = each.callbacks.map(
        ({ position, confirmed }, index): Subscriber => ({
          channel: "/foo",
          position,
          confirmed,
          receive: (message) => received[index]?.push(message.message_id),
          moved: () => undefined,
          missed: () => undefined,
        }),
      );
      const catchup = new Catchup(subscribers);
      assert.equal(catchup.ask.position, each.asked);
      assert.equal(catchup.ask.alone, each.alone);
      assert.deepEqual(
        catchup.ask.takingPart.map((one) => subscribers.indexOf(one)),
        each.taking_part,
      );
      for (const { message, status } of each.answer) {
        if (status !== undefined) catchup.status(status, () => true);
        if (message !== undefined) {
          const sent = { global_id: 1, message_id: message, channel: "/foo", data: null };
          catchup.message(sent, () => true);
        }
      }
      catchup.told();
      assert.deepEqual(received, each.received);
      assert.deepEqual(
        subscribers.map((one) => one.position),
        each.positions,
      );
    });
  }
});

interface FollowingCase {
  name: string;
  channels?: Record<string, number>;
  last_id?: number;
  lines: string[];
  received: [string, number][];
  notices: object[];
  positions?: Record<string, number>;
  last_id_after?: number;
  end?: string;
  error?: boolean;
}

function noticed(notice: Notice): object {
  if (notice.kind === "gap") {
    const { kind, channel, after, upTo } = notice;
    return { kind, channel, after, up_to: upTo };
  }
  assert(notice.kind === "restarted");
  const { kind, channel = null, lastId } = notice;
  return { kind, channel, last_id: lastId };
}

describe("following", () => {
  for (const each of vectors<{ cases: FollowingCase[] }>("following").cases) {
    test(each.name, () => {
      const following = each.channels ? new Channels(each.channels) : new Everything(each.last_id);
      const received: unknown[] = [];
      const notices: object[] = [];
      let ending: unknown;
      for (const line of each.lines) {
        assert.equal(ending, undefined);
        try {
          const { message, notices: news } = following.take(line);
          notices.push(...news.map(noticed));
          if (message) received.push([message.channel, message.message_id]);
        } catch (error) {
          ending = error;
        }
      }
      assert.deepEqual(received, each.received);
      assert.deepEqual(notices, each.notices);
      assert.equal(ending instanceof StreamEnded ? ending.code : undefined, each.end);
      assert.equal(ending instanceof ProtocolError, each.error ?? false);
      if (following instanceof Channels) {
        assert.deepEqual(Object.fromEntries(following.positions), each.positions);
      } else {
        assert.equal(following.lastId, each.last_id_after);
      }
    });
  }
});
