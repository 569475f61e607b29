import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { before, beforeEach, describe, mock, test } from "node:test";

import {
  CallbackError,
  HttpError,
  NetworkError,
  ProtocolError,
  RateLimitError,
  TokenError,
} from "../source/index.js";
import { Bench } from "./support/bus.js";
import { message, status } from "./support/server.js";

let bench: Bench;
before(() => void mock.method(console, "log", () => undefined)); // diagnostics
beforeEach(() => {
  bench = new Bench();
});

describe("the first poll", () => {
  test("follows the first subscription at once, and names all of the same turn", async () => {
    const { bus, server } = bench;
    bus.subscribe("/a", bench.noting("a"));
    bus.subscribe("/b", bench.noting("b"), 5);
    await bench.pass(0);
    assert.equal(server.polls.length, 1);
    assert.deepEqual(server.poll.positions, { "/a": -1, "/b": 5 });
    assert.equal(server.poll.exchange.url, "/message-bus/c1/poll");
    assert.equal(server.poll.mode, "streaming");
    assert.equal(server.poll.exchange.headers["Dont-Chunk"], undefined);
    assert.equal(bus.status(), "started");
  });

  test("waits for start after stop", async () => {
    const { bus, server } = bench;
    bus.stop();
    bus.subscribe("/a", bench.noting("a"));
    await bench.pass(10_000);
    assert.equal(server.polls.length, 0);
    assert.equal(bus.status(), "stopped");
    bus.start();
    await bench.pass(0);
    assert.equal(server.polls.length, 1);
  });

  test("is not sent while nothing is subscribed", async () => {
    bench.bus.start();
    await bench.pass(60_000);
    assert.equal(bench.server.polls.length, 0);
    assert.equal(bench.bus.connection.status, "idle");
    assert.equal(bench.world.timers, 0);
  });

  test("carries headers, base URL and settings as they are then", async () => {
    const { bus, server } = bench;
    Object.assign(bus, { baseUrl: "https://bus.example/sub/", headers: { "X-Foo": "1" } });
    bus.enableChunkedEncoding = false;
    bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    assert.equal(server.poll.exchange.url, "https://bus.example/sub/message-bus/c1/poll");
    assert.deepEqual(server.poll.exchange.headers, {
      "X-SILENCE-LOGGER": "true",
      "X-Foo": "1",
      "Dont-Chunk": "true",
    });
    assert.equal(server.poll.mode, "long-polling");
  });
});

