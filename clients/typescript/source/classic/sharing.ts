/** The classic script `sharing.js`, loaded after `message-bus.js`: adds `MessageBus.share`. */

import type { MessageBus } from "../client.js";
import { sharedConnection, type SharingOptions } from "../sharing/index.js";

const bus = (globalThis as unknown as { MessageBus: MessageBus }).MessageBus;
Object.assign(bus, {
  share: (options?: SharingOptions) => bus.connectBy(sharedConnection(options)),
});
