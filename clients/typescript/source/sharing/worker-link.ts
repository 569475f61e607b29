import { type Link, type LinkListener } from "./link.js";
import type { ToHub, ToPage } from "./protocol.js";

/** What a page and the worker pass through their port. */
export interface FromPage {
  readonly page: string;
  readonly message: ToHub;
}

/** A page's way to the SharedWorker from `url`, which must be of the page's own origin. */
export function workerLink(url: string | URL, name: string, page: string, told: LinkListener): Link {
  const worker = new SharedWorker(url, { name });
  worker.onerror = () => told.failed();
  worker.port.onmessage = ({ data }: MessageEvent<ToPage>) => told.receive(data);
  told.newHub();
  return {
    sharedBy: "worker",
    post: (message) => worker.port.postMessage({ page, message } satisfies FromPage),
    shown: () => undefined,
    close: () => worker.port.close(),
  };
}