describe("messages", () => {
  test("come with data, global id and message id, in order", async () => {
    const seen: unknown[][] = [];
    bench.bus.subscribe("/a", (...given) => void seen.push(given), 0);
    await bench.pass(0);
    await bench.server.poll.frame(message("/a", 1, { x: 1 }), message("/a", 2, null));
    assert.deepEqual(seen, [
      [{ x: 1 }, 1001, 1],
      [null, 1002, 2],
    ]);
    assert.equal(bench.bus.callbacks[0]?.last_id, 2);
  });

  test("a callback that throws does not stop the others", async () => {
    const shown = mock.method(console, "error", () => undefined);
    bench.bus.subscribe("/a", () => {
      throw new Error("oops");
    });
    bench.bus.subscribe("/a", bench.noting("second"));
    await bench.pass(0);
    await bench.server.poll.frame(status({ "/a": 3 }), message("/a", 4), message("/a", 5));
    shown.mock.restore();
    assert.deepEqual(bench.received, [
      ["second", 4],
      ["second", 5],
    ]);
    const [error] = bench.told("error");
    assert(error instanceof CallbackError);
    assert.equal(error.channel, "/a");
    assert.equal((error.cause as Error).message, "oops");
    assert.equal(shown.mock.callCount(), 2);
  });

  test("a callback may unsubscribe itself and others", async () => {
    const { bus } = bench;
    bus.subscribe("/a", () => bus.unsubscribe("/a"), 0);
    bus.subscribe("/a", bench.noting("other"), 0);
    await bench.pass(0);
    await bench.server.poll.frame(message("/a", 1), message("/a", 2));
    assert.deepEqual(bench.received, []);
  });

  test("two callbacks each get what they have missed", async () => {
    const { bus, server } = bench;
    bus.subscribe("/a", bench.noting("from 5"), 5);
    bus.subscribe("/a", bench.noting("last 2"), -3);
    bus.subscribe("/a", bench.noting("new"), -1);
    await bench.pass(0);
    assert.deepEqual(server.poll.positions, { "/a": 5 });
    assert.equal(server.poll.mode, "polling");
    await server.poll.json(message("/a", 6), message("/a", 7));
    await bench.pass(100);
    assert.deepEqual(server.poll.positions, { "/a": -3 });
    await server.poll.json(message("/a", 6), message("/a", 7));
    await bench.pass(100);
    assert.deepEqual(server.poll.positions, { "/a": -1 });
    await server.poll.json(status({ "/a": 8 }));
    await bench.pass(100);
    assert.deepEqual(server.poll.positions, { "/a": 7 });
    assert.equal(server.poll.mode, "streaming");
    await server.poll.frame(message("/a", 8));
    await server.poll.frame(message("/a", 9));
    assert.deepEqual(bench.received, [
      ["from 5", 6],
      ["from 5", 7],
      ["last 2", 6],
      ["last 2", 7],
      ["from 5", 8],
      ["last 2", 8],
      ["from 5", 9],
      ["last 2", 9],
      ["new", 9],
    ]);
  });

  test("who looks back on an empty channel misses nothing between polls", async () => {
    bench.bus.subscribe("/a", bench.noting("a"), -2);
    await bench.pass(0);
    await bench.server.poll.frame();
    await bench.pass(20_000);
    await bench.server.poll.end();
    await bench.pass(100);
    // Asked again as -2 only the latest of those published meanwhile would come.
    assert.deepEqual(bench.server.poll.positions, { "/a": 0 });
  });

  test("what an answer has not told is asked again", async () => {
    bench.bus.subscribe("/a", bench.noting("a"), -2);
    await bench.pass(0);
    await bench.server.poll.frame();
    await bench.server.poll.end(); // at once: not all may have been read
    await bench.pass(15_000);
    assert.deepEqual(bench.server.poll.positions, { "/a": -2 });
  });

  test("a status moves the position", async () => {
    await bench.stream(5);
    await bench.server.poll.frame(status({ "/a": 9, "/unknown": 3 }));
    assert.equal(bench.bus.callbacks[0]?.last_id, 9);
  });
});

describe("gaps are told", () => {
  test("of ids", async () => {
    await bench.stream(5);
    await bench.server.poll.frame(message("/a", 6), message("/a", 9));
    assert.deepEqual(bench.told("gap"), [{ channel: "/a", after: 6, upTo: 8, reason: "ids" }]);
  });

  test("by a status that is ahead, to the subscription as well", async () => {
    const gaps: unknown[] = [];
    bench.bus.subscribe("/a", bench.noting("a"), { lastId: 5, onGap: (gap) => gaps.push(gap) });
    await bench.pass(0);
    await bench.server.poll.frame(status({ "/a": 9 }));
    assert.deepEqual(gaps, [{ channel: "/a", after: 5, upTo: 9, reason: "status" }]);
  });

  test("when a channel begins anew", async () => {
    await bench.stream(5);
    await bench.server.poll.frame(status({ "/a": 1 }), message("/a", 2));
    assert.deepEqual(bench.told("gap"), [{ channel: "/a", after: 5, upTo: 1, reason: "reset" }]);
    assert.deepEqual(bench.received, [["a", 2]]);
  });

  test("but not of a first position", async () => {
    await bench.stream(-1);
    await bench.server.poll.frame(status({ "/a": 9 }), message("/a", 10));
    const other = new Bench();
    await other.stream(-3);
    await other.server.poll.frame(message("/a", 8), message("/a", 9));
    assert.deepEqual([...bench.told("gap"), ...other.told("gap")], []);
  });
});

