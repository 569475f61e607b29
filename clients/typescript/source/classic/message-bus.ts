/** The classic script `message-bus.js`: the global `MessageBus`, for pages of the original. */

import { publish } from "./global.js";

publish();
