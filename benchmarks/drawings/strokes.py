"""From a picture of a digit back to the strokes of a pen."""

import numpy as np
from scipy import ndimage

ENLARGED = 4  # the middle of a stroke is found on the picture enlarged so many times
SHORTEST = 1.5  # pixels of the picture; side branches that are shorter come from the outline's bumps
FILLED = 1.7  # ink so many times as deep as the pen's is a filled loop; chosen with digits of the hold-out
SPACING = 1.5  # pixels of the picture between two points, before the curve is smoothed

Stroke = np.ndarray  # float64 (points, 2): x to the right and y down
Pixel = tuple[int, int]


def find_strokes(image: np.ndarray) -> list[Stroke]:
    """The middle lines of a digit.

    Args:
        image: uint8 (28, 28), ink on 0.

    Returns:
        Strokes in a square of side 1 around 0: the longer side of all of them is 1, their middle is 0.
    """
    large = ndimage.zoom(image.astype(np.float64), ENLARGED, order=1, grid_mode=True, mode="grid-constant")
    ink = _open_loops(np.asarray(large >= 128))
    # Thinning removes a square of two by two pixels altogether; it is a dot.
    traced = _trace(thin(ink)) or [[ndimage.center_of_mass(image)]]
    paths = [_smooth(np.array(path, float)) for path in traced]
    points = np.concatenate(paths)
    low, high = points.min(0), points.max(0)
    return [((path - (low + high) / 2) / max(*(high - low), 1e-9))[:, ::-1] for path in paths]


def _open_loops(ink: np.ndarray) -> np.ndarray:
    """The ink of a digit, bool (H, W), with holes in loops that a broad pen has filled.

    Their middle line would be a line where the writer drew a ring, and an 8 would no longer look like one.
    """
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(ink, 1)))[1:-1, 1:-1]  # to the nearest paper
    lines = thin(ink)
    return ink & (depth <= FILLED * np.median(depth[lines])) if lines.any() else ink


def thin(ink: np.ndarray) -> np.ndarray:
    """Lines one pixel wide in the middle of shapes: bool (H, W) to bool (H, W).

    T. Y. Zhang and C. Y. Suen, "A fast parallel algorithm for thinning digital patterns", 1984.
    """
    ink = np.pad(ink, 1)
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            north, east, south, west = (
                np.roll(ink, shift, axis) for shift, axis in ((1, 0), (-1, 1), (-1, 0), (1, 1))
            )
            around = [
                north,
                np.roll(north, -1, 1),
                east,
                np.roll(south, -1, 1),
                south,
                np.roll(south, 1, 1),
                west,
                np.roll(north, 1, 1),
            ]
            neighbours = np.sum(around, axis=0)
            rises = sum((~a & b).astype(int) for a, b in zip(around, [*around[1:], around[0]], strict=True))
            if first:
                sides = ~(north & east & south) & ~(east & south & west)
            else:
                sides = ~(north & east & west) & ~(north & south & west)
            remove = ink & (neighbours >= 2) & (neighbours <= 6) & (rises == 1) & sides
            ink = ink & ~remove
            changed |= bool(remove.any())
    return ink[1:-1, 1:-1]


def _trace(lines: np.ndarray) -> list[list[Pixel]]:
    """The paths of a thinned picture from end or crossing to end or crossing, and its rings."""
    pixels = {(int(row), int(column)) for row, column in np.argwhere(lines)}
    near = {pixel: _neighbours(pixel, pixels) for pixel in pixels}
    ends = {pixel for pixel in pixels if len(near[pixel]) != 2}
    used: set[frozenset[Pixel]] = set()
    paths: list[list[Pixel]] = []

    def walk(start: Pixel, step: Pixel) -> None:
        path = [start, step]
        used.add(frozenset((start, step)))
        while path[-1] not in ends and path[-1] != start:
            following = next(each for each in near[path[-1]] if each != path[-2])
            used.add(frozenset([path[-1], following]))
            path.append(following)
        paths.append(path)

    for start in sorted(ends) + sorted(pixels - ends):  # what no end leads to is a ring
        for step in near[start]:
            if frozenset((start, step)) not in used:
                walk(start, step)

    def is_spur(path: list[Pixel]) -> bool:
        degrees = sorted(len(near[pixel]) for pixel in (path[0], path[-1]))
        return degrees[0] == 1 and degrees[1] > 2 and len(path) < SHORTEST * ENLARGED

    kept = [path for path in paths if not is_spur(path)]
    return kept or [[pixel] for pixel in sorted(pixels)[:1]]


def _neighbours(pixel: Pixel, pixels: set[Pixel]) -> list[Pixel]:
    """The pixels beside one; a diagonal one only if no other leads there."""
    row, column = pixel
    straight = [
        each
        for each in ((row - 1, column), (row, column + 1), (row + 1, column), (row, column - 1))
        if each in pixels
    ]
    diagonal = [
        (row + down, column + right)
        for down in (-1, 1)
        for right in (-1, 1)
        if (row + down, column + right) in pixels
        and (row + down, column) not in pixels
        and (row, column + right) not in pixels
    ]
    return straight + diagonal


def _smooth(path: np.ndarray) -> np.ndarray:
    """A path without the stairs of its pixels: their running mean, and fewer points."""
    if len(path) > 2:
        ring = len(path) > 3 and np.array_equal(path[0], path[-1])
        path = ndimage.uniform_filter1d(path, 5, axis=0, mode="wrap" if ring else "nearest")
    count = max(2, round(len(path) / (SPACING * ENLARGED)))
    return path[np.linspace(0, len(path) - 1, count).round().astype(int)]
