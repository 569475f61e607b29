import { MessageBus } from "../client.js";
import { ajaxTransport, defaultAjax, type Ajax } from "../transport/ajax.js";

class ClassicBus extends MessageBus {
  #ajax: Ajax = defaultAjax;

  /** As the original's setting: a page that sets its own has its polls sent by that. */
  get ajax(): Ajax {
    return this.#ajax;
  }

  set ajax(ajax: Ajax) {
    this.#ajax = ajax;
    this.transport = ajax === defaultAjax ? undefined : ajaxTransport(ajax);
  }
}

declare const define:
  | (((names: string[], factory: () => unknown) => void) & { amd?: unknown })
  | undefined;

/** Make the global `MessageBus`, and an AMD module where there is a loader; as the original. */
export function publish(): MessageBus {
  const bus = new ClassicBus();
  Object.assign(globalThis, { MessageBus: bus });
  if (typeof define === "function" && define.amd) define([], () => bus);
  return bus;
}
