/** The SharedWorker's script: a hub for the pages that connect. */

import { SharingHub } from "./hub.js";
import { lifeLock } from "./link.js";
import { whenReleased } from "./locks.js";
import type { FromPage } from "./worker-link.js";

const hub = new SharingHub();

addEventListener("connect", (event) => {
  const [port] = (event as MessageEvent).ports;
  if (!port) return;
  port.onmessage = ({ data: { page, message } }: MessageEvent<FromPage>) => {
    const isNew = hub.receive(page, message, (answer) => port.postMessage(answer));
    // A port does not tell that the page at its other end has gone.
    if (isNew) whenReleased(lifeLock(page), () => hub.leave(page));
  };
});
