// What the page shows of an answer. It computes nothing: see preparation.js and inference.js.

import { CLASSES } from "./inference.js";
import { SIDE } from "./preparation.js";

/** An element with attributes, and children or text. */
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export const percent = (fraction, digits = 0) => `${(100 * fraction).toFixed(digits)} %`;

/** Grey values of 28x28 on a canvas of that size, in the page's colours of ink and paper. */
export function showImage(canvas, image) {
  paint(canvas, SIDE, SIDE, (pixel) => [1, image ? image[pixel] / 255 : 0]);
}

// Two ramps, from nothing to strong: [above zero, below zero], red, green, blue. The paper shows through.
const RAMPS = {
  ink: [[255, 255, 255], [255, 255, 255]],
  map: [[255, 196, 92], [96, 156, 255]],
};

/** Fill a canvas: `value(pixel)` is [sign, strength 0 to 1]. */
function paint(canvas, width, height, value, ramp = RAMPS.ink) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const [sign, strength] = value(pixel);
    picture.data.set(ramp[sign < 0 ? 1 : 0], 4 * pixel);
    picture.data[4 * pixel + 3] = Math.round(255 * strength);
  }
  context.putImageData(picture, 0, 0);
}

const TIMES = 21; // calls of which the median is shown; the first ones are slower

/** The answer of one model: its digit, ten bars, and which pixels matter. */
export class AnswerView {
  #digit = element("p", { class: "digit" });
  #bars;
  #latency = element("p", { class: "note latency" });
  #times = [];
  #map = element("canvas", { width: SIDE, height: SIDE, role: "img" });

  constructor(title, facts) {
    this.#bars = Array.from({ length: CLASSES }, (_, digit) => {
      const value = element("span", { class: "value" });
      const bar = element("span", { class: "bar" });
      return { bar, value, row: element("li", {}, element("span", { class: "name" }, String(digit)), bar, value) };
    });
    this.node = element(
      "article",
      { class: "answer", "aria-label": title },
      element("h3", {}, title),
      element("p", { class: "note" }, facts),
      this.#digit,
      element("ol", { class: "bars" }, ...this.#bars.map(({ row }) => row)),
      this.#latency,
      element("figure", {}, this.#map, element("figcaption", { class: "note" }, "Which pixels matter")),
    );
    this.show(null);
  }

  /** @param {{probabilities: number[], digit: number, sure: boolean, milliseconds: number} | null} answer */
  show(answer) {
    this.#digit.textContent = answer ? (answer.sure ? answer.digit : "Not a digit?") : "–";
    this.#digit.classList.toggle("unsure", Boolean(answer && !answer.sure));
    this.#bars.forEach(({ bar, value, row }, digit) => {
      const probability = answer ? answer.probabilities[digit] : 0;
      bar.style.setProperty("--part", probability);
      value.textContent = answer ? percent(probability) : "";
      row.classList.toggle("best", Boolean(answer) && answer.digit === digit);
    });
    if (answer) this.#times = [...this.#times.slice(1 - TIMES), answer.milliseconds];
    const median = [...this.#times].sort((a, b) => a - b)[this.#times.length >> 1];
    this.#latency.textContent = median === undefined ? "\u00a0" : `${median.toFixed(1)} ms a call`;
    if (!answer) this.showOcclusion(null, null);
  }

  /** Amber where covering the drawing lowers the digit's logit, blue where it raises it. */
  showOcclusion(map, digit) {
    const largest = map ? Math.max(...map.map(Math.abs), 1e-9) : 1;
    paint(this.#map, SIDE, SIDE, (pixel) => (map ? [map[pixel], Math.abs(map[pixel]) / largest] : [1, 0]), RAMPS.map);
    this.#map.setAttribute("aria-label", map ? `Which pixels speak for ${digit}` : "Which pixels matter: nothing yet");
  }
}

/** The feature maps of one model: a row of small canvases a layer, one a channel. */
export class MapsView {
  #layers = new Map();
  #list = element("div", { class: "layer-list" });

  constructor(title) {
    this.node = element("article", { "aria-label": `Layers, ${title}` }, element("h3", {}, title), this.#list);
  }

  /** @param {{name: string, channels: number, side: number, values: Float32Array}[] | null} maps */
  show(maps) {
    if (!maps) {
      this.#layers.clear();
      this.#list.textContent = "";
    } else if (!maps.length) {
      this.#list.textContent = "This file has no feature maps; export it with --feature-maps.";
    } else {
      for (const map of maps) this.#showLayer(map);
    }
  }

  #showLayer({ name, channels, side, values }) {
    if (!this.#layers.has(name)) {
      const canvases = Array.from({ length: channels }, () => element("canvas", { width: side, height: side }));
      const size = `${channels} × ${side} × ${side}`;
      const grid = element("div", { class: "channels", role: "img", "aria-label": `Feature maps of ${name}` }, ...canvases);
      this.#list.append(element("figure", {}, element("figcaption", {}, element("b", {}, name), ` ${size}`), grid));
      this.#layers.set(name, canvases);
    }
    const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
    this.#layers.get(name).forEach((canvas, channel) => {
      const start = channel * side * side;
      paint(canvas, side, side, (pixel) => [values[start + pixel], Math.abs(values[start + pixel]) / largest], RAMPS.map);
    });
  }
}
