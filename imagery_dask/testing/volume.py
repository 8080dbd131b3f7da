"""A small synthetic electron-microscopy volume with its segmentation, as Neuroglancer precomputed volumes.

The module ``tissue`` makes the cells; this one draws and writes them. The image is drawn from their labels, so that
it always agrees with the segmentation. Arrays are in (z, y, x) order, the order in which slices are drawn; the public
functions return Fortran-ordered (x, y, z) transposes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tinybrain
from cloudvolume import CloudVolume
from scipy import ndimage

from imagery_dask.annotations import Array
from imagery_dask.testing import tissue
from imagery_dask.testing.tissue import Floats, Labels, Size

__all__ = ["DemoVolumes", "synthesize", "write_demo_volumes"]

_IMAGE_OFFSET_XYZ = (12288, 8192, 1024)
_N_MIPS = 3
# Root ids of CAVE's public mouse datasets are near this number, where float64 values are 128 apart.
_FIRST_ROOT_ID, _FLOAT64_STEP = 864_691_135_000_000_000, 128

_TILE_SLACK = 256  # image voxels by which the texture tiles exceed a slice

_STAMP = np.mgrid[-4:5, -4:5]
_FROM_RIM = np.hypot(*_STAMP) - 2.3  # of a vesicle, 37 nm wide
_VESICLE = (52 * np.exp(-((_FROM_RIM / 1.1) ** 2)) - 4 * (_FROM_RIM < -1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class DemoVolumes:
    """Sources of the demo volumes, and a position to look at.

    Attributes
    ----------
    image_source, segmentation_source : str
        Sources of the form ``precomputed://file:///...``.
    center : tuple of int
        Centre of the volume: x, y, z in voxels of the image's mip 0 (8 x 8 x 40 nm), absolute.
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
        The same seed and shape give the same volumes, up to rounding differences between machines.

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
    neurites = tissue.pack_neurites(rng, size)
    labels, organelles = tissue.grow_and_bend(rng, *tissue.paint_tissue(rng, neurites), size)
    micrograph = _Micrograph(
        labels=labels,
        organelles=organelles,
        synapses=tissue.place_synapses(rng, labels, neurites.thickest < 18),
        shades=rng.normal(0, 6, len(neurites.thickest)).astype(np.float32),
        has_tubules=neurites.thickest > 14,
        textures=_draw_textures(rng, size),
        seed=seed,
    )
    image = np.empty(size, np.uint8)
    tissue.for_each_slice(lambda z: image.__setitem__(z, micrograph.draw(z)), size[0])
    segmentation = _root_ids(rng, len(neurites.thickest))[tissue.with_gaps(labels[:, ::2, ::2])]
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
        The sources, and the centre of the volume.
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


def _write(folder: Path, mips: list[Array], encoding: str, xy_nm: int, offset_xyz: Size) -> str:
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
    """Return a table from label to root id: 0 stays 0, the others are distinct and exceed 2**53."""
    high = _FIRST_ROOT_ID // _FLOAT64_STEP + rng.choice(7_800_000, size=n_labels, replace=False)
    ids = (high * _FLOAT64_STEP + rng.integers(0, _FLOAT64_STEP // 2, size=n_labels)).astype(np.uint64)
    # Some ids form pairs that differ only in their last bit: arithmetic in float64 would merge the two cells.
    pairs = n_labels // 8
    ids[pairs : 2 * pairs] = ids[:pairs] ^ np.uint64(1)
    ids = rng.permutation(ids)
    ids[0] = 0
    return ids


def _blur(field: Array, sigma: float) -> Floats:
    blurred: Floats = ndimage.gaussian_filter(field, sigma, output=np.float32, truncate=3)
    return blurred


def _draw_textures(rng: np.random.Generator, size: Size) -> dict[str, Floats]:
    """Return texture tiles of standard deviation 1, larger than a slice; each slice shows a random part of them."""
    shape = (size[1] + _TILE_SLACK, size[2] + _TILE_SLACK)
    a, b, c, d = (rng.standard_normal(shape, dtype=np.float32) for _ in range(4))
    tiles = {
        "grain": _blur(a, 0.55),
        "cytoplasm": 3 * _blur(b, 1.6) + 5 * _blur(c, 4),
        "cristae": np.tanh(12 * (_blur(d, 1.5) - _blur(d, 3))),
        "tubules": _blur(b > 2.4, 0.8),
        "illumination": tissue.smooth_field(rng, (1, *shape), (1, 90, 90))(0),
    }
    return {name: (tile - tile.mean()) / tile.std() for name, tile in tiles.items()}


@dataclass(frozen=True, slots=True)
class _Micrograph:
    """Draws slices from labels, organelles and synapses, in gray values; stained membranes are dark."""

    labels: Labels
    organelles: Labels
    synapses: list[tissue.Synapse]
    shades: Floats
    has_tubules: npt.NDArray[np.bool_]
    textures: dict[str, Floats]
    seed: int

    def draw(self, z: int) -> npt.NDArray[np.uint8]:
        # A random state for every slice, so that the result does not depend on the order of the threads.
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

    def _membranes(self, z: int) -> Floats:
        # A slice is 40 nm thick: a membrane that it cuts obliquely is blurred between its two faces.
        labels, below = self.labels[z], self.labels[min(z + 1, len(self.labels) - 1)]
        stain: Floats = np.float32(0.2) * (labels != below)
        reticulum = self.organelles[z] == labels + np.uint16(tissue.RETICULUM)
        for upper, lower in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
            stain[upper][reticulum[upper] != reticulum[lower]] = 0.5
            change = labels[upper] != labels[lower]
            stain[upper][change] = stain[lower][change] = 0.85
        return stain

    def _draw_mitochondria(self, gray: Floats, z: int, cristae: Floats) -> None:
        inside = _blur(self.organelles[z] == self.labels[z], 2.0)
        body = inside > 0.5
        gray[body] -= 42 + 22 * cristae[body]
        gray -= 55 * np.exp(-(((inside - 0.5) / 0.25) ** 2))

    def _draw_synapse(self, gray: Floats, z: int, synapse: tissue.Synapse, rng: np.random.Generator) -> None:
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
        # A vesicle is as wide as a slice is thick, so that it is in one slice only. A lattice avoids overlaps.
        lattice = np.mgrid[5 : labels.shape[0] - 5 : 5, 5 : labels.shape[1] - 5 : 5].reshape(2, -1)
        at = tuple(lattice + rng.integers(-1, 2, lattice.shape))
        keep = (distance[at] < 1.4 * synapse.radius + 10) & (before[at] > 0.97) & (rng.random(len(at[0])) < 0.75)
        keep &= self.organelles[z][part][at] == 0
        at_y, at_x = (c[keep][:, None, None] + d for c, d in zip(at, _STAMP, strict=True))
        np.subtract.at(gray[part], (at_y, at_x), np.broadcast_to(_VESICLE, at_y.shape))