describe("subscribing while a poll is open", () => {
  test("asks again at once, and is no failure", async () => {
    const { bus, server } = bench;
    await bench.stream();
    await bench.pass(1000);
    const [first] = server.polls;
    bus.subscribe("/b", bench.noting("b"), 0);
    bus.subscribe("/c", bench.noting("c"), 0);
    assert(first?.isOpen, "the old poll serves until the new one is sent");
    await bench.pass(0);
    assert(first.isAborted);
    assert.equal(server.polls.length, 2);
    assert.deepEqual(server.poll.positions, { "/a": 0, "/b": 0, "/c": 0 });
    assert.deepEqual(bench.told("error"), []);
    assert.equal(bus.diagnostics().failures, 0);
  });

  test("polls start minPollInterval apart nevertheless", async () => {
    await bench.stream();
    for (let count = 0; count < 50; count += 1) {
      bench.bus.subscribe(`/b${count}`, bench.noting("b"));
      await bench.pass(10);
    }
    assert(bench.server.polls.length <= 6, `${bench.server.polls.length} polls in 500 ms`);
  });

  test("does not hurry past what the server asked for", async () => {
    await bench.stream();
    await bench.pass(1000);
    bench.bus.subscribe("/b", bench.noting("b"));
    await bench.pass(0);
    await bench.server.poll.refuse(429, { "retry-after": "20" });
    bench.bus.subscribe("/c", bench.noting("c"));
    await bench.pass(19_000);
    assert.equal(bench.server.polls.length, 2);
    await bench.pass(6_000);
    assert.equal(bench.server.polls.length, 3);
  });

  test("unsubscribing, too", async () => {
    const { bus, server } = bench;
    await bench.stream();
    bus.subscribe("/b", bench.noting("b"));
    await bench.pass(1000);
    assert.equal(bus.unsubscribe("/b"), true);
    await bench.pass(0);
    assert.deepEqual(server.poll.positions, { "/a": 0 });
    assert.equal(bus.unsubscribe("/b"), false);
    assert.equal(bus.unsubscribe("/a"), true);
    assert(server.poll.isAborted);
    await bench.pass(60_000);
    assert.equal(server.polls.filter((poll) => poll.isOpen).length, 0);
    assert.equal(bench.world.timers, 0);
  });

  test("a late answer to a poll that was given up is not delivered", async () => {
    await bench.stream();
    const old = bench.server.poll;
    bench.bus.subscribe("/b", bench.noting("b"));
    await bench.pass(200);
    const { timers } = bench.world;
    old.text(`${JSON.stringify([message("/a", 1)])}\r\n|\r\n`);
    assert.deepEqual(bench.received, []);
    assert.equal(bench.world.timers, timers);
    await bench.server.poll.frame(message("/a", 1));
    assert.deepEqual(bench.received, [["a", 1]]);
  });
});

describe("unsubscribe", () => {
  test("by callback, by channel, by prefix", async () => {
    const { bus } = bench;
    const first = bench.noting("1");
    const second = bench.noting("2");
    for (const channel of ["/a", "/a/1", "/a/2", "/b"]) {
      bus.subscribe(channel, first);
      bus.subscribe(channel, second);
    }
    const left = (): string[] => bus.callbacks.map((each) => each.channel);
    assert.equal(bus.unsubscribe("/b", first), true);
    assert.deepEqual(left().filter((each) => each === "/b"), ["/b"]);
    assert.equal(bus.unsubscribe("/a/*", second), true);
    assert.deepEqual(left(), ["/a", "/a", "/a/1", "/a/2", "/b"]);
    assert.equal(bus.unsubscribe("/a*"), true);
    assert.deepEqual(left(), ["/b"]);
    assert.equal(bus.unsubscribe("/nothing*"), false);
  });

  test("by signal", async () => {
    const controller = new AbortController();
    const { signal } = controller;
    bench.bus.subscribe("/a", bench.noting("a"), { signal, lastId: 0 });
    await bench.pass(0);
    controller.abort();
    assert.deepEqual(bench.bus.callbacks, []);
    bench.bus.subscribe("/a", bench.noting("a"), { signal });
    assert.deepEqual(bench.bus.callbacks, []);
    const lasting = new AbortController();
    bench.bus.subscribe("/b", bench.noting("b"), { signal: lasting.signal });
    bench.bus.unsubscribe("/b");
    assert.equal(getEventListeners(lasting.signal, "abort").length, 0);
  });
});

