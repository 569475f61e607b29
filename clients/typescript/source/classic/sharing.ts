/** The classic script `sharing.js`, instead of `message-bus.js`: with `MessageBus.share`. */

import { sharedConnection, type SharingOptions } from "../sharing/index.js";
import { publish } from "./global.js";

const bus = publish();
Object.assign(bus, {
  share: (options?: SharingOptions) => bus.connectBy(sharedConnection(options)),
});
