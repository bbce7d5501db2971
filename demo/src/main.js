// The page: a drawing is prepared, put through the models, and shown.

import { Drawing, drawStrokes } from "./drawing.js";
import { exampleStrokes } from "./examples.js";
import { CLASSES, Model, ModelError, occlusion, softmax } from "./inference.js";
import { prepare } from "./preparation.js";
import { AnswerView, MapsView, element, percent, showImage } from "./view.js";

const FRAMEWORKS = { torch: "PyTorch", jax: "Flax" };
const SURE = 0.95; // the least probability of an answer; see README.md for how it was chosen
const OWN_FILE = "own";

const find = (id) => document.getElementById(id);

let list = []; // the models of models.json
let own = null; // the model of a person's own file: {name, model}
let columns = []; // what is beside each other: {title, model, maps, answerView, mapsView}
let changed = null; // tells the loop below that there is something to do
let opening = 0; // counts the choices, so that a slow download does not replace a later one
let shownChoice = ""; // what was chosen when the columns were made

const drawing = new Drawing(find("canvas"), (finished) => wake(finished));

// ------------------------------------------------------------------------------------------- the loop

let finished = true;

function wake(isFinished = true) {
  finished = isFinished;
  find("answers").setAttribute("aria-busy", "true");
  changed?.();
  changed = null;
}

/** Answers to the drawing as it is now, then what takes longer, until the drawing changes. */
async function answerForEver() {
  let failed = false;
  for (;;) {
    const next = new Promise((resolve) => {
      changed = resolve;
    });
    const isCurrent = () => changed !== null;
    try {
      await answer(isCurrent);
      if (failed) tell("");
      failed = false;
    } catch (error) {
      tell(`The drawing was not answered in full: ${error.message}`);
      failed = true;
    }
    await next;
  }
}

async function answer(isCurrent) {
  const { ink, side } = drawing.read();
  const image = prepare(ink, side);
  showImage(find("prepared"), image);
  const shown = [...columns];
  const answers = [];
  for (const { model, answerView } of shown) {
    const result = image && (await judge(model, image));
    answerView.show(result);
    answers.push(result);
  }
  if (finished) announce(shown, answers);
  if (isCurrent()) find("answers").setAttribute("aria-busy", "false");
  await nextTask();
  if (!isCurrent()) return;
  for (const { maps, mapsView } of shown) {
    if (find("layers").open) mapsView.show(image && (await (await maps()).maps(image)));
  }
  if (!image || !finished) return;
  for (const [index, { model, answerView }] of shown.entries()) {
    for await (const map of occlusion(model, image, answers[index].digit)) {
      answerView.showOcclusion(map, answers[index].digit);
      await nextTask();
      if (!isCurrent()) return;
    }
  }
}

async function judge(model, image) {
  const start = performance.now();
  const logits = await model.logits(image);
  const milliseconds = performance.now() - start;
  const probabilities = softmax(logits);
  const largest = Math.max(...probabilities);
  return { probabilities, digit: probabilities.indexOf(largest), sure: largest >= SURE, milliseconds };
}

/** For a screen reader, once a stroke. */
function announce(shown, answers) {
  const texts = shown.map(({ title }, index) => {
    const result = answers[index];
    if (!result) return "";
    return `${title}: ${result.sure ? "" : "not a digit? perhaps "}${result.digit}, ${percent(Math.max(...result.probabilities))}`;
  });
  find("status").textContent = answers.some(Boolean) ? `${texts.join(". ")}.` : "Nothing is drawn.";
}

/** Lets the browser show what there is and take what happened meanwhile. */
const nextTask = () => new Promise((resolve) => setTimeout(resolve));

// ------------------------------------------------------------------------------------------- the models

const tell = (message) => {
  find("message").textContent = message;
};

