"""Colors of a picture in which objects that touch differ, with as few changes of the ids' own colors as possible."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import fastremap
import numpy as np
from scipy import ndimage

from imagery_dask.annotations import Array
from imagery_dask.render.palettes import color_distance, colors_of, other_colors

__all__ = ["colors_apart", "touching"]

Color = tuple[int, int, int]
Pairs = set[tuple[int, int]]

# Pixels. Segmentations leave membranes between objects, and objects on both sides of one still look like neighbors.
REACH = 4
# `color_distance` from which two colors side by side are easy to tell apart: about 30 degrees of hue.
APART = 150.0


def touching(labels: Array, reach: int = REACH) -> Pairs:
    """Return the pairs of ids that touch in a picture.

    Parameters
    ----------
    labels : numpy.ndarray of integers, shape (x, y)
        Ids; 0 is no object.
    reach : int
        Objects touch if only 0 lies between them, on at most this many pixels from each.

    Returns
    -------
    set of tuple of 2 int
        The smaller id first.
    """
    numbers, _ = fastremap.renumber(np.ascontiguousarray(labels), preserve_zero=True, in_place=False)
    if numbers.any() and not numbers.all():
        far, nearest = ndimage.distance_transform_edt(numbers == 0, return_indices=True)
        numbers = np.where(far <= reach, numbers[tuple(nearest)], 0)
        labels = labels[tuple(nearest)]
    pairs: Pairs = set()
    for axis in (0, 1):
        low, high = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        border = (numbers[low] != numbers[high]) & (numbers[low] != 0) & (numbers[high] != 0)
        both = np.stack([labels[low][border], labels[high][border]])
        pairs.update(zip(both.min(axis=0).tolist(), both.max(axis=0).tolist(), strict=True))
    return pairs


def colors_apart(
    planes: Iterable[Array], reach: int = REACH, settled: Mapping[int, Color] | None = None
) -> dict[int, Color]:
    """Return the colors of the objects of a picture.

    Each id has the color of `palettes.colors_of`, except where objects that touch would look alike: of each such pair
    one is changed. Where pairs form no cycles, as they nearly always do, as few colors are changed as possible. The
    result depends on the picture, and on `settled`, alone.

    Parameters
    ----------
    planes : iterable of numpy.ndarray of integers, shape (x, y)
        The planes that the picture shows; 0 is no object.
    reach : int
        As of `touching`.
    settled : mapping of int to tuple of 3 int, optional
        Colors by id that stay, such as those of planes that were shown before.

    Returns
    -------
    dict of int to tuple of 3 int
        Red, green and blue, 0 to 255, of every id but 0; ids ascend.
    """
    found: set[int] = set()
    pairs: Pairs = set()
    for labels in planes:
        found.update(fastremap.unique(labels).tolist())
        pairs |= touching(labels, reach)
    ids, fixed = sorted(found - {0}), settled or {}
    own = dict(zip(ids, colors_of(np.array(ids, dtype=np.uint64)), strict=True))
    colors = {root: np.array(fixed[root], np.uint8) if root in fixed else own[root] for root in ids}
    neighbors: dict[int, set[int]] = defaultdict(set)
    clashes: dict[int, set[int]] = defaultdict(set)
    unsettled: set[int] = set()
    for a, b in pairs:
        neighbors[a].add(b)
        neighbors[b].add(a)
        if color_distance(colors[a], colors[b]) >= APART or (a in fixed and b in fixed):
            continue
        if a in fixed or b in fixed:
            unsettled.add(b if a in fixed else a)
        else:
            clashes[a].add(b)
            clashes[b].add(a)
    left = {root: others - unsettled for root, others in clashes.items() if root not in unsettled}
    unsettled |= _cover({root: others for root, others in left.items() if others})
    for root in sorted(unsettled):
        unsettled.remove(root)
        candidates = np.concatenate([colors[root][np.newaxis], other_colors(root)])
        distances = [color_distance(candidates, colors[other]) for other in neighbors[root] - unsettled]
        nearest = np.array(distances).min(0, initial=np.inf)
        enough = np.flatnonzero(nearest >= APART)
        colors[root] = candidates[enough[0] if len(enough) else nearest.argmax()]
    return {root: (int(r), int(g), int(b)) for root, (r, g, b) in colors.items()}


def _cover(clashes: dict[int, set[int]]) -> set[int]:
    """Return few ids such that each clash has one of them; the fewest where clashes form no cycles."""
    left, chosen = clashes, set()
    while left:
        # The only clash of an id is best ended at its other end, which may have more. Of equals, the largest id.
        ends = {other for others in left.values() if len(others) == 1 for other in others}
        taken = max(ends or left, key=lambda root: (len(left[root]), root))
        chosen.add(taken)
        for other in left.pop(taken):
            left[other].discard(taken)
            if not left[other]:
                del left[other]
    return chosen
