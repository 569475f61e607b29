import assert from "node:assert/strict";
import { after, before, describe, test, type TestContext } from "node:test";

import { MessageBus, type ClientOptions, type ConnectionState } from "../source/index.js";
import { HttpError, NetworkError, Publisher, type Notice } from "../source/publisher.js";
import { Daemon, until } from "./support/daemon.js";
import { settle } from "./support/world.js";

const daemon = new Daemon();
let publisher: Publisher;
before(async () => {
  await daemon.start();
  publisher = new Publisher({ url: daemon.url, key: daemon.key });
});
after(() => daemon.stop());

let count = 0;
/** A channel of the test's own. */
const channel = (): string => `/typescript/${++count}`;

function client(context: TestContext, options: ClientOptions = {}): MessageBus {
  const bus = new MessageBus({ baseUrl: `${daemon.url}/`, ...options });
  context.after(() => bus.stop());
  return bus;
}

const short = { callbackInterval: 50, minPollInterval: 10 };
const modes: Record<string, ClientOptions> = {
  streaming: short,
  "long-polling": { ...short, enableChunkedEncoding: false },
  polling: { ...short, enableLongPolling: false },
};

describe("receiving", () => {
  for (const [mode, options] of Object.entries(modes)) {
    test(`${mode}: everything, once and in order`, async (context) => {
      const name = channel();
      await publisher.publish(name, "before");
      const bus = client(context, options);
      const seen: [unknown, number, number][] = [];
      bus.subscribe(name, (...each) => void seen.push(each), 0);
      await until(() => seen.length === 1, "the backlog is here");
      for (let number = 1; number <= 5; number += 1) {
        await publisher.publish(name, { number, text: "ä€🚌 \r\n|\r\n" });
        await until(() => seen.length > number, `message ${number} is here`);
      }
      await publisher.publishBatch(
        Array.from({ length: 200 }, (_, index) => ({ channel: name, data: index })),
      );
      await until(() => seen.length === 206, "the burst is here");
      assert.deepEqual(
        seen.map(([, , id]) => id),
        Array.from({ length: 206 }, (_, index) => index + 1),
      );
      assert.deepEqual(seen[5]?.[0], { number: 5, text: "ä€🚌 \r\n|\r\n" });
      assert.equal(bus.connection.mode, mode);
      assert.equal(bus.connection.transport, "fetch");
    });
  }

  test("positions as the server understands them", async (context) => {
    const positions = [-1, -2, -3, -100, 0, 3, 5, 99];
    const names = new Map(positions.map((position) => [position, channel()]));
    const messages = [...names.values()].flatMap((name) =>
      [1, 2, 3, 4, 5].map((data) => ({ channel: name, data })),
    );
    await publisher.publishBatch(messages);
    const bus = client(context, short);
    const seen = new Map<number, unknown[]>();
    for (const [position, name] of names) {
      seen.set(position, []);
      bus.subscribe(name, (data) => seen.get(position)?.push(data), position);
    }
    await until(() => bus.callbacks.every((each) => each.last_id === 5), "all are settled");
    assert.deepEqual(
      positions.map((position) => seen.get(position)?.length),
      [0, 1, 2, 5, 5, 2, 0, 0],
    );
  });

  test("two callbacks on one channel each catch up, and both go on live", async (context) => {
    const name = channel();
    await publisher.publishBatch([1, 2, 3, 4, 5].map((data) => ({ channel: name, data })));
    const bus = client(context, short);
    const seen: Record<string, unknown[]> = { first: [], second: [], late: [] };
    bus.subscribe(name, (data) => seen.first?.push(data), 3);
    bus.subscribe(name, (data) => seen.second?.push(data), -1);
    await until(() => bus.callbacks.every((each) => each.last_id === 5), "both are settled");
    await until(() => bus.connection.mode === "streaming", "it streams");
    await publisher.publish(name, 6);
    await until(() => seen.second?.length === 1, "it is live");
    bus.subscribe(name, (data) => seen.late?.push(data), -4);
    await until(() => seen.late?.length === 3, "the late one has caught up");
    await publisher.publish(name, 7);
    await until(() => seen.late?.length === 4, "all are live");
    assert.deepEqual(seen, { first: [4, 5, 6, 7], second: [6, 7], late: [4, 5, 6, 7] });
  });

  test("by iteration", async (context) => {
    const name = channel();
    const bus = client(context, short);
    await publisher.publishBatch([1, 2, 3].map((data) => ({ channel: name, data })));
    const seen: number[] = [];
    for await (const { data } of bus.messages<number>(name, { lastId: 1 })) {
      seen.push(data);
      if (data === 3) break;
    }
    assert.deepEqual(seen, [2, 3]);
  });

  test("a second subscription does not wait", async (context) => {
    const [first, second] = [channel(), channel()];
    // The original waits for this.
    const bus = client(context, { callbackInterval: 60_000 });
    let isHere = false;
    bus.subscribe(first, () => undefined);
    await until(() => bus.connection.status === "connected", "it is connected");
    await publisher.publish(second, "hello");
    bus.subscribe(second, () => (isHere = true), 0);
    await until(() => isHere, "the second is served");
  });

  test("nobody there: told, and tried again", async (context) => {
    const bus = client(context, { ...short, baseUrl: "http://127.0.0.1:1/" });
    const states: ConnectionState["status"][] = [];
    bus.on("state", ({ status }) => states.push(status));
    bus.subscribe("/foo", () => undefined);
    await until(() => states.length >= 4, "it has failed twice");
    assert.deepEqual(states.slice(0, 4), ["connecting", "failing", "connecting", "failing"]);
  });
});

