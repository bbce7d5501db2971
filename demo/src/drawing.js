// A canvas to draw on, by mouse, pen, finger or keyboard.
//
// A drawing is a list of strokes {width, points: [[x, y], ...]} in units of the canvas's side, so that it does
// not depend on the screen. It is drawn anew from them every time: to undo is to forget the last stroke.

const PIXELS = 560; // the canvas's side; twice what a screen usually shows, for screens with small pixels
const KEY_STEP = 0.03;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Drawing {
  strokes = [];
  penWidth = 0.08; // of the next stroke

  #canvas;
  #context;
  #onChange;
  #current = null; // the stroke that is being drawn, and by which pointer
  #pointer = null;
  #cursor = null; // where the keyboard's pen is, and whether it is on the paper
  #penDown = false;

  /** @param {(finished: boolean) => void} onChange called after each change; not finished inside a stroke */
  constructor(canvas, onChange) {
    this.#canvas = canvas;
    this.#onChange = onChange;
    canvas.width = canvas.height = PIXELS;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    canvas.addEventListener("pointerdown", (event) => this.#start(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(type, (event) => this.#end(event));
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#hideCursor());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  set(strokes) {
    this.#endKeyboardStroke();
    this.strokes = strokes;
    this.#changed(true);
  }

  undo() {
    this.set(this.strokes.slice(0, -1));
  }

  clear() {
    this.set([]);
  }

  /** The ink as the networks' preparation takes it: {ink: Uint8Array, side}. */
  read() {
    if (this.#cursor) this.redraw(false);
    const { data } = this.#context.getImageData(0, 0, PIXELS, PIXELS);
    const ink = new Uint8Array(PIXELS * PIXELS);
    for (let i = 0; i < ink.length; i++) ink[i] = data[4 * i + 3]; // how opaque it is
    if (this.#cursor) this.redraw();
    return { ink, side: PIXELS };
  }

  redraw(withCursor = true) {
    const context = this.#context;
    context.clearRect(0, 0, PIXELS, PIXELS);
    drawStrokes(context, this.strokes, PIXELS, getComputedStyle(this.#canvas).color);
    if (withCursor && this.#cursor) {
      const [x, y] = this.#cursor;
      context.beginPath();
      context.arc(x * PIXELS, y * PIXELS, (this.penWidth * PIXELS) / 2, 0, 2 * Math.PI);
      context.lineWidth = 3;
      context.setLineDash(this.#penDown ? [] : [8, 8]);
      context.strokeStyle = getComputedStyle(this.#canvas).outlineColor;
      context.stroke();
      context.setLineDash([]);
    }
  }

  #changed(finished) {
    this.#canvas.toggleAttribute("data-drawn", this.strokes.length > 0);
    this.redraw();
    this.#onChange(finished);
  }

  #position(event) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  #start(event) {
    if (event.button !== 0 || this.#pointer !== null) return; // the other buttons, and a second finger
    this.#hideCursor();
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId); // a stroke may leave the canvas and come back
    this.#current = { width: this.penWidth, points: [this.#position(event)] };
    this.strokes = [...this.strokes, this.#current];
    this.#changed(false);
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    // A browser reports one move a frame; the points in between are there for those who ask.
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.#current.points.push(this.#position(each));
    this.#changed(false);
  }

  #end(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = this.#current = null;
    this.#changed(true);
  }

  /** Arrows move the pen, with Shift by a quarter of the step; Space puts it on the paper and lifts it. */
  #key(event) {
    const arrow = ARROWS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || this.#pointer !== null) return;
    if (arrow) {
      const step = event.shiftKey ? KEY_STEP / 4 : KEY_STEP;
      const [x, y] = this.#cursor ?? [0.5, 0.5];
      this.#cursor = [x + step * arrow[0], y + step * arrow[1]].map((v) => Math.min(Math.max(v, 0), 1));
      if (this.#penDown) this.#current.points.push(this.#cursor);
      this.#changed(!this.#penDown);
    } else if (event.key === " ") {
      if (event.repeat) {
        // held down: it puts the pen down once
      } else if (this.#penDown) {
        this.#endKeyboardStroke();
      } else {
        this.#cursor ??= [0.5, 0.5];
        this.#penDown = true;
        this.#current = { width: this.penWidth, points: [this.#cursor] };
        this.strokes = [...this.strokes, this.#current];
      }
      this.#changed(!this.#penDown);
    } else {
      return;
    }
    event.preventDefault(); // or the page scrolls
  }

  #endKeyboardStroke() {
    if (this.#penDown) this.#current = null;
    this.#penDown = false;
  }

  #hideCursor() {
    if (!this.#cursor) return;
    this.#endKeyboardStroke();
    this.#cursor = null;
    this.#changed(true);
  }
}

/** Strokes on a square of `side` pixels, with round ends, smooth between the points. */
export function drawStrokes(context, strokes, side, colour) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = context.fillStyle = colour;
  for (const { width, points } of strokes) {
    const at = points.map(([x, y]) => [x * side, y * side]);
    context.lineWidth = width * side;
    context.beginPath();
    if (at.every(([x, y]) => x === at[0][0] && y === at[0][1])) {
      context.arc(...at[0], (width * side) / 2, 0, 2 * Math.PI); // a dot; a line without length is none
      context.fill();
      continue;
    }
    context.moveTo(...at[0]);
    for (let i = 1; i < at.length - 1; i++) {
      const middle = [(at[i][0] + at[i + 1][0]) / 2, (at[i][1] + at[i + 1][1]) / 2];
      context.quadraticCurveTo(...at[i], ...middle);
    }
    context.lineTo(...at.at(-1));
    context.stroke();
  }
}
