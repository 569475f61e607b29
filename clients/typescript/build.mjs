// Builds the scripts that are one file each; `tsc` has built the modules.
import { build } from "esbuild";

const common = {
  bundle: true,
  minify: true,
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
