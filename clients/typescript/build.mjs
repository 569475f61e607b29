// Builds the scripts that are one file each; `tsc` has built the modules.
import { build } from "esbuild";

// Names of members that never leave their script, as those of settings, of transports and of what
// pages and workers say to each other do. Private members (`#x`) are shortened without this.
const INTERNAL = [
  ...["takingPart", "ask", "alone", "told", "rest", "keepsWaiting", "wantsMore", "accepted"],
  ...["givenUp", "firstChunkTimer", "staleTimer", "gotData", "isPaused", "isFull", "threw"],
  ...["answerToken", "refuseToken", "newHub"],
];

const common = {
  bundle: true,
  minify: true,
  mangleProps: new RegExp(`^(${INTERNAL.join("|")})$`),
  // Edge, Chrome and Firefox of 2021, Safari of 2022: private class members and their like.
  target: ["es2022"],
  format: "iife",
  legalComments: "none",
  logLevel: "warning",
};

await build({
  ...common,
  outdir: "dist/classic",
  entryPoints: {
    "message-bus": "source/classic/message-bus.ts",
    sharing: "source/classic/sharing.ts",
    worker: "source/sharing/worker.ts",
  },
});