/** Show the models of a network beside each other, or the own file alone; if they cannot be had, what was shown. */
async function choose(value) {
  const turn = ++opening;
  let chosen;
  try {
    chosen = await load(value);
  } catch (error) {
    if (turn !== opening) return;
    tell(error.message);
    if (shownChoice) find("network").value = shownChoice;
    return;
  }
  if (turn !== opening) return;
  shownChoice = value;
  columns = chosen.map((column) => ({
    ...column,
    answerView: new AnswerView(column.title, column.facts),
    mapsView: new MapsView(column.title),
  }));
  find("answers").replaceChildren(...columns.map(({ answerView }) => answerView.node));
  find("maps").replaceChildren(...columns.map(({ mapsView }) => mapsView.node));
  wake();
}

async function load(value) {
  if (value === OWN_FILE) {
    return [{ title: own.name, facts: "your file", model: own.model, maps: async () => own.model }];
  }
  return Promise.all(
    list
      .filter(({ network }) => network === value)
      .map(async ({ folder, framework, accuracy }) => ({
        title: FRAMEWORKS[framework],
        facts: `${percent(accuracy, 2)} on MNIST`,
        model: await loadModel(`models/${folder}/model.onnx`),
        maps: () => loadModel(`models/${folder}/feature-maps.onnx`),
      })),
  );
}

const loaded = new Map();
function loadModel(url) {
  if (!loaded.has(url)) {
    loaded.set(url, Model.fetch(url));
    loaded.get(url).catch(() => loaded.delete(url)); // so that it is tried again
  }
  return loaded.get(url);
}

async function openOwn(file) {
  const select = find("network");
  try {
    const model = await Model.open(file);
    const previous = own;
    own = { name: file.name, model };
    select.querySelector(`[value=${OWN_FILE}]`)?.remove();
    select.append(element("option", { value: OWN_FILE }, file.name));
    select.value = OWN_FILE;
    await choose(OWN_FILE);
    await previous?.model.release();
    tell("");
  } catch (error) {
    if (!(error instanceof ModelError)) throw error;
    tell(error.message);
  }
}

// ------------------------------------------------------------------------------------------- the controls

function addExamples() {
  for (let digit = 0; digit < CLASSES; digit++) {
    const picture = element("canvas", { width: 64, height: 64, "aria-hidden": "true" });
    const button = element("button", { type: "button", "aria-label": `Draw an example of ${digit}` }, picture);
    find("examples").append(button);
    const draw = () => {
      const context = picture.getContext("2d");
      context.clearRect(0, 0, 64, 64);
      drawStrokes(context, exampleStrokes(digit), 64, getComputedStyle(button).color);
    };
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    button.addEventListener("click", () => drawing.set(exampleStrokes(digit)));
  }
}

function addControls() {
  find("undo").addEventListener("click", () => drawing.undo());
  find("clear").addEventListener("click", () => drawing.clear());
  document.addEventListener("keydown", (event) => {
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      drawing.undo();
      event.preventDefault();
    } else if ((event.key === "Escape" || event.key === "Delete") && event.target === find("canvas")) {
      drawing.clear();
    }
  });
  for (const input of document.querySelectorAll("[name=pen]")) {
    if (input.checked) drawing.penWidth = Number(input.value); // a reload keeps the choice
    input.addEventListener("change", () => {
      drawing.penWidth = Number(input.value);
    });
  }
  find("network").addEventListener("change", async (event) => {
    tell("");
    await choose(event.target.value);
  });
  find("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = ""; // so that the same file can be chosen again
    if (file) await openOwn(file);
  });
  find("layers").open = matchMedia("(min-width: 44rem)").matches; // on a phone it is a long way to scroll
  find("layers").addEventListener("toggle", () => wake());
}

async function start() {
  addExamples();
  addControls();
  try {
    list = (await (await fetch("models/models.json")).json()).models;
    const sizes = new Map(list.map(({ network, parameters }) => [network, parameters.toLocaleString("en")]));
    for (const [value, size] of sizes) {
      find("network").append(element("option", { value }, `${value}, ${size} parameters`));
    }
    await choose(find("network").value);
  } catch (error) {
    tell(`The models cannot be loaded: ${error.message}`);
  }
  await answerForEver();
}

start();