describe("the end of a poll", () => {
  test("a stream's deadline: the next follows shortly, from the newest position", async () => {
    await bench.stream();
    await bench.server.poll.frame(message("/a", 1));
    await bench.pass(25_000);
    await bench.server.poll.end();
    await bench.pass(99);
    assert.equal(bench.server.polls.length, 1);
    await bench.pass(1);
    assert.deepEqual(bench.server.poll.positions, { "/a": 1 });
  });

  test("a stream that ends at once: callbackInterval after it was sent", async () => {
    await bench.stream();
    await bench.server.poll.frame(message("/a", 1));
    await bench.server.poll.end();
    await bench.pass(14_999);
    assert.equal(bench.server.polls.length, 1);
    await bench.pass(1);
    assert.equal(bench.server.polls.length, 2);
  });

  test("a long stream that ends at once may be a part of a backlog: at once", async () => {
    await bench.stream();
    await bench.server.poll.frame(message("/a", 1, "x".repeat(1_100_000)));
    await bench.server.poll.end();
    await bench.pass(100);
    assert.equal(bench.server.polls.length, 2);
  });

  test("JSON with data: minPollInterval", async () => {
    bench.bus.subscribe("/a", bench.noting("a"), 0);
    bench.bus.enableChunkedEncoding = false;
    await bench.pass(0);
    await bench.pass(3000);
    await bench.server.poll.json(message("/a", 1));
    assert.deepEqual(bench.received, [["a", 1]]);
    await bench.pass(100);
    assert.equal(bench.server.polls.length, 2);
    assert.equal(bench.bus.connection.mode, "long-polling");
  });

  test("sequence numbers ascend, also over clients", async () => {
    await bench.stream();
    const other = new Bench();
    await other.stream();
    bench.bus.subscribe("/b", bench.noting("b"));
    await bench.pass(200);
    const numbers = [...bench.server.polls, other.server.poll].map((p) => p.exchange.fields.__seq);
    const [one = 0, three = 0, two = 0] = numbers;
    assert(one < two && two < three, String(numbers));
  });
});

describe("failures", () => {
  test("back off with jitter, are told, and end with the first answer", async () => {
    const { server, world } = bench;
    bench.bus.subscribe("/a", bench.noting("a"), 0);
    await bench.pass(0);
    const waits: number[] = [];
    for (let failure = 1; failure <= 4; failure += 1) {
      await server.poll.cut();
      const before = world.time;
      const state = bench.bus.connection;
      assert.equal(state.status, "failing");
      waits.push(state.retryIn ?? 0);
      await bench.pass(state.retryIn ?? 0);
      assert.equal(world.time - before, waits.at(-1));
      assert.equal(server.polls.length, failure + 1);
      assert.equal(bench.bus.connection.status, "connecting");
    }
    assert.deepEqual(waits, [550, 1050, 2050, 4050]);
    assert(bench.told("error").every((error) => error instanceof NetworkError));
    await server.poll.frame();
    assert.equal(bench.bus.connection.status, "connected");
    assert.equal(bench.bus.diagnostics().failuresInARow, 0);
    assert.equal(bench.bus.diagnostics().failures, 4);
  });

  test("a listener may stop the client, say after a logout", async () => {
    bench.bus.on("error", () => bench.bus.stop());
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    await bench.server.poll.refuse(403);
    assert.equal(bench.bus.connection.status, "stopped");
    assert.equal(bench.world.timers, 0);
  });

  test("a refusal is told with the server's problem", async () => {
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    const problem = { code: "forbidden", detail: "not you", status: 403 };
    const headers = { "content-type": "application/problem+json" };
    await bench.server.poll.refuse(403, headers, JSON.stringify(problem));
    const [error] = bench.told("error");
    assert(error instanceof HttpError && !(error instanceof RateLimitError));
    assert.equal(error.status, 403);
    assert.equal(error.code, "forbidden");
  });

  test("429 is none; Retry-After is honoured, in seconds and as a date", async (context) => {
    bench.world.chance = 0;
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    await bench.server.poll.refuse(429, { "retry-after": "7" });
    assert.equal(bench.bus.connection.status, "rate-limited");
    assert.equal(bench.bus.connection.retryIn, 7000);
    assert.equal(bench.bus.diagnostics().failures, 0);
    assert(bench.told("error")[0] instanceof RateLimitError);
    await bench.pass(7000);
    context.mock.timers.enable({ apis: ["Date"], now: Date.UTC(2030, 0, 1) });
    await bench.server.poll.refuse(429, { "retry-after": "Tue, 01 Jan 2030 00:00:30 GMT" });
    assert.equal(bench.bus.connection.retryIn, 30_000);
  });

  test("503 with Retry-After", async () => {
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    await bench.server.poll.refuse(503, { "retry-after": "40" });
    assert.equal(bench.bus.connection.status, "failing");
    assert.equal(bench.bus.connection.retryIn, 40_000);
  });

  for (const [name, body] of Object.entries({
    "a page instead of a stream": "<html>Welcome to our hotel</html>",
    "an empty answer": "",
    "a frame that is none": "[1]\r\n|\r\n",
  })) {
    test(`${name} is a failure`, async () => {
      bench.bus.subscribe("/a", bench.noting("a"));
      await bench.pass(0);
      await bench.server.poll.refuse(200, { "content-type": "text/html" }, body);
      assert(bench.told("error")[0] instanceof ProtocolError);
      assert.equal(bench.bus.connection.status, "failing");
      assert.equal(bench.bus.connection.retryIn, 550);
    });
  }

  test("a connection that has gone silent is given up", async () => {
    await bench.stream();
    await bench.pass(60_000);
    await bench.server.poll.frame(message("/a", 1));
    await bench.pass(89_999);
    assert(bench.server.poll.isOpen);
    await bench.pass(1);
    assert(bench.server.polls[0]?.isAborted);
    assert(bench.told("error")[0] instanceof NetworkError);
    await bench.pass(1000);
    assert.equal(bench.server.polls.length, 2);
  });
});

