// Puts the page together: our files as they are, ONNX Runtime for WebAssembly, and the models.
//
//     node build.mjs [--models FOLDER] [--out FOLDER]
//
// A bundler would have nothing to do: browsers load modules, and ONNX Runtime comes as one.

import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const RUNTIME = join(HERE, "node_modules", "onnxruntime-web");
// Not the default entry, which has WebGPU too and loads 27 MB. This one runs on the CPU.
const RUNTIME_FILES = ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
const MODEL_FILES = ["model.onnx", "feature-maps.onnx"];

function fail(message) {
  console.error(`error: ${message}`);
  process.exit(2);
}

const { values: options } = parseArgs({
  options: {
    models: { type: "string", default: join(HERE, "..", "models") },
    out: { type: "string", default: join(HERE, "dist") },
  },
});
if (!existsSync(RUNTIME)) fail("onnxruntime-web is not installed; run npm ci in demo/");
const list = join(options.models, "models.json");
if (!existsSync(list)) fail(`there is no ${list}, the list of the models`);

rmSync(options.out, { recursive: true, force: true });
cpSync(join(HERE, "src"), options.out, { recursive: true });
for (const file of RUNTIME_FILES) cpSync(join(RUNTIME, "dist", file), join(options.out, "runtime", file));
mkdirSync(join(options.out, "models"));
cpSync(list, join(options.out, "models", "models.json"));
for (const { folder } of JSON.parse(readFileSync(list, "utf8")).models) {
  for (const file of MODEL_FILES) {
    cpSync(join(options.models, folder, file), join(options.out, "models", folder, file));
  }
}
