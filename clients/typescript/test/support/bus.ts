import { MessageBus, type ClientOptions, type Events } from "../../source/index.js";
import { Server } from "./server.js";
import { settle, World } from "./world.js";

/** A client in a world of its own, whose polls the test answers, and what it received. */
export class Bench {
  readonly world = new World();
  readonly server = new Server();
  readonly bus: MessageBus;
  readonly received: unknown[] = [];
  readonly events: [keyof Events, Events[keyof Events]][] = [];

  constructor(options: ClientOptions = {}) {
    this.bus = new MessageBus({
      environment: this.world,
      transport: this.server,
      clientId: "c1",
      ...options,
    });
    for (const name of ["state", "error", "gap", "fallback"] as const) {
      this.bus.on(name, (event) => this.events.push([name, event]));
    }
  }

  /** A callback that notes the data under a name. */
  noting(name: string): (data: unknown) => void {
    return (data) => void this.received.push([name, data]);
  }

  /** The events of one name. */
  told<Name extends keyof Events>(name: Name): Events[Name][] {
    return this.events.flatMap(([each, event]) => (each === name ? [event as Events[Name]] : []));
  }

  /** Subscribe to /a from an id on, and see the stream begin. */
  async stream(lastId = 0): Promise<void> {
    this.bus.subscribe("/a", this.noting("a"), lastId);
    await this.world.pass(0);
    await this.server.poll.frame();
  }

  async pass(milliseconds: number): Promise<void> {
    await this.world.pass(milliseconds);
    await settle();
  }
}
