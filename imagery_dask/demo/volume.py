"""A small synthetic electron-microscopy volume with its segmentation, as Neuroglancer precomputed volumes.

The tissue is a packing of discs (profiles of neurites) extruded through z, crossed by spines and by axons
that run in the plane of the slices, grown until the cells touch, and bent by smooth noise. Everything visible
is drawn from that label volume, so that the image and the segmentation always agree.

Inside this module arrays are in (z, y, x) order, the order in which slices are drawn; the public functions
return Fortran-ordered (x, y, z) transposes. Cells are laid out in "paint pixels" of 16 nm, twice the image's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tinybrain
from cloudvolume import CloudVolume
from scipy import ndimage, sparse

__all__ = ["DemoVolumes", "synthesize", "write_demo_volumes"]

_Floats = npt.NDArray[np.float32]
_Labels = npt.NDArray[np.uint16]
_Size = tuple[int, int, int]

_IMAGE_OFFSET_XYZ = (12288, 8192, 1024)
_N_MIPS = 3
# Root ids of CAVE's public mouse datasets begin like this. float64 steps by 128 there.
_FIRST_ROOT_ID, _FLOAT64_STEP = 864_691_135_000_000_000, 128

_SLICE_PX = 40 / 16  # thickness of a slice, in paint pixels
_PAD = 48  # paint pixels around the volume, from which the bending noise pulls cells in
_TILE_SLACK = 256  # image voxels by which the texture tiles exceed a slice
_RETICULUM = 1 << 15  # added to a cell's label where its endoplasmic reticulum is

_STAMP = np.mgrid[-4:5, -4:5]
_FROM_RIM = np.hypot(*_STAMP) - 2.3  # of a vesicle, 37 nm wide
_VESICLE = (52 * np.exp(-((_FROM_RIM / 1.1) ** 2)) - 4 * (_FROM_RIM < -1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class DemoVolumes:
    """Where the demo volumes are, and where to look.

    Attributes
    ----------
    image_source, segmentation_source : str
        Sources of the form ``precomputed://file:///...``.
    center : tuple of int
        The middle, around which there is most to see: x, y, z in voxels of the image's mip 0
        (8 x 8 x 40 nm), absolute.
    """

    image_source: str
    segmentation_source: str
    center: tuple[int, int, int]


def synthesize(
    shape: tuple[int, int, int] = (768, 768, 64), seed: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
    """Make a volume that looks like neuropil, with its segmentation.

    Parameters
    ----------
    shape : tuple of int
        Size of the image in x, y, z voxels of 8 x 8 x 40 nm; x and y must be even and from 32 to 4096.
    seed : int
        The same seed and shape give the same volumes, up to how machines round.

    Returns
    -------
    image : numpy.ndarray
        uint8 of the given shape in x, y, z, Fortran-ordered, 8 x 8 x 40 nm.
    segmentation : numpy.ndarray
        uint64 of half that shape in x and y, Fortran-ordered, 16 x 16 x 40 nm. 0 is membrane; the ids
        exceed 2**53, and some differ by so little that a float64 would merge them.

    Raises
    ------
    ValueError
        If the shape is odd, too small or too large.
    """
    if shape[2] < 1 or any(n % 2 or not 32 <= n <= 4096 for n in shape[:2]):
        raise ValueError(f"shape {shape} must have x and y even and from 32 to 4096, and z at least 1")
    rng = np.random.default_rng(seed)
    size = (shape[2], shape[1], shape[0])
    neurites = _pack_neurites(rng, size)
    labels, organelles = _grow_and_bend(rng, *_paint_tissue(rng, neurites), size)
    micrograph = _Micrograph(
        labels=labels,
        organelles=organelles,
        synapses=_place_synapses(rng, labels, neurites.thickest < 18),
        shades=rng.normal(0, 6, len(neurites.thickest)).astype(np.float32),
        has_tubules=neurites.thickest > 14,
        textures=_draw_textures(rng, size),
        seed=seed,
    )
    image = np.empty(size, np.uint8)
    _for_each_slice(lambda z: image.__setitem__(z, micrograph.draw(z)), size[0])
    segmentation = _root_ids(rng, len(neurites.thickest))[_with_gaps(labels[:, ::2, ::2])]
    return image.T, segmentation.T


def write_demo_volumes(folder: Path, shape: tuple[int, int, int] = (768, 768, 64), seed: int = 0) -> DemoVolumes:
    """Write the synthetic volumes as precomputed volumes of three mips each.

    Parameters
    ----------
    folder : pathlib.Path
        Receives the folders ``image`` (jpeg) and ``segmentation`` (compressed_segmentation).
    shape, seed
        As in :func:`synthesize`.

    Returns
    -------
    DemoVolumes
        The sources, and a good place to look at.
    """
    image, segmentation = synthesize(shape, seed)
    image_mips = tinybrain.downsample_with_averaging(image, (2, 2, 1), num_mips=_N_MIPS - 1)
    label_mips = tinybrain.downsample_segmentation(segmentation, (2, 2, 1), num_mips=_N_MIPS - 1)
    x, y, z = _IMAGE_OFFSET_XYZ
    return DemoVolumes(
        image_source=_write(folder / "image", [image, *image_mips], "jpeg", 8, (x, y, z)),
        segmentation_source=_write(
            folder / "segmentation", [segmentation, *label_mips], "compressed_segmentation", 16, (x // 2, y // 2, z)
        ),
        center=(x + shape[0] // 2, y + shape[1] // 2, z + shape[2] // 2),
    )


def _write(folder: Path, mips: list[npt.NDArray[Any]], encoding: str, xy_nm: int, offset_xyz: _Size) -> str:
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="image" if encoding == "jpeg" else "segmentation",
        data_type=str(mips[0].dtype),
        encoding=encoding,
        resolution=(xy_nm, xy_nm, 40),
        voxel_offset=offset_xyz,
        volume_size=mips[0].shape,
        chunk_size=(64, 64, 16),
        max_mip=len(mips) - 1,
    )
    for scale in info["scales"] if encoding == "jpeg" else ():
        scale["jpeg_quality"] = 90
    source = f"precomputed://file://{folder.resolve()}"
    CloudVolume(source, info=info, progress=False).commit_info()
    for mip, voxels in enumerate(mips):
        CloudVolume(source, mip=mip, progress=False)[:] = voxels
    return source


def _root_ids(rng: np.random.Generator, n_labels: int) -> npt.NDArray[np.uint64]:
    """Table from label to root id: 0 stays 0, the others are distinct and exceed 2**53."""
    high = _FIRST_ROOT_ID // _FLOAT64_STEP + rng.choice(7_800_000, size=n_labels, replace=False)
    ids = (high * _FLOAT64_STEP + rng.integers(0, _FLOAT64_STEP // 2, size=n_labels)).astype(np.uint64)
    # Pairs that differ in their last bit only: arithmetic in float64 would merge the two cells.
    pairs = n_labels // 8
    ids[pairs : 2 * pairs] = ids[:pairs] ^ np.uint64(1)
    ids = rng.permutation(ids)
    ids[0] = 0
    return ids


def _for_each_slice(task: Callable[[int], None], n: int) -> None:
    # scipy's filters release the GIL, so that threads do help; beyond four, memory is the limit.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(task, range(n)))


def _splines(n: int, spacing: float) -> _Floats:
    """Uniform cubic B-splines with knots ``spacing`` apart, at n points: (n, knots)."""
    first, u = np.divmod(np.arange(n) / spacing, 1)
    weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    basis = np.zeros((n, int(first[-1]) + 4), np.float32)
    for k, weight in enumerate(weights):
        # 151 / 315 is the mean of the sum of squared weights: white noise keeps its standard deviation.
        basis[np.arange(n), first.astype(int) + k] = weight / 6 / (151 / 315) ** 0.5
    return basis


def _smooth_field(rng: np.random.Generator, size: _Size, spacing: _Size) -> Callable[[int], _Floats]:
    """Smooth noise of mean 0 and standard deviation 1 over a volume, as a function that gives slice z."""
    # Sparse products are quick here, and single-threaded, unlike BLAS, whose threads would fight with ours.
    along_z, along_y, along_x = (sparse.csr_array(_splines(n, step)) for n, step in zip(size, spacing, strict=True))
    n_knots = along_y.shape[1], along_x.shape[1]
    knots = rng.standard_normal((along_z.shape[1], n_knots[0] * n_knots[1]), dtype=np.float32)
    sheets = (along_z @ knots).reshape(-1, *n_knots)
    return lambda z: along_y @ (along_x @ sheets[z].T).T


class _Neurites(NamedTuple):
    """Profiles of the neurites: y, x and radius are (slices, neurites), in padded paint pixels."""

    y: _Floats
    x: _Floats
    radius: _Floats
    owner: _Labels  # label of each neurite's cell, from 1; a cell may own several neurites
    thickest: _Floats  # largest radius of each cell, by label
    edges: tuple[int, int]  # height and width of the padded slice


def _pack_neurites(rng: np.random.Generator, size: _Size) -> _Neurites:
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


def _share_cells(rng: np.random.Generator, discs: _Floats) -> _Labels:
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


def _paint(volume: _Labels, z: Any, y: Any, x: Any, radius: Any, label: Any) -> None:
    """Fill discs, the large ones first so that the small stay whole; the arguments broadcast."""
    columns = (np.ravel(column) for column in np.broadcast_arrays(z, y, x, radius, label))
    z, y, x, radius, label = (np.rint(column).astype(np.int32) for column in columns)
    for r in np.unique(radius[radius > 0])[::-1]:
        dy, dx = _disc(int(r))
        fits = (radius == r) & (z >= 0) & (z < volume.shape[0])
        # The padding is thrown away in the end: what is cut off there need not be whole.
        fits &= (y >= r) & (y < volume.shape[1] - r) & (x >= r) & (x < volume.shape[2] - r)
        at = np.flatnonzero(fits)[:, None]
        volume[z[at], y[at] + dy, x[at] + dx] = label[at]


def _paint_worm(
    rng: np.random.Generator, volume: _Labels, start: Any, rise: float, bend: float, radii: Any, label: Any
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


def _paint_tissue(rng: np.random.Generator, neurites: _Neurites) -> tuple[_Labels, _Labels]:
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
            _paint_worm(rng, organelles, inside, rng.uniform(-4, 4), 1.0, tube, label + _RETICULUM)
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


def _add_mitochondrion(rng: np.random.Generator, organelles: _Labels, neurites: _Neurites, k: int) -> None:
    radius = neurites.radius[:, k]
    z = np.arange(len(radius))
    middle, length, angle = rng.uniform(0, len(z)), rng.uniform(8, 45), rng.uniform(0, 2 * np.pi)
    taper = (1 - (2 * np.abs(z - middle) / length) ** 3).clip(0) ** 0.5
    thick = np.minimum(0.6 * radius, rng.uniform(6.5, 11)) * taper
    off = rng.uniform(0.2, 0.8) * (radius - thick).clip(0)
    y, x = neurites.y[:, k] + off * np.sin(angle), neurites.x[:, k] + off * np.cos(angle)
    for side in (-0.35, 0.35):  # two discs side by side make an oval
        _paint(organelles, z, y + side * thick, x - side * thick, thick, neurites.owner[k])


def _grow_and_bend(
    rng: np.random.Generator, cores: _Labels, organelles: _Labels, size: _Size
) -> tuple[_Labels, _Labels]:
    """Grow the cores until they touch, and bend all by smooth noise into a volume of 8 nm voxels."""
    # From wide, which makes neurites wander, to narrow: cells meet in straight lines, membranes never do.
    noise = [
        [(amplitude, _smooth_field(rng, size, spacing)) for _ in "yx"]
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

    _for_each_slice(fill, size[0])
    return labels, bent_organelles


def _with_gaps(labels: _Labels) -> _Labels:
    """Set to 0 the voxels whose cell changes towards greater y or x: a gap one voxel thin."""
    gaps = labels.copy()
    gaps[:, :-1][labels[:, :-1] != labels[:, 1:]] = 0
    gaps[:, :, :-1][labels[:, :, :-1] != labels[:, :, 1:]] = 0
    return gaps


class _Synapse(NamedTuple):
    at: tuple[int, int, int]  # z, y, x in image voxels
    before: int  # label of the cell with the vesicles
    after: int
    radius: float  # of the density, in image voxels


def _place_synapses(rng: np.random.Generator, labels: _Labels, is_axon: npt.NDArray[np.bool_]) -> list[_Synapse]:
    """Choose about one place per cubic micrometre where an axon is thick and touches another cell."""
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
    chosen: list[_Synapse] = []
    for k in np.flatnonzero(suits):
        z, y, x = at[:, k].tolist()
        if all(abs(s.at[0] - z) > 9 or abs(s.at[1] - y) + abs(s.at[2] - x) > 90 for s in chosen):
            chosen.append(_Synapse((z, y, x), int(before[k]), int(after[k]), rng.uniform(15, 28)))
        if len(chosen) > labels.size // 350_000:
            break
    return chosen


def _blur(field: npt.NDArray[Any], sigma: float) -> _Floats:
    blurred: _Floats = ndimage.gaussian_filter(field, sigma, output=np.float32, truncate=3)
    return blurred


def _draw_textures(rng: np.random.Generator, size: _Size) -> dict[str, _Floats]:
    """Tiles of standard deviation 1, larger than a slice, each slice of which shows another part."""
    shape = (size[1] + _TILE_SLACK, size[2] + _TILE_SLACK)
    a, b, c, d = (rng.standard_normal(shape, dtype=np.float32) for _ in range(4))
    tiles = {
        "grain": _blur(a, 0.55),
        "cytoplasm": 3 * _blur(b, 1.6) + 5 * _blur(c, 4),
        "cristae": np.tanh(12 * (_blur(d, 1.5) - _blur(d, 3))),
        "tubules": _blur(b > 2.4, 0.8),
        "illumination": _smooth_field(rng, (1, *shape), (1, 90, 90))(0),
    }
    return {name: (tile - tile.mean()) / tile.std() for name, tile in tiles.items()}


@dataclass(frozen=True, slots=True)
class _Micrograph:
    """Draws slices from labels, organelles and synapses, in gray values; dark is what osmium stains."""

    labels: _Labels
    organelles: _Labels
    synapses: list[_Synapse]
    shades: _Floats
    has_tubules: npt.NDArray[np.bool_]
    textures: dict[str, _Floats]
    seed: int

    def draw(self, z: int) -> npt.NDArray[np.uint8]:
        # A random state for every slice: the result must not depend on the order of the threads.
        rng = np.random.default_rng([self.seed, z])
        labels = self.labels[z]
        texture = {}
        for name, tile in self.textures.items():
            y, x = rng.integers(_TILE_SLACK, size=2)
            texture[name] = tile[y : y + labels.shape[0], x : x + labels.shape[1]]
        gray = 176 + self.shades[labels] + 7 * texture["cytoplasm"] + 4 * texture["illumination"]
        gray -= self.has_tubules[labels] * (14 * texture["tubules"]).clip(0, 45)
        self._draw_mitochondria(gray, z, texture["cristae"])
        gray = _blur(gray - 180 * self._membranes(z), 1.05) + 8 * texture["grain"]
        for synapse in self.synapses:
            self._draw_synapse(gray, z, synapse, rng)
        return (gray * rng.normal(1, 0.02) + rng.normal(0, 3)).clip(0, 255).astype(np.uint8)

    def _membranes(self, z: int) -> _Floats:
        # A slice is 40 nm thick: a membrane that it cuts obliquely is smeared between its two faces.
        labels, below = self.labels[z], self.labels[min(z + 1, len(self.labels) - 1)]
        stain: _Floats = np.float32(0.2) * (labels != below)
        reticulum = self.organelles[z] == labels + np.uint16(_RETICULUM)
        for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
            stain[here][reticulum[here] != reticulum[there]] = 0.5
            change = labels[here] != labels[there]
            stain[here][change] = stain[there][change] = 0.85
        return stain

    def _draw_mitochondria(self, gray: _Floats, z: int, cristae: _Floats) -> None:
        inside = _blur(self.organelles[z] == self.labels[z], 2.0)
        body = inside > 0.5
        gray[body] -= 42 + 22 * cristae[body]
        gray -= 55 * np.exp(-(((inside - 0.5) / 0.25) ** 2))

    def _draw_synapse(self, gray: _Floats, z: int, synapse: _Synapse, rng: np.random.Generator) -> None:
        """Darken the membrane, mostly on the side of the receiving cell, and fill the other with vesicles."""
        span, height = 44, (z - synapse.at[0]) * 5.0
        if abs(height) > min(span, 1.4 * synapse.radius + 10):
            return
        y, x = (max(c - span, 0) for c in synapse.at[1:])
        part = np.s_[y : synapse.at[1] + span, x : synapse.at[2] + span]
        labels = self.labels[z][part]
        rows, columns = np.ogrid[y : y + labels.shape[0], x : x + labels.shape[1]]
        distance = np.sqrt((rows - synapse.at[1]) ** 2 + (columns - synapse.at[2]) ** 2 + height**2)
        before, after = _blur(labels == synapse.before, 3), _blur(labels == synapse.after, 1.5)
        density = before * after / (1 + np.exp((distance - synapse.radius) / 2))
        gray[part] -= (340 * density).clip(0, 95)
        # A vesicle is as wide as a slice is thick: each is in one only. From a lattice, so that few overlap.
        lattice = np.mgrid[5 : labels.shape[0] - 5 : 5, 5 : labels.shape[1] - 5 : 5].reshape(2, -1)
        at = tuple(lattice + rng.integers(-1, 2, lattice.shape))
        keep = (distance[at] < 1.4 * synapse.radius + 10) & (before[at] > 0.97) & (rng.random(len(at[0])) < 0.75)
        keep &= self.organelles[z][part][at] == 0
        at_y, at_x = (c[keep][:, None, None] + d for c, d in zip(at, _STAMP, strict=True))
        np.subtract.at(gray[part], (at_y, at_x), np.broadcast_to(_VESICLE, at_y.shape))
