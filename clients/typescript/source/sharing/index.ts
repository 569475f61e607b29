/** One connection for all pages of an origin: `messagebusd-client/sharing`. */

import type { Connect } from "../connection.js";
import { Poller } from "../poller.js";
import { electedLink } from "./elected-link.js";
import { canShare } from "./locks.js";
import { Member, type OpenLink } from "./member.js";
import { workerLink } from "./worker-link.js";

/** Settings of `sharedConnection`. */
export interface SharingOptions {
  /** The script `worker.js` of this package, served from the page's own origin. */
  worker?: string | URL | undefined;
  /** Pages share if they have this in common. Put the user into it where one may follow another. */
  name?: string | undefined;
}

/**
 * Share one connection between all pages of this origin.
 *
 * By a SharedWorker if `worker` is given and can be started, otherwise by one of the pages; where
 * neither is possible (no Web Locks: an old browser, or no HTTPS) each page polls for itself. The
 * connection's state says which: `sharedBy`.
 */
export function sharedConnection({ worker, name = "bus" }: SharingOptions = {}): Connect {
  return (host) => {
    if (!canShare()) return new Poller(host);
    const ways: OpenLink[] = [(page, told) => electedLink(name, page, told)];
    if (worker !== undefined && typeof SharedWorker === "function") {
      ways.unshift((page, told) => workerLink(worker, name, page, told));
    }
    return new Member(host, ways);
  };
}