describe("publishing", () => {
  test("with audience and limits", async () => {
    const name = channel();
    const published = await publisher.publish(
      name,
      { a: 1 },
      { userIds: [1, "x"], groupIds: [2], maxBacklogSize: 10, maxBacklogAge: 60 },
    );
    assert.deepEqual(Object.keys(published), ["channel", "message_id", "global_id"]);
    const { messages, more } = await publisher.backlog(name);
    assert.equal(more, false);
    assert.deepEqual(messages[0]?.data, { a: 1 });
    assert.deepEqual(messages[0]?.user_ids, [1, "x"]);
    assert.deepEqual(messages[0]?.group_ids, [2]);
  });

  test("a key publishes once", async () => {
    const name = channel();
    const first = await publisher.publish(name, 1, { idempotencyKey: name });
    assert.deepEqual(await publisher.publish(name, 1, { idempotencyKey: name }), first);
    await assert.rejects(publisher.publish(name, 2, { idempotencyKey: name }), {
      status: 422,
      code: "idempotency_conflict",
    });
    assert.equal(await publisher.lastId(name), 1);
  });

  test("an answer that was lost does not publish twice", async () => {
    const name = channel();
    let requests = 0;
    const waits: number[] = [];
    const unlucky = new Publisher({
      url: daemon.url,
      key: daemon.key,
      random: () => 0.5,
      sleep: (milliseconds) => {
        waits.push(milliseconds);
        return Promise.resolve();
      },
      fetch: async (...args) => {
        const answer = await fetch(...args);
        requests += 1;
        if (requests < 3) throw new TypeError("connection reset");
        return answer;
      },
    });
    await unlucky.publish(name, "once");
    assert.equal(requests, 3);
    assert.deepEqual(waits, [100, 200]);
    assert.equal(await publisher.lastId(name), 1);
  });

  test("batches, refusals by themselves", async () => {
    const name = channel();
    const [first, second, third] = await publisher.publishBatch([
      { channel: name, data: 1 },
      { channel: name, data: 2, userIds: [] },
      { channel: name, data: 3 },
    ]);
    assert(first && "message_id" in first && first.message_id === 1);
    assert(second && "error" in second && second.error.code === "invalid_audience");
    assert(third && "message_id" in third && third.message_id === 2);
  });

  test("reading", async () => {
    const [name, other] = [channel(), channel()];
    await publisher.publishBatch([1, 2, 3].map((data) => ({ channel: name, data })));
    assert.deepEqual(await publisher.lastIds([name, other]), { [name]: 3, [other]: 0 });
    assert.equal((await publisher.message(name, "last"))?.data, 3);
    assert.equal((await publisher.message(name, 2))?.data, 2);
    assert.equal(await publisher.message(name, 9), undefined);
    const limited = await publisher.backlog(name, { limit: 2 });
    assert.deepEqual([limited.messages.length, limited.more], [2, true]);
    const all: unknown[] = [];
    for await (const each of publisher.allBacklog(name, { lastId: 1 })) all.push(each.data);
    assert.deepEqual(all, [2, 3]);
  });

  test("refusals have the daemon's words, and are not tried again", async () => {
    let requests = 0;
    const stranger = new Publisher({
      url: daemon.url,
      key: "wrong",
      fetch: (...args) => {
        requests += 1;
        return fetch(...args);
      },
    });
    await assert.rejects(stranger.publish("/foo", 1), (error) => {
      assert(error instanceof HttpError);
      assert.equal(error.status, 401);
      assert.equal(error.code, "unauthorized");
      assert(error.problem?.request_id);
      assert(!error.message.includes("wrong"));
      return true;
    });
    assert.equal(requests, 1);
    await assert.rejects(publisher.publish("/__status", 1), { code: "reserved_channel" });
  });

  test("Retry-After is waited for, and then it is enough", async () => {
    const waits: number[] = [];
    const busy = new Publisher({
      url: "http://127.0.0.1:1",
      retries: 2,
      random: () => 0,
      sleep: (milliseconds) => {
        waits.push(milliseconds);
        return Promise.resolve();
      },
      fetch: () => Promise.resolve(new Response("", { status: 503, headers: { "Retry-After": "2" } })),
    });
    await assert.rejects(busy.publish("/foo", 1), { status: 503 });
    assert.deepEqual(waits, [2000, 2000]);
  });

  test("nobody there, and a signal", async () => {
    const nobody = new Publisher({ url: "http://127.0.0.1:1", retries: 0 });
    await assert.rejects(nobody.publish("/foo", 1), NetworkError);
    const signal = AbortSignal.abort(new Error("enough"));
    await assert.rejects(publisher.publish("/foo", 1, { signal }), /enough/);
  });
});

