// Puts the page together: our files as they are, ONNX Runtime for WebAssembly, and the models.
//
//     node build.mjs [--models FOLDER] [--out FOLDER]
//
// A bundler would have nothing to do: browsers load modules, and ONNX Runtime comes as one.

import { cpSync, existsSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
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

function readOptions() {
  const folder = (path) => ({ type: "string", default: path });
  try {
    return parseArgs({ options: { models: folder(join(HERE, "..", "models")), out: folder(join(HERE, "dist")) } }).values;
  } catch (error) {
    return fail(error.message.split("\n")[0]);
  }
}

const options = readOptions();
if (!existsSync(RUNTIME)) fail("onnxruntime-web is not installed; run npm ci in demo/");
const list = join(options.models, "models.json");
if (!existsSync(list)) fail(`there is no ${list}, the list of the models`);
const folders = JSON.parse(readFileSync(list, "utf8")).models.map(({ folder }) => folder);
const files = ["models.json", ...folders.flatMap((folder) => MODEL_FILES.map((file) => join(folder, file)))];
const missing = files.find((file) => !existsSync(join(options.models, file)));
if (missing) fail(`there is no ${join(options.models, missing)}`);
const isEmpty = (path) => !existsSync(path) || (statSync(path).isDirectory() && !readdirSync(path).length);
if (!isEmpty(options.out) && !existsSync(join(options.out, "runtime"))) {
  fail(`${options.out} is not this page and not empty; give another folder with --out`);
}

rmSync(options.out, { recursive: true, force: true });
cpSync(join(HERE, "src"), options.out, { recursive: true });
for (const file of RUNTIME_FILES) cpSync(join(RUNTIME, "dist", file), join(options.out, "runtime", file));
for (const file of files) cpSync(join(options.models, file), join(options.out, "models", file));