describe("streaming that does not work", () => {
  test("nothing within firstChunkTimeout: asks for whole answers, and says so", async () => {
    const { bus, server } = bench;
    bus.retryChunkedAfterRequests = 2;
    bus.subscribe("/a", bench.noting("a"), 0);
    await bench.pass(0);
    server.poll.head(200, {});
    await bench.pass(3000);
    assert(server.polls[0]?.isAborted);
    assert.deepEqual(bench.told("fallback"), [{ reason: "buffered", requests: 2 }]);
    assert.deepEqual(bench.told("error"), []);
    const modes: string[] = [];
    for (let id = 1; id <= 3; id += 1) {
      modes.push(server.poll.mode);
      await server.poll.json(message("/a", id));
      await bench.pass(100);
    }
    assert.deepEqual(modes, ["long-polling", "long-polling", "streaming"]);
    assert.deepEqual(bench.received.length, 3);
  });

  test("a first frame that comes slowly is not taken for a buffer", async () => {
    bench.bus.subscribe("/a", bench.noting("a"), 0);
    await bench.pass(0);
    bench.server.poll.head(200, {});
    bench.server.poll.text("[");
    await bench.pass(10_000);
    bench.server.poll.text("]\r\n|\r\n");
    assert.equal(bench.server.polls.length, 1);
    assert.equal(bench.bus.connection.status, "connected");
  });

  test("streams that are cut are resumed soon; after three another way is tried", async () => {
    await bench.stream();
    for (let cut = 1; cut <= 3; cut += 1) {
      assert.equal(bench.server.poll.mode, "streaming");
      await bench.server.poll.frame(message("/a", cut));
      await bench.pass(500);
      await bench.server.poll.cut();
      assert.equal(bench.bus.connection.retryIn, 550);
      await bench.pass(550);
    }
    assert.equal(bench.server.poll.mode, "long-polling");
    assert.deepEqual(bench.told("fallback"), [{ reason: "cut", requests: 30 }]);
    assert.equal(bench.received.length, 3);
    assert.deepEqual(bench.server.poll.positions, { "/a": 3 });
  });

  test("streams that are cut now and then are none of that", async () => {
    await bench.stream();
    for (const ending of ["cut", "cut", "end", "cut", "cut"] as const) {
      await bench.server.poll.frame();
      await bench.pass(25_000);
      await bench.server.poll[ending]();
      await bench.pass(1000);
    }
    assert.deepEqual(bench.told("fallback"), []);
    assert.equal(bench.server.poll.mode, "streaming");
  });

  test("a transport that cannot stream is not asked to", async () => {
    bench.server.streams = false;
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    assert.equal(bench.server.poll.mode, "long-polling");
  });
});

describe("hidden pages", () => {
  test("poll slowly, and at once when shown", async () => {
    const { server, world } = bench;
    world.hidden = true;
    bench.bus.subscribe("/a", bench.noting("a"), 0);
    await bench.pass(0);
    assert.equal(server.poll.mode, "polling");
    await server.poll.json(message("/a", 1));
    await bench.pass(59_999);
    assert.equal(server.polls.length, 1);
    await bench.pass(1);
    assert.equal(server.polls.length, 2);
    await server.poll.json();
    await bench.pass(5000);
    world.show(true);
    await bench.pass(0);
    assert.equal(server.polls.length, 3);
    assert.equal(server.poll.mode, "streaming");
  });

  test("keep a stream that is open", async () => {
    await bench.stream();
    bench.world.show(false);
    await bench.pass(1000);
    assert(bench.server.poll.isOpen);
  });

  test("take turns with others of their origin", async () => {
    bench.world.hidden = true;
    bench.world.lastPoll = -1000; // another page's, a second ago
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    assert.equal(bench.server.polls.length, 0);
    await bench.pass(750);
    assert.equal(bench.server.polls.length, 1);
  });

  test("alwaysLongPoll and shouldLongPollCallback decide instead", async () => {
    bench.world.hidden = true;
    bench.bus.alwaysLongPoll = true;
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    assert.equal(bench.server.poll.mode, "streaming");
    bench.world.hidden = false;
    bench.bus.alwaysLongPoll = false;
    bench.bus.shouldLongPollCallback = () => false;
    bench.bus.subscribe("/b", bench.noting("b"));
    await bench.pass(100);
    assert.equal(bench.server.poll.mode, "polling");
  });
});

