/** A real messagebusd, on ports of its own. */

import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(new URL("../../../../../.venv/bin/messagebusd", import.meta.url));

export class Daemon {
  url = "";
  readonly key = "a-key-for-the-tests-of-the-typescript-client";
  #process: ChildProcess | undefined;

  async start(settings: Record<string, string> = {}): Promise<void> {
    const child = spawn(PROGRAM, ["serve"], {
      env: {
        PATH: process.env.PATH ?? "",
        MESSAGEBUSD_SERVER__LISTEN: "127.0.0.1:0",
        MESSAGEBUSD_API__KEY: this.key,
        MESSAGEBUSD_LOG__FORMAT: "json",
        ...settings,
      },
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#process = child;
    for await (const line of createInterface({ input: child.stderr })) {
      const record = JSON.parse(line) as Record<string, string>;
      if (record.message === "listening") this.url = record.address ?? "";
      if (record.message === "ready") break;
    }
    assert(this.url, "the daemon did not start");
    child.stderr.resume();
  }

  async stop(): Promise<void> {
    const child = this.#process;
    if (!child || child.exitCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  }
}

/** Wait until `condition` holds. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    assert(performance.now() < end, `waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