/** The next messages of an iteration. */
async function take<T>(messages: AsyncGenerator<T>, number: number): Promise<T[]> {
  const taken: T[] = [];
  while (taken.length < number) {
    const { value, done } = await messages.next();
    assert(!done);
    taken.push(value);
  }
  return taken;
}

describe("following as a server", () => {
  test("the backlog, then live, whoever it is for; and on in another process", async () => {
    const [name, other] = [channel(), channel()];
    await publisher.publishBatch([1, 2, 3].map((data) => ({ channel: name, data })));
    const messages = publisher.subscribe<number>({ [name]: 1, [other]: null });
    assert.deepEqual((await take(messages, 2)).map((each) => each.data), [2, 3]);
    await publisher.publish(other, 4, { userIds: [7, "x"] });
    const [live] = await take(messages, 1);
    assert.deepEqual([live?.channel, live?.data, live?.user_ids], [other, 4, [7, "x"]]);
    const { positions } = messages;
    assert.deepEqual(positions, { [name]: 3, [other]: 1 });
    await messages.return(undefined);
    await publisher.publish(name, 5);
    const further = publisher.subscribe<number>(positions);
    assert.equal((await take(further, 1))[0]?.data, 5);
    await further.return(undefined);
  });

  test("streams that break are opened again: everything once, and told", async () => {
    const name = channel();
    let cut = (): void => undefined;
    let streams = 0;
    const unlucky = new Publisher({
      url: daemon.url,
      key: daemon.key,
      sleep: () => Promise.resolve(),
      fetch: async (...args) => {
        const answer = await fetch(...args);
        if (!String(args[0]).includes("subscribe")) return answer;
        streams += 1;
        // A network that fails, in the middle of a line perhaps.
        const broken = new TransformStream<Uint8Array, Uint8Array>();
        const controller = new AbortController();
        cut = () => controller.abort(new TypeError("connection reset"));
        answer.body?.pipeTo(broken.writable, { signal: controller.signal }).catch(() => undefined);
        return new Response(broken.readable, { status: answer.status, headers: answer.headers });
      },
    });
    // The last one, whatever is published until the stream is open.
    await publisher.publishBatch([1, 2].map((data) => ({ channel: name, data })));
    const notices: Notice[] = [];
    const onNotice = (notice: Notice): void => void notices.push(notice);
    const messages = unlucky.subscribe<number>({ [name]: -2 }, { onNotice });
    const seen = (await take(messages, 1)).map((each) => each.data);
    for (const data of [3, 4]) {
      cut();
      await publisher.publish(name, data);
      seen.push(...(await take(messages, 1)).map((each) => each.data));
    }
    assert.deepEqual(seen, [2, 3, 4]);
    assert.equal(streams, 3);
    assert.deepEqual(
      notices.map((notice) => notice.kind === "interrupted" && notice.code),
      ["broken", "broken"],
    );
    await messages.return(undefined);
  });

  test("what is gone from the backlog is told", async () => {
    const name = channel();
    await publisher.publish(channel(), 0); // as if ids were shared, otherwise
    await publisher.publishBatch(
      [1, 2, 3, 4].map((data) => ({ channel: name, data, maxBacklogSize: 2 })),
    );
    const notices: Notice[] = [];
    const onNotice = (notice: Notice): void => void notices.push(notice);
    const messages = publisher.subscribe<number>({ [name]: 1 }, { onNotice });
    assert.deepEqual((await take(messages, 2)).map((each) => each.data), [3, 4]);
    assert.deepEqual(notices, [{ kind: "gap", channel: name, after: 1, upTo: 2 }]);
    await messages.return(undefined);
  });

  test("all channels, by global id", async () => {
    const [name, other] = [channel(), channel()];
    const { global_id: from } = (await publisher.publish(name, 1)) as { global_id: number };
    await publisher.publish(other, 2);
    const messages = publisher.subscribeAll(from);
    const [message] = await take(messages, 1);
    assert.deepEqual([message?.channel, message?.data], [other, 2]);
    assert.equal(messages.lastId, message?.global_id);
    await messages.return(undefined);
  });

  test("a silent stream is given up", async (context) => {
    context.mock.timers.enable({ apis: ["setTimeout"] });
    const opened: number[] = [];
    const silent = new Publisher({
      url: "http://127.0.0.1:1",
      sleep: () => Promise.reject(new Error("enough")),
      fetch: () => {
        opened.push(1);
        return Promise.resolve(new Response(new ReadableStream({ start: () => undefined })));
      },
    });
    const notices: Notice[] = [];
    const messages = silent.subscribe(["/a"], { onNotice: (notice) => notices.push(notice) });
    const next = assert.rejects(messages.next(), /enough/);
    await settle();
    assert.equal(opened.length, 1);
    context.mock.timers.tick(29_999);
    await settle();
    assert.equal(notices.length, 0);
    context.mock.timers.tick(1);
    await next;
    assert.deepEqual(
      notices.map((notice) => notice.kind),
      ["interrupted"],
    );
  });

  test("a signal, and refusals that do not pass, end it", async () => {
    const controller = new AbortController();
    const messages = publisher.subscribe([channel()], { signal: controller.signal });
    const next = assert.rejects(messages.next(), /enough/);
    controller.abort(new Error("enough"));
    await next;
    const stranger = new Publisher({ url: daemon.url, key: "wrong" });
    await assert.rejects(stranger.subscribe(["/a"]).next(), { status: 401 });
    assert.throws(() => publisher.subscribe([]), TypeError);
    assert.throws(() => publisher.subscribeAll(-2), RangeError);
  });
});