describe("the network", () => {
  test("offline: the poll is given up; online: asks again soon", async () => {
    await bench.stream();
    bench.world.connect(false);
    assert.equal(bench.bus.connection.status, "offline");
    assert(bench.server.poll.isAborted);
    await bench.pass(30_000);
    assert.equal(bench.server.polls.length, 1);
    bench.world.connect(true);
    await bench.pass(600);
    assert.equal(bench.server.polls.length, 2);
    await bench.server.poll.frame();
    assert.equal(bench.bus.connection.status, "connected");
    assert.deepEqual(bench.told("error"), []);
  });

  test("offline with nothing subscribed is idle", async () => {
    bench.bus.start();
    bench.world.connect(false);
    bench.world.connect(true);
    await bench.pass(60_000);
    assert.equal(bench.bus.connection.status, "idle");
  });

  test("a browser that errs about being offline is not believed for ever", async () => {
    await bench.stream();
    bench.world.connect(false);
    await bench.pass(60_000);
    assert.equal(bench.server.polls.length, 2);
  });
});

describe("tokens", () => {
  test("are kept, refreshed once after 401, and not in vain", async () => {
    const asked: boolean[] = [];
    let token = 0;
    bench.bus.tokenProvider = ({ refresh }) => {
      asked.push(refresh);
      return `t${token++}`;
    };
    const sent = (): unknown => bench.server.poll.exchange.headers.Authorization;
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    assert.equal(sent(), "Bearer t0");
    await bench.server.poll.refuse(401);
    await bench.pass(100);
    assert.equal(sent(), "Bearer t1");
    assert.deepEqual(bench.told("error"), []);
    await bench.server.poll.refuse(401);
    const [error] = bench.told("error");
    assert(error instanceof HttpError && error.status === 401);
    await bench.pass(550);
    await bench.server.poll.frame();
    bench.bus.subscribe("/b", bench.noting("b"));
    await bench.pass(100);
    assert.equal(sent(), "Bearer t2");
    // The next one that expires is refreshed without a word as well.
    const told = bench.told("error").length;
    await bench.server.poll.refuse(401);
    await bench.pass(100);
    assert.equal(sent(), "Bearer t3");
    assert.equal(bench.told("error").length, told);
    assert.deepEqual(asked, [false, true, true, true]);
  });

  test("of another user come from another provider", async () => {
    bench.bus.tokenProvider = () => "ada";
    await bench.stream();
    bench.bus.tokenProvider = ({ refresh }) => `grace ${refresh}`;
    bench.bus.subscribe("/b", bench.noting("b"));
    await bench.pass(100);
    assert.equal(bench.server.poll.exchange.headers.Authorization, "Bearer grace false");
    bench.bus.tokenProvider = () => null;
    bench.bus.subscribe("/c", bench.noting("c"));
    await bench.pass(100);
    assert.equal(bench.server.poll.exchange.headers.Authorization, undefined);
  });

  test("one provider call at a time, also when subscriptions change meanwhile", async () => {
    let calls = 0;
    let give = (_: string): void => undefined;
    bench.bus.tokenProvider = () => {
      calls += 1;
      return new Promise((resolve) => (give = resolve));
    };
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    bench.bus.subscribe("/b", bench.noting("b"));
    await bench.pass(200);
    assert.equal(calls, 1);
    give("t");
    await bench.pass(0);
    assert.equal(bench.server.polls.length, 1);
    assert.deepEqual(bench.server.poll.positions, { "/a": -1, "/b": -1 });
  });

  test("a provider that fails is a failure like others", async () => {
    bench.bus.tokenProvider = () => Promise.reject(new Error("login first"));
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    const [error] = bench.told("error");
    assert(error instanceof TokenError);
    assert.equal(bench.server.polls.length, 0);
    assert.equal(bench.bus.connection.status, "failing");
    bench.bus.tokenProvider = () => "now";
    await bench.pass(550);
    assert.equal(bench.server.polls.length, 1);
  });

  test("without a provider 401 is a failure", async () => {
    bench.bus.subscribe("/a", bench.noting("a"));
    await bench.pass(0);
    await bench.server.poll.refuse(401);
    assert.equal(bench.bus.connection.status, "failing");
  });
});

