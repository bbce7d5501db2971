// npm test: the preparation, without a browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import { SIDE, boundingBox, prepare, shrink } from "../src/preparation.js";

/** An image of `side` pixels with ink where `inside(x, y)` says so. */
function draw(side, inside) {
  return Uint8Array.from({ length: side * side }, (_, i) => (inside(i % side, Math.floor(i / side)) ? 255 : 0));
}

const rectangle = (left, top, width, height) => (x, y) =>
  x >= left && x < left + width && y >= top && y < top + height;

function massCentre(image) {
  let [mass, across, down] = [0, 0, 0];
  image.forEach((value, i) => {
    mass += value;
    across += value * (i % SIDE);
    down += value * Math.floor(i / SIDE);
  });
  return [across / mass, down / mass];
}

test("no ink, no image", () => {
  assert.equal(prepare(new Uint8Array(100 * 100), 100), null);
  assert.equal(boundingBox(new Uint8Array(4), 2), null);
});

test("the longer side becomes 20 pixels, and the proportions stay", () => {
  const image = prepare(draw(200, rectangle(10, 20, 40, 160)), 200);
  assert.deepEqual(boundingBox(image, SIDE), { left: 12, top: 4, width: 5, height: 20 });
  assert.equal(image[14 * SIDE + 14], 255);
});

test("small drawings grow as large ones shrink", () => {
  for (const size of [5, 20, 33, 190]) {
    const box = boundingBox(prepare(draw(200, rectangle(3, 7, size, size)), 200), SIDE);
    assert.deepEqual(box, { left: 4, top: 4, width: 20, height: 20 }, `size ${size}`);
  }
});

test("the place of a drawing does not matter", () => {
  const shape = (x, y) => rectangle(0, 0, 30, 90)(x, y) || rectangle(0, 0, 60, 20)(x, y);
  const images = [[0, 0], [70, 13], [139, 109]].map(([right, down]) =>
    prepare(draw(200, (x, y) => shape(x - right, y - down)), 200),
  );
  assert.deepEqual(images[1], images[0]);
  assert.deepEqual(images[2], images[0]);
});

test("the centre of mass is in the middle", () => {
  const bent = (x, y) => rectangle(0, 0, 80, 20)(x, y) || rectangle(60, 0, 20, 120)(x, y); // heavy above, right
  for (const mean of massCentre(prepare(draw(130, bent), 130))) assert.ok(Math.abs(mean - 14) <= 0.5, `${mean}`);
});

test("nothing is cut off, even where the mass is at one end", () => {
  const club = (x, y) => rectangle(0, 0, 100, 30)(x, y) || rectangle(48, 0, 4, 200)(x, y);
  const box = boundingBox(prepare(draw(200, club), 200), SIDE);
  assert.equal(box.height, 20);
  assert.ok(box.top >= 0 && box.top + box.height <= SIDE);
});

test("edges are smooth: a pixel is as grey as it is covered", () => {
  const image = prepare(draw(30, rectangle(0, 0, 30, 9)), 30); // 20 by 6, no rest
  assert.equal(image.filter((value) => value === 255).length, 120);
  const thin = prepare(draw(40, rectangle(0, 0, 40, 3)), 40); // 20 by 1.5: two rows, each covered to 3/4
  assert.deepEqual([...new Set(thin)].sort((a, b) => a - b), [0, 191]);
});

test("an image that is prepared already stays the same", () => {
  const random = (i) => (i * 7919) % 256;
  const image = new Uint8Array(SIDE * SIDE);
  for (let y = 4; y < 24; y++) for (let x = 7; x < 21; x++) image[y * SIDE + x] = 1 + (random(y * SIDE + x) % 255);
  const once = prepare(image, SIDE);
  assert.deepEqual(prepare(once, SIDE), once);
});

test("without the preparation, place and size stay", () => {
  const image = shrink(draw(280, rectangle(0, 0, 20, 140)), 280);
  assert.deepEqual(boundingBox(image, SIDE), { left: 0, top: 0, width: 2, height: 14 });
});
