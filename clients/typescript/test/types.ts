/** What the types promise. Nothing runs here: that it compiles is the test. */

import {
  CallbackError,
  HttpError,
  MessageBus,
  MessageBusError,
  type Callback,
  type ConnectionState,
  type Gap,
  type Message,
  type Settings,
  type Transport,
} from "../source/index.js";
import {
  Publisher,
  type BatchResult,
  type Notice,
  type Published,
  type Queued,
  type StoredMessage,
} from "../source/publisher.js";
import { sharedConnection } from "../source/sharing/index.js";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2
  ? true
  : false;
function isSame<A, B>(_: Equal<A, B>): void {}

type Kinds = Notice["kind"];

interface Chat {
  text: string;
}

declare const signal: AbortSignal;
declare const transport: Transport;

export async function checked(): Promise<void> {
  const bus = new MessageBus({ baseUrl: "/sub/", connect: sharedConnection({ worker: "/w.js" }) });

  // Data are unknown unless the callback says what they are.
  bus.subscribe("/a", (data) => isSame<typeof data, unknown>(true));
  const chat = bus.subscribe("/a", (data: Chat, globalId, messageId) => {
    isSame<typeof globalId, number>(true);
    isSame<typeof messageId, number>(true);
    void data.text;
  });
  isSame<typeof chat, Callback<Chat>>(true);
  bus.subscribe<Chat>("/a", (data) => isSame<typeof data, Chat>(true), -3);
  bus.subscribe("/a", () => undefined, null);
  bus.subscribe("/a", () => undefined, { lastId: 5, signal, onGap: (gap: Gap) => gap.reason });
  isSame<ReturnType<typeof bus.unsubscribe>, boolean>(true);
  bus.unsubscribe("/a", chat);
  bus.unsubscribe("/a/*");
  // @ts-expect-error a position is a number
  bus.subscribe("/a", () => undefined, "5");
  // @ts-expect-error a channel is a string
  bus.subscribe(5, () => undefined);
  // @ts-expect-error no such option
  bus.subscribe("/a", () => undefined, { lastID: 5 });

  // Settings may be set, and only to what they can be.
  bus.callbackInterval = 500;
  bus.shouldLongPollCallback = () => true;
  bus.shouldLongPollCallback = undefined;
  bus.tokenProvider = async ({ refresh }) => (refresh ? "new" : null);
  bus.transport = transport;
  const settings: Settings = bus;
  void settings;
  // @ts-expect-error milliseconds
  bus.callbackInterval = "500";
  // @ts-expect-error no such setting
  new MessageBus({ callbackIntervall: 500 });
  isSame<ReturnType<typeof bus.status>, "paused" | "started" | "stopped">(true);

  // Events know what they bring.
  const off = bus.on("state", (state) => isSame<typeof state, ConnectionState>(true));
  isSame<typeof off, () => void>(true);
  bus.on("error", (error) => {
    isSame<typeof error, MessageBusError>(true);
    if (error instanceof HttpError) isSame<typeof error.status, number>(true);
    if (error instanceof CallbackError) isSame<typeof error.channel, string>(true);
  });
  // @ts-expect-error no such event
  bus.on("message", () => undefined);
  // @ts-expect-error the state cannot be set
  bus.connection.status = "connected";

  for await (const message of bus.messages<Chat>("/a", { signal })) {
    isSame<typeof message, Message<Chat>>(true);
  }
  isSame<ReturnType<typeof bus.exportPositions>, Record<string, number>>(true);

  const publisher = new Publisher({ url: "http://127.0.0.1:8091", key: "k" });
  const published = await publisher.publish("/a", { x: 1 }, { userIds: [1, "2"], signal });
  isSame<typeof published, Published | Queued>(true);
  if ("queued" in published) isSame<typeof published.queued, true>(true);
  const results = await publisher.publishBatch([{ channel: "/a", data: 1 }]);
  isSame<typeof results, BatchResult[]>(true);
  // @ts-expect-error data are needed
  await publisher.publishBatch([{ channel: "/a" }]);
  for await (const each of publisher.subscribe<Chat>({ "/a": 5, "/b": null }, { signal })) {
    isSame<typeof each, StoredMessage<Chat>>(true);
    break;
  }
  const all = publisher.subscribeAll(5, { onNotice: ({ kind }) => isSame<typeof kind, Kinds>(true) });
  isSame<typeof all.lastId, number>(true);
  isSame<ReturnType<typeof publisher.subscribe>["positions"], Record<string, number>>(true);
  // @ts-expect-error not a single channel
  publisher.subscribe("/a");
  // @ts-expect-error ids are strings and numbers
  await publisher.publish("/a", 1, { userIds: [null] });
}
