// What MNIST did to its digits, done to a drawing: http://yann.lecun.com/exdb/mnist and LeCun et al. 1998,
// "Gradient-based learning applied to document recognition": the digit is scaled to fit 20x20 pixels with its
// proportions kept and its edges smoothed, and moved until its centre of mass is the middle of 28x28.
//
// Images are Uint8Array, row by row, 0 for paper to 255 for ink. Nothing here knows of a browser.

export const SIDE = 28;
const BOX = 20;

/** The smallest rectangle with all ink, {left, top, width, height} in pixels; null if there is no ink. */
export function boundingBox(ink, side) {
  let [left, right, top, bottom] = [side, -1, side, -1];
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (!ink[y * side + x]) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      if (y > bottom) bottom = y;
    }
  }
  return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}

/**
 * The image that a network gets, 28x28; null if there is no ink.
 * @param {ArrayLike<number>} ink side x side, 0 to 255
 */
export function prepare(ink, side) {
  const box = boundingBox(ink, side);
  if (!box) return null;
  const scale = BOX / Math.max(box.width, box.height);
  const columns = resampling(box.width, scale);
  const rows = resampling(box.height, scale);

  // Each pixel is the mean of the ink in the area it covers: first along the rows, then along the columns.
  const narrow = new Float64Array(box.height * columns.length);
  for (let y = 0; y < box.height; y++) {
    const start = (box.top + y) * side + box.left;
    columns.forEach(({ first, weights }, x) => {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * ink[start + first + i];
      narrow[y * columns.length + x] = sum;
    });
  }
  const [width, height] = [columns.length, rows.length];
  const digit = new Uint8Array(width * height);
  rows.forEach(({ first, weights }, y) => {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * narrow[(first + i) * width + x];
      digit[y * width + x] = Math.round(sum);
    }
  });
  return place(digit, width, height);
}

/**
 * How the pixels of a line become fewer (or more): for each new pixel, the weights of the old ones from
 * `first` on, as large as the part of the new pixel that they cover. The new line has whole pixels; where the
 * scaled one has not, half of the rest is added on each side.
 */
function resampling(length, scale) {
  const count = Math.ceil(length * scale - 1e-9);
  const margin = (count - length * scale) / 2;
  return Array.from({ length: count }, (_, index) => {
    const from = Math.max(0, (index - margin) / scale);
    const to = Math.min(length, (index + 1 - margin) / scale);
    const first = Math.floor(from);
    const last = Math.min(length, Math.ceil(to));
    const weights = [];
    for (let i = first; i < last; i++) weights.push((Math.min(to, i + 1) - Math.max(from, i)) * scale);
    return { first, weights };
  });
}

/** A digit on 28x28 with its centre of mass in the middle, as near as whole pixels and the border allow. */
function place(digit, width, height) {
  let [mass, across, down] = [0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = digit[y * width + x];
      mass += value;
      across += value * x;
      down += value * y;
    }
  }
  // In MNIST's files the centre lies between 13.5 and 14.5, counting pixels from 0: it rounds to 14.
  const offset = (moment, size) => Math.min(Math.max(SIDE / 2 - Math.round(moment / mass), 0), SIDE - size);
  const left = mass ? offset(across, width) : 0;
  const top = mass ? offset(down, height) : 0;
  const image = new Uint8Array(SIDE * SIDE);
  for (let y = 0; y < height; y++) {
    image.set(digit.subarray(y * width, (y + 1) * width), (top + y) * SIDE + left);
  }
  return image;
}

/** The whole canvas shrunk to 28x28, and nothing else: what a page without preparation gives a network. */
export function shrink(ink, side) {
  const image = new Uint8Array(SIDE * SIDE);
  const cells = resampling(side, SIDE / side);
  cells.forEach((row, y) => {
    cells.forEach((column, x) => {
      let sum = 0;
      row.weights.forEach((down, i) => {
        column.weights.forEach((across, j) => {
          sum += down * across * ink[(row.first + i) * side + column.first + j];
        });
      });
      image[y * SIDE + x] = Math.round(sum);
    });
  });
  return image;
}
