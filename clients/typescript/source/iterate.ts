import type { SubscribeOptions } from "./client.js";
import type { Callback, Message } from "./types.js";

/** How to iterate over a channel. */
export interface IterateOptions extends Omit<SubscribeOptions, "onGap"> {
  /** Messages that wait for a slow loop; beyond, the channel is left until they are taken. */
  buffer?: number;
}

interface Subscribing {
  subscribe(channel: string, callback: Callback<never>, options: SubscribeOptions): unknown;
  unsubscribe(channel: string, callback: Callback<never>): boolean;
}

/**
 * Iterate over a channel, without end.
 *
 * Leaving the loop unsubscribes; when `signal` aborts, the loop throws its reason. Nothing is lost
 * with a slow loop, as long as it is in the backlog.
 */
export async function* iterate<T>(
  bus: Subscribing,
  channel: string,
  { lastId, signal, buffer = 1000 }: IterateOptions = {},
): AsyncGenerator<Message<T>> {
  signal?.throwIfAborted();
  const waiting: Message<T>[] = [];
  let isSubscribed = false;
  let from = lastId;
  let wake = (): void => undefined;
  const take = (data: T, globalId: number, messageId: number): void => {
    waiting.push({ global_id: globalId, message_id: messageId, channel, data });
    from = messageId;
    if (waiting.length >= buffer) leave();
    wake();
  };
  const leave = (): void => {
    isSubscribed = false;
    bus.unsubscribe(channel, take);
  };
  const aborted = (): void => wake();
  signal?.addEventListener("abort", aborted);
  try {
    for (;;) {
      if (!isSubscribed && waiting.length === 0) {
        isSubscribed = true;
        bus.subscribe(channel, take, { lastId: from });
      }
      const next = waiting.shift();
      if (next) {
        yield next;
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      signal?.throwIfAborted();
    }
  } finally {
    signal?.removeEventListener("abort", aborted);
    if (isSubscribed) leave();
  }
}