describe("pause", () => {
  test("holds messages back until resume", async () => {
    await bench.stream();
    bench.bus.pause();
    assert.equal(bench.bus.status(), "paused");
    await bench.server.poll.frame(message("/a", 1), message("/a", 2));
    assert.deepEqual(bench.received, []);
    assert.deepEqual(bench.bus.exportPositions(), { "/a": 0 });
    // Another poll meanwhile does not ask for them a second time.
    bench.bus.subscribe("/b", bench.noting("b"));
    await bench.pass(100);
    assert.equal(bench.server.poll.positions["/a"], 2);
    bench.bus.resume();
    assert.deepEqual(bench.received, [
      ["a", 1],
      ["a", 2],
    ]);
    assert.deepEqual(bench.bus.exportPositions(), { "/a": 2 });
    assert.equal(bench.bus.status(), "started");
  });

  test("a status does not pass what is held back", async () => {
    await bench.stream();
    bench.bus.pause();
    await bench.server.poll.frame(message("/a", 1), status({ "/a": 5 }));
    assert.deepEqual(bench.bus.exportPositions(), { "/a": 0 });
    bench.bus.resume();
    assert.deepEqual(bench.bus.exportPositions(), { "/a": 5 });
  });

  test("a callback that ends itself on resume is not called again", async () => {
    const seen: unknown[] = [];
    const once = (data: unknown): void => {
      seen.push(data);
      bench.bus.unsubscribe("/a", once);
    };
    bench.bus.subscribe("/a", once, 0);
    await bench.pass(0);
    bench.bus.pause();
    await bench.server.poll.frame(message("/a", 1), message("/a", 2));
    bench.bus.resume();
    assert.deepEqual(seen, [1]);
  });

  test("what was unsubscribed meanwhile is not called", async () => {
    await bench.stream();
    bench.bus.pause();
    await bench.server.poll.frame(message("/a", 1));
    bench.bus.unsubscribe("/a");
    bench.bus.resume();
    assert.deepEqual(bench.received, []);
  });

  test("a long one leaves the rest to the backlog", async () => {
    await bench.stream();
    bench.bus.pause();
    const many = Array.from({ length: 1000 }, (_, index) => message("/a", index + 1));
    await bench.server.poll.frame(...many);
    assert(bench.server.poll.isAborted);
    await bench.pass(60_000);
    assert.equal(bench.server.polls.length, 1);
    bench.bus.resume();
    await bench.pass(0);
    assert.equal(bench.received.length, 1000);
    assert.deepEqual(bench.server.poll.positions, { "/a": 1000 });
  });
});

describe("stop", () => {
  test("ends the poll and all timers; start goes on from there", async () => {
    await bench.stream();
    await bench.server.poll.frame(message("/a", 1));
    bench.bus.stop();
    bench.bus.stop();
    assert(bench.server.poll.isAborted);
    assert.equal(bench.world.timers, 0);
    assert.equal(bench.bus.connection.status, "stopped");
    await bench.pass(1000);
    bench.bus.start();
    bench.bus.start();
    await bench.pass(0);
    assert.equal(bench.server.polls.length, 2);
    assert.deepEqual(bench.server.poll.positions, { "/a": 1 });
  });
});

describe("positions", () => {
  test("are exported and imported", async () => {
    const { bus } = bench;
    bus.importPositions({ "/a": 7, "/bad": -3, "/worse": 1.5 });
    bus.subscribe("/a", bench.noting("a"));
    bus.subscribe("/bad", bench.noting("bad"));
    bus.subscribe("/b", bench.noting("b"), 2);
    await bench.pass(0);
    assert.deepEqual(bench.server.poll.positions, { "/a": 7, "/bad": -1, "/b": 2 });
    await bench.server.poll.frame(message("/a", 8));
    assert.deepEqual(bus.exportPositions(), { "/a": 8, "/b": 2 });
    bus.subscribe("/a", bench.noting("behind"), 3);
    bus.subscribe("/a", bench.noting("ahead"), 9);
    assert.deepEqual(bus.exportPositions(), { "/a": 3, "/b": 2 });
  });
});

