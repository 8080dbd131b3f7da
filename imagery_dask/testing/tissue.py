"""The cells of the demo volume: a label volume of packed, branching, bent neurites, and their synapses.

The tissue is a packing of discs (profiles of neurites) extruded through z, crossed by spines and by axons
that run in the plane of the slices, grown until the cells touch, and bent by smooth noise. The image is drawn
from that label volume, so that it always agrees with the segmentation.

Inside this module arrays are in (z, y, x) order, the order in which slices are drawn; the public functions
return Fortran-ordered (x, y, z) transposes. Cells are laid out in "paint pixels" of 16 nm, twice the image's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint16]
Size = tuple[int, int, int]

_SLICE_PX = 40 / 16  # thickness of a slice, in paint pixels
_PAD = 48  # paint pixels around the volume, from which the bending noise pulls cells in
RETICULUM = 1 << 15  # added to a cell's label where its endoplasmic reticulum is


def for_each_slice(task: Callable[[int], None], n: int) -> None:
    """Run a task for each of n slices, on up to four threads."""
    # scipy's filters release the GIL; more than four threads are limited by memory bandwidth.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(task, range(n)))


def _splines(n: int, spacing: float) -> Floats:
    """Return uniform cubic B-splines with knots ``spacing`` apart, at n points: (n, knots)."""
    first, u = np.divmod(np.arange(n) / spacing, 1)
    weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    basis = np.zeros((n, int(first[-1]) + 4), np.float32)
    for k, weight in enumerate(weights):
        # 151 / 315 is the mean of the sum of squared weights: white noise keeps its standard deviation.
        basis[np.arange(n), first.astype(int) + k] = weight / 6 / (151 / 315) ** 0.5
    return basis


def smooth_field(rng: np.random.Generator, size: Size, spacing: Size) -> Callable[[int], Floats]:
    """Return smooth noise of mean 0 and standard deviation 1 over a volume, as a function of slice z."""
    # Sparse products are fast here, and single-threaded: threads of BLAS would compete with ours.
    along_z, along_y, along_x = map(sparse.csr_array, map(_splines, size, spacing))
    n_knots = along_y.shape[1], along_x.shape[1]
    knots = rng.standard_normal((along_z.shape[1], n_knots[0] * n_knots[1]), dtype=np.float32)
    sheets = (along_z @ knots).reshape(-1, *n_knots)
    return lambda z: along_y @ (along_x @ sheets[z].T).T


class _Neurites(NamedTuple):
    """Profiles of the neurites: y, x and radius are (slices, neurites), in padded paint pixels."""

    y: Floats
    x: Floats
    radius: Floats
    owner: Labels  # label of each neurite's cell, from 1; a cell may own several neurites
    thickest: Floats  # largest radius of each cell, by label
    edges: tuple[int, int]  # height and width of the padded slice


def pack_neurites(rng: np.random.Generator, size: Size) -> _Neurites:
    """Pack profiles of dendrites and axons, large ones first, into the plane of the padded volume."""
    height, width = size[1] // 2 + 2 * _PAD, size[2] // 2 + 2 * _PAD
    dendrites = rng.uniform(20, 42, height * width // 33_000 + 1)
    axons = np.exp(rng.normal(np.log(6.3), 0.47, height * width // 90)).clip(3, 18)
    discs = np.empty((0, 3), np.float32)
    for radius in np.sort(np.concatenate([dendrites, axons]))[::-1]:
        spots = rng.uniform(0, (height, width), (30, 2)).astype(np.float32)
        squares = (spots[:, :1] - discs[:, 0]) ** 2 + (spots[:, 1:] - discs[:, 1]) ** 2
        free = np.flatnonzero((squares > (discs[:, 2] + radius) ** 2).all(axis=1))
        if free.size:
            discs = np.vstack([discs, np.array([*spots[free[0]], radius], np.float32)])
    y, x, radius = discs.T
    along_z = _splines(size[0], 12)
    sway_y, sway_x, swell = along_z @ rng.standard_normal((3, along_z.shape[1], len(discs)), dtype=np.float32)
    reach = np.minimum(0.35 * radius, 4)
    radii = (radius - 1) * (0.92 + 0.22 * swell).clip(0.5, 1.3)
    owner = _share_cells(rng, discs)
    thickest = np.zeros(int(owner.max()) + 1, np.float32)
    np.maximum.at(thickest, owner, radii.max(axis=0))
    return _Neurites(y + reach * sway_y, x + reach * sway_x, radii, owner, thickest, (height, width))


def _share_cells(rng: np.random.Generator, discs: Floats) -> Labels:
    """Join some neighbours, which makes outlines irregular, and give many of the smallest discs to glia."""
    owner = np.arange(len(discs))
    between = np.hypot(discs[:, :1] - discs[:, 0], discs[:, 1:2] - discs[:, 1])
    np.fill_diagonal(between, np.inf)
    joined = np.flatnonzero((rng.random(len(discs)) < 0.3) & (discs[:, 2] < 11))
    owner[joined] = between[joined].argmin(axis=1)
    glia = np.flatnonzero((rng.random(len(discs)) < 0.3) & (discs[:, 2] < 5.5))
    if glia.size:
        bodies = glia[:: glia.size // 3 + 1]
        owner[glia] = bodies[between[np.ix_(glia, bodies)].argmin(axis=1)]
    return (np.unique(owner, return_inverse=True)[1] + 1).astype(np.uint16)


@functools.cache
def _disc(radius: int) -> tuple[npt.NDArray[np.int32], ...]:
    offsets = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.int32)
    return tuple(offsets[:, np.hypot(*offsets) < radius + 0.3])


def _paint(volume: Labels, z: Any, y: Any, x: Any, radius: Any, label: Any) -> None:
    """Fill discs, the large ones first so that they do not cover small ones; the arguments broadcast."""
    columns = (np.ravel(column) for column in np.broadcast_arrays(z, y, x, radius, label))
    z, y, x, radius, label = (np.rint(column).astype(np.int32) for column in columns)
    for r in np.unique(radius[radius > 0])[::-1]:
        dy, dx = _disc(int(r))
        fits = (radius == r) & (z >= 0) & (z < volume.shape[0])
        # Discs that the edge of the padding cuts are skipped, because the padding is removed in the end.
        fits &= (y >= r) & (y < volume.shape[1] - r) & (x >= r) & (x < volume.shape[2] - r)
        at = np.flatnonzero(fits)[:, None]
        volume[z[at], y[at] + dy, x[at] + dx] = label[at]


def _paint_worm(
    rng: np.random.Generator, volume: Labels, start: Any, rise: float, bend: float, radii: Any, label: Any
) -> None:
    """Paint balls of the given radii, 2 paint pixels apart, along a random curve mostly in the plane."""
    n = len(radii)
    along = _splines(n, 25)
    angle = rng.uniform(0, 2 * np.pi) + bend * (along @ rng.standard_normal(along.shape[1]))
    z = start[0] + rise * np.linspace(0, 1, n)
    y, x = start[1] + 2 * np.cumsum(np.sin(angle)), start[2] + 2 * np.cumsum(np.cos(angle))
    reach = int(np.max(radii) / _SLICE_PX) + 1
    slices = np.rint(z) + np.arange(-reach, reach + 1)[:, None]
    profile = np.sqrt((np.square(radii) - ((slices - z) * _SLICE_PX) ** 2).clip(0))
    _paint(volume, slices, y, x, profile, label)


def paint_tissue(rng: np.random.Generator, neurites: _Neurites) -> tuple[Labels, Labels]:
    """Paint the cores of the cells, and their organelles, as straight bundles in the padded volume."""
    n_slices = len(neurites.y)
    cores, organelles = (np.zeros((n_slices, *neurites.edges), np.uint16) for _ in range(2))
    _paint(cores, np.arange(n_slices)[:, None], neurites.y, neurites.x, neurites.radius, neurites.owner)
    for k, radius in enumerate(neurites.radius.mean(axis=0)):
        is_dendrite, label = radius > 18, neurites.owner[k]
        starts = [(z, neurites.y[int(z), k], neurites.x[int(z), k]) for z in rng.uniform(0, n_slices, n_slices // 8)]
        for start in starts if radius > 8 else ():
            step = rng.uniform(-0.6, 0.6, 2) * radius
            tube = np.full(rng.integers(5, 18), rng.uniform(2.0, 3.2))
            inside = (start[0], start[1] + step[0], start[2] + step[1])
            _paint_worm(rng, organelles, inside, rng.uniform(-4, 4), 1.0, tube, label + RETICULUM)
        for start in starts[::2] if is_dendrite else ():
            spine = np.full(int(radius + rng.uniform(18, 50)) // 2, 3.7)
            spine[-5:] = rng.uniform(8, 13)
            _paint_worm(rng, cores, start, rng.uniform(-4, 4), 0.4, spine, label)
        for _ in range(3 if is_dendrite else rng.integers(0, 3) if radius > 7 else 0):
            _add_mitochondrion(rng, organelles, neurites, k)
    for label in rng.choice(neurites.owner, neurites.edges[0] * neurites.edges[1] * n_slices // 350_000):
        along = _splines(160, 25)
        axon = rng.uniform(4, 8) * (1 + 0.25 * along @ rng.standard_normal(along.shape[1])).clip(0.7, 1.6)
        _paint_worm(rng, cores, rng.uniform(0, cores.shape), rng.uniform(-12, 12), 0.5, axon, label)
    return cores, organelles


def _add_mitochondrion(rng: np.random.Generator, organelles: Labels, neurites: _Neurites, k: int) -> None:
    radius = neurites.radius[:, k]
    z = np.arange(len(radius))
    middle, length, angle = rng.uniform(0, len(z)), rng.uniform(8, 45), rng.uniform(0, 2 * np.pi)
    taper = (1 - (2 * np.abs(z - middle) / length) ** 3).clip(0) ** 0.5
    thick = np.minimum(0.6 * radius, rng.uniform(6.5, 11)) * taper
    off = rng.uniform(0.2, 0.8) * (radius - thick).clip(0)
    y, x = neurites.y[:, k] + off * np.sin(angle), neurites.x[:, k] + off * np.cos(angle)
    for side in (-0.35, 0.35):  # two discs side by side make an oval
        _paint(organelles, z, y + side * thick, x - side * thick, thick, neurites.owner[k])


def grow_and_bend(rng: np.random.Generator, cores: Labels, organelles: Labels, size: Size) -> tuple[Labels, Labels]:
    """Grow the cores until they touch, and bend all by smooth noise into a volume of 8 nm voxels."""
    # Wide noise bends the neurites; narrow noise makes membranes, which are straight where cells meet, irregular.
    noise = [
        [(amplitude, smooth_field(rng, size, spacing)) for _ in "yx"]
        for amplitude, spacing in ((15, (28, 190, 190)), (2.2, (9, 45, 45)), (0.6, (3, 13, 13)))
    ]
    straight = np.mgrid[: size[1], : size[2]].astype(np.float32) / 2 + _PAD
    height, width = cores.shape[1:]
    labels, bent_organelles = np.empty(size, np.uint16), np.empty(size, np.uint16)

    def fill(z: int) -> None:
        nearest = ndimage.distance_transform_edt(cores[z] == 0, return_distances=False, return_indices=True)
        y, x = (straight[k] + sum(a * field(z) for a, field in (pair[k] for pair in noise)) for k in range(2))
        at = np.rint(y).clip(0, height - 1).astype(np.intp) * width + np.rint(x).clip(0, width - 1).astype(np.intp)
        labels[z] = cores[z][tuple(nearest)].take(at)
        bent_organelles[z] = organelles[z].take(at)

    for_each_slice(fill, size[0])
    return labels, bent_organelles


def with_gaps(labels: Labels) -> Labels:
    """Set to 0 the voxels whose cell changes towards greater y or x: a gap one voxel thin."""
    gaps = labels.copy()
    gaps[:, :-1][labels[:, :-1] != labels[:, 1:]] = 0
    gaps[:, :, :-1][labels[:, :, :-1] != labels[:, :, 1:]] = 0
    return gaps


class Synapse(NamedTuple):
    """A contact between two cells, where the first releases vesicles."""

    at: tuple[int, int, int]  # z, y, x in image voxels
    before: int  # label of the cell with the vesicles
    after: int
    radius: float  # of the density, in image voxels


def place_synapses(rng: np.random.Generator, labels: Labels, is_axon: npt.NDArray[np.bool_]) -> list[Synapse]:
    """Choose about one position per cubic micrometre where an axon is thick and touches another cell."""
    n = labels.size // 150
    at = np.stack([rng.integers(0, edge, n) for edge in labels.shape])
    angle = rng.uniform(0, 2 * np.pi, n)
    step = np.stack([np.zeros(n), np.sin(angle), np.cos(angle)])
    limit = np.array(labels.shape)[:, None] - 1
    before, *inside, after, beyond = (
        labels[tuple(np.rint(at + distance * step).astype(int).clip(0, limit))] for distance in (-3, -12, -26, 5, 12)
    )
    suits = (before != after) & (after == beyond) & is_axon[before]
    suits &= (before == inside[0]) & (before == inside[1])
    chosen: list[Synapse] = []
    for k in np.flatnonzero(suits):
        z, y, x = at[:, k].tolist()
        if all(abs(s.at[0] - z) > 9 or abs(s.at[1] - y) + abs(s.at[2] - x) > 90 for s in chosen):
            chosen.append(Synapse((z, y, x), int(before[k]), int(after[k]), rng.uniform(15, 28)))
        if len(chosen) > labels.size // 350_000:
            break
    return chosen
