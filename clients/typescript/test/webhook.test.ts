import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { InvalidWebhook, WebhookVerifier } from "../source/webhook.js";
import { vectors } from "./support/vectors.js";

interface Case {
  name: string;
  secrets: string[];
  headers: Record<string, string>;
  body: string;
  now: number;
  tolerance: number;
  error: string | null;
}

const { cases } = vectors<{ cases: Case[] }>("signatures");

describe("signatures", () => {
  for (const each of cases) {
    test(each.name, async () => {
      const { tolerance } = each;
      const verifier = new WebhookVerifier(each.secrets, { tolerance, now: () => each.now * 1000 });
      for (const body of [each.body, new TextEncoder().encode(each.body)]) {
        const outcome = await verifier.verify(body, each.headers).then(
          ({ id }) => {
            assert.equal(id, "msg_1");
            return null;
          },
          (error: unknown) => {
            assert(error instanceof InvalidWebhook);
            return error.fault;
          },
        );
        assert.equal(outcome, each.error);
      }
    });
  }

  test("headers of fetch", async () => {
    const [good] = cases;
    assert(good && good.error === null);
    const verifier = new WebhookVerifier(good.secrets, { now: () => good.now * 1000 });
    await verifier.verify(good.body, new Headers(good.headers));
  });
});

test("secrets that are none are refused at once", () => {
  for (const secrets of ["", "whsec_", "whsec_!", []]) {
    assert.throws(() => new WebhookVerifier(secrets), TypeError);
  }
});
