// The exported files in ONNX Runtime, as WebAssembly, on one thread.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { SIDE } from "./preparation.js";

export const CLASSES = 10;
const PIXELS = SIDE * SIDE;
const MAX_BYTES = 64 * 2 ** 20;
const INPUT = "image";
const LOGITS = "logits";
const ANSWERS = [LOGITS, "probabilities"];

ort.env.logLevel = "error";
ort.env.wasm.numThreads = 1; // more need two HTTP headers that a plain static server does not send
ort.env.wasm.wasmPaths = { wasm: new URL("./runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };

/** A mistake that the person before the page can mend; the message is one line. */
export class ModelError extends Error {}

/** Grey values 0 to 255 of N images one after the other, as float32 (N, 1, 28, 28) in 0 to 1. */
function toTensor(images) {
  const values = Float32Array.from(images, (grey) => grey / 255);
  return new ort.Tensor("float32", values, [images.length / PIXELS, 1, SIDE, SIDE]);
}

export class Model {
  #session;
  /** Names of the outputs that are feature maps. */
  mapNames;

  constructor(session) {
    this.#session = session;
    this.mapNames = session.outputNames.filter((name) => !ANSWERS.includes(name));
  }

  /**
   * A model from a file's bytes.
   * @throws {ModelError} if it is not a file of `python -m export`
   */
  static async read(bytes, name) {
    let session;
    try {
      session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch {
      throw new ModelError(`${name} is no ONNX file that ONNX Runtime can read.`);
    }
    const model = new Model(session);
    try {
      if (session.inputNames.join() !== INPUT || !ANSWERS.every((each) => session.outputNames.includes(each))) {
        throw new Error();
      }
      if ((await model.logits(new Uint8Array(2 * PIXELS))).length !== 2 * CLASSES) throw new Error();
    } catch {
      await session.release();
      throw new ModelError(`${name} is another network: it has not the inputs and outputs of python -m export.`);
    }
    return model;
  }

  static async fetch(url) {
    const response = await fetch(url).catch(() => null);
    if (!response) throw new ModelError(`The server does not answer, so ${url} could not be loaded.`);
    if (!response.ok) throw new ModelError(`The server has no ${url}: build the page again.`);
    return Model.read(new Uint8Array(await response.arrayBuffer()), url);
  }

  static async open(file) {
    if (file.size > MAX_BYTES) throw new ModelError(`${file.name} is larger than 64 MiB, so it is not one of ours.`);
    const bytes = await file.arrayBuffer().catch(() => null);
    if (!bytes) throw new ModelError(`${file.name} cannot be read.`);
    return Model.read(new Uint8Array(bytes), file.name);
  }

  /** Logits of N images, Uint8Array (N x 784), as Float32Array (N x 10). */
  async logits(images) {
    const results = await this.#session.run({ [INPUT]: toTensor(images) }, [LOGITS]);
    return results[LOGITS].data;
  }

  /** The feature maps of one image: [{name, channels, side, values}] in the order of the layers. */
  async maps(image) {
    if (!this.mapNames.length) return [];
    const results = await this.#session.run({ [INPUT]: toTensor(image) }, this.mapNames);
    return this.mapNames.map((name) => {
      const { data: values, dims } = results[name];
      return { name, channels: dims[1], side: dims[2], values };
    });
  }

  release() {
    return this.#session.release();
  }
}

/** Logits as probabilities. */
export function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

const PATCH = 4;
const STRIDE = 2;

/**
 * Which pixels matter: how much lower the logit of a class is when a 4x4 square of the image is blank.
 * @yields {Float32Array} the map so far, 28x28, the mean over the squares that cover a pixel; once a row of squares
 */
export async function* occlusion(model, image, digit) {
  const whole = (await model.logits(image))[digit];
  const starts = Array.from({ length: (SIDE - PATCH) / STRIDE + 1 }, (_, index) => index * STRIDE);
  const sums = new Float32Array(PIXELS);
  const counts = new Uint8Array(PIXELS);
  for (const top of starts) {
    const images = new Uint8Array(starts.length * PIXELS);
    starts.forEach((left, index) => {
      const covered = images.subarray(index * PIXELS, (index + 1) * PIXELS);
      covered.set(image);
      for (let y = top; y < top + PATCH; y++) covered.fill(0, y * SIDE + left, y * SIDE + left + PATCH);
    });
    const logits = await model.logits(images);
    starts.forEach((left, index) => {
      for (let y = top; y < top + PATCH; y++) {
        for (let x = left; x < left + PATCH; x++) {
          sums[y * SIDE + x] += whole - logits[index * CLASSES + digit];
          counts[y * SIDE + x] += 1;
        }
      }
    });
    yield sums.map((sum, pixel) => sum / Math.max(counts[pixel], 1));
  }
}
