// A digit of each class to start from, as strokes through a few points in hundredths of the canvas's side.

const DIGITS = [
  [[56, 18, 44, 20, 34, 32, 30, 50, 33, 68, 43, 81, 55, 80, 66, 68, 70, 50, 67, 31, 57, 19, 50, 18]],
  [[42, 30, 48, 25, 53, 17, 52, 35, 51, 55, 50, 83]],
  [[33, 33, 37, 22, 49, 16, 61, 21, 65, 33, 60, 46, 49, 60, 38, 72, 31, 81, 45, 80, 58, 80, 71, 81]],
  [[35, 22, 46, 16, 58, 18, 64, 28, 60, 39, 48, 46, 60, 50, 68, 60, 66, 73, 55, 82, 42, 82, 32, 75]],
  [
    [44, 17, 40, 30, 35, 43, 32, 53, 45, 54, 58, 53, 72, 52],
    [62, 30, 61, 45, 59, 62, 57, 84],
  ],
  [
    [40, 19, 39, 30, 37, 43, 48, 40, 60, 45, 66, 57, 63, 71, 53, 81, 41, 82, 32, 77],
    [40, 19, 52, 19, 66, 17],
  ],
  [[58, 16, 46, 27, 37, 43, 33, 60, 37, 76, 49, 83, 61, 78, 65, 66, 60, 56, 48, 54, 38, 61, 35, 70]],
  [[31, 22, 44, 21, 56, 21, 68, 19, 62, 35, 55, 50, 50, 66, 46, 83]],
  [[61, 26, 52, 17, 41, 19, 37, 29, 43, 40, 55, 50, 64, 61, 65, 73, 56, 82, 44, 81, 36, 71, 41, 59, 53, 48, 62, 36, 62, 27]],
  [[64, 31, 57, 20, 45, 19, 36, 29, 37, 42, 47, 49, 58, 44, 64, 32, 63, 45, 60, 62, 56, 83]],
];
const WIDTH = 0.08;
const STEPS = 8; // points between two that are given

/** The strokes of an example; a drawing that can be undone and gone on with, like any other. */
export function exampleStrokes(digit) {
  return DIGITS[digit].map((numbers) => {
    const points = [];
    for (let i = 0; i < numbers.length; i += 2) points.push([numbers[i] / 100, numbers[i + 1] / 100]);
    return { width: WIDTH, points: interpolate(points) };
  });
}

/** A smooth curve through points: Catmull and Rom's, with the first and the last point twice. */
function interpolate(points) {
  const at = (index) => points[Math.min(Math.max(index, 0), points.length - 1)];
  const curve = [points[0]];
  for (let i = 0; i < points.length - 1; i++) {
    for (let step = 1; step <= STEPS; step++) {
      const t = step / STEPS;
      const [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
      curve.push(
        [0, 1].map(
          (k) =>
            b[k] +
            0.5 * t * (c[k] - a[k] + t * (2 * a[k] - 5 * b[k] + 4 * c[k] - d[k] + t * (3 * (b[k] - c[k]) + d[k] - a[k]))),
        ),
      );
    }
  }
  return curve;
}