describe("iteration", () => {
  test("over a channel, until the loop is left", async () => {
    const seen: number[] = [];
    const loop = (async () => {
      for await (const each of bench.bus.messages<number>("/a", { lastId: 0 })) {
        seen.push(each.data);
        if (each.message_id === 2) break;
      }
    })();
    await bench.pass(0);
    await bench.server.poll.frame(message("/a", 1), message("/a", 2), message("/a", 3));
    await loop;
    assert.deepEqual(seen, [1, 2]);
    assert.deepEqual(bench.bus.callbacks, []);
  });

  test("ends with the signal's reason", async () => {
    const controller = new AbortController();
    const iterator = bench.bus.messages("/a", { signal: controller.signal });
    const next = iterator.next();
    await bench.pass(0);
    controller.abort(new Error("enough"));
    await assert.rejects(next, /enough/);
    assert.deepEqual(bench.bus.callbacks, []);
  });

  test("that is slow leaves the channel and comes back for the rest", async () => {
    const iterator = bench.bus.messages<number>("/a", { lastId: 0, buffer: 2 });
    const first = iterator.next();
    await bench.pass(0);
    const frame = [1, 2, 3, 4].map((id) => message("/a", id));
    await bench.server.poll.frame(...frame);
    assert.equal((await first).value?.data, 1);
    assert.deepEqual(bench.bus.callbacks, []);
    assert.equal((await iterator.next()).value?.data, 2);
    const third = iterator.next();
    await bench.pass(100);
    assert.deepEqual(bench.server.poll.positions, { "/a": 2 });
    await bench.server.poll.frame(message("/a", 3));
    assert.equal((await third).value?.data, 3);
    await iterator.return(undefined);
  });
});

describe("events", () => {
  test("tell the state's changes once each", async () => {
    await bench.stream();
    await bench.server.poll.frame();
    await bench.pass(25_000);
    await bench.server.poll.end();
    await bench.pass(100);
    await bench.server.poll.frame();
    bench.bus.stop();
    assert.deepEqual(
      bench.told("state").map((state) => state.status),
      ["connecting", "connected", "stopped"],
    );
    assert.deepEqual(bench.told("state")[1], {
      status: "connected",
      mode: "streaming",
      transport: "test",
    });
  });

  test("tell of a way from idle to connected, and of another mode", async () => {
    await bench.stream();
    bench.bus.unsubscribe("/a");
    bench.bus.subscribe("/a", bench.noting("a"), 0);
    bench.bus.enableLongPolling = false;
    await bench.pass(100);
    await bench.server.poll.json();
    assert.deepEqual(
      bench.told("state").map((state) => `${state.status} ${state.mode}`),
      [
        ...["connecting undefined", "connected streaming", "idle streaming"],
        ...["connecting streaming", "connected polling"],
      ],
    );
  });

  test("a listener can be taken off, and one that throws stops nobody", async () => {
    const shown = mock.method(console, "error", () => undefined);
    const seen: string[] = [];
    const fresh = new Bench();
    const off = fresh.bus.on("state", () => seen.push("off"));
    off();
    fresh.bus.on("state", () => {
      throw new Error("oops");
    });
    fresh.bus.on("state", () => seen.push("on"), { signal: AbortSignal.abort() });
    fresh.bus.on("state", ({ status: each }) => seen.push(each));
    fresh.bus.start();
    shown.mock.restore();
    assert.deepEqual(seen, ["idle"]);
    assert.equal(shown.mock.callCount(), 1);
  });
});

describe("arguments", () => {
  test("of wrong types are refused", () => {
    const { bus } = bench;
    assert.throws(() => bus.subscribe(1 as never, () => undefined), TypeError);
    assert.throws(() => bus.subscribe("/a", () => undefined, "5" as never), TypeError);
    assert.deepEqual(bus.callbacks, []);
  });

  test("methods work without their object", async () => {
    const { subscribe, unsubscribe, status: how } = bench.bus;
    const callback = bench.noting("a");
    assert.equal(subscribe("/a", callback), callback);
    assert.equal(how(), "started");
    assert.equal(unsubscribe("/a", callback), true);
  });
});

test("longPoll is the open poll, and giving it up brings another", async () => {
  await bench.stream();
  await bench.pass(1000);
  bench.bus.longPoll?.abort();
  assert.equal(bench.bus.longPoll, null);
  await bench.pass(0);
  assert.equal(bench.server.polls.length, 2);
});
