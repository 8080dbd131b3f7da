"""Neuroglancer draws an export and its source at the same position, pixel for pixel.

Neuroglancer uses the same arithmetic for every format once it has the edges of the voxels, and no pixel of these views
depends on rounding (`NM_PER_PIXEL`). Pictures are therefore compared without a tolerance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from browser.stores import RESOLUTION_NM, write_ome_zarr, write_precomputed
from numpy.typing import NDArray
from PIL import Image
from support.http_server import FileServer
from support.volumes import Xyz, coordinate_volume, random_labels, smooth_image

from imagery_dask import ImageryClient, to_precomputed, to_zarr

neuroglancer = pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")
from browser.viewing import BACKGROUND, PANEL, PICTURE_S, NoPicture, Picture, Screen  # noqa: E402 (which needs it too)

SHAPE = (193, 151, 41)
LEVELS = 3
#: First voxel of the volume; a multiple of the voxel size of the coarsest level.
OFFSET = (-20, 32, 7)
#: Centres of views, in voxels from the volume's first: all three panels show the beginning, or the end, of the volume.
BEGIN, END = (12, 9, 2), (185, 141, 38)
#: Voxels are 2 x 2 pixels in x and y, 10 in z. Panels have an even number of pixels and are centred on a voxel, so
#: that no pixel's centre lies on an edge between voxels, where its color would depend on rounding.
NM_PER_PIXEL = 4.0

GREY = "void main() { emitGrayscale(toNormalized(getDataValue())); }"
RED = "void main() { emitRGB(vec3(toNormalized(getDataValue()), 0, 0)); }"
GREEN = "void main() { emitRGB(vec3(0, toNormalized(getDataValue()), 0)); }"


class Shown(NamedTuple):
    """URLs of an image and a segmentation, relative to the served folder, in the form that Neuroglancer expects."""

    image: str
    ids: str


@dataclass(frozen=True)
class World:
    """A served folder that contains the source and its exports."""

    folder: Path
    server: FileServer
    image: NDArray[np.uint8]
    ids: NDArray[np.uint64]
    written: dict[tuple[str, int], Shown] = field(default_factory=dict)
    #: Pictures of the source by layer and view, kept because many exports are compared with each.
    taken: dict[tuple[str, Xyz], Picture] = field(default_factory=dict)

    def export(self, name: str, levels: int = 1) -> Shown:
        """Write the source or one of `EXPORTS`, unless it is written already."""
        if (name, levels) not in self.written:
            write = partial(precomputed, compress=False) if name == "source" else EXPORTS[name]
            self.written[name, levels] = write(self, f"{name}-{levels}", levels)
        return self.written[name, levels]

    @property
    def source(self) -> Shown:
        return self.export("source", LEVELS)

    @property
    def selected(self) -> list[int]:
        """Every other id. Ids come in pairs that differ by 1, so that one of each pair is selected."""
        ids = np.unique(self.ids)
        return [int(value) for value in ids[ids > 0][::2]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("served")
    image = smooth_image(SHAPE) // 2 + coordinate_volume(SHAPE, OFFSET, np.uint8) // 2
    ids = random_labels(SHAPE, n=60, block=7)
    with FileServer(folder) as server:
        yield World(folder, server, image, ids)


# --------------------------------------------------------------------------------------------------------- exports

Export = Callable[[World, str, int], Shown]
"""Writes the world under a name, with a number of levels."""


def source_dataset(world: World) -> Any:
    """Return the dataset of the source's image and segmentation that the client makes."""
    em, ids = (f"precomputed://file://{world.folder}/{url.split('|')[0]}" for url in world.source)
    client = ImageryClient(image_source=em, segmentation_source=ids)
    return client.dataset([OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]])


def our_zarr(world: World, name: str, levels: Any, suffix: str = "|zarr3:", **options: Any) -> Shown:
    options = {"levels": levels, "chunks": (64, 32, 16)} | options
    to_zarr(source_dataset(world), world.folder / name, progress=False, **options)
    return Shown(f"{name}/{suffix}", f"{name}/labels/segmentation/{suffix}")


def our_precomputed(world: World, name: str, levels: int, **options: Any) -> Shown:
    to_precomputed(source_dataset(world), world.folder / name, levels=levels, progress=False, **options)
    suffix = "|neuroglancer-precomputed:"
    return Shown(f"{name}/image/{suffix}", f"{name}/segmentation/{suffix}")


def ome_zarr(world: World, name: str, levels: int, suffix: str = "|zarr3:", **options: Any) -> Shown:
    for kind, data in (("em", world.image), ("ids", world.ids)):
        write_ome_zarr(world.folder / name / kind, data, OFFSET, levels, **options)
    return Shown(f"{name}/em/{suffix}", f"{name}/ids/{suffix}")


def precomputed(world: World, name: str, levels: int, **options: Any) -> Shown:
    suffix = "|neuroglancer-precomputed:"
    for kind, data in (("em", world.image), ("ids", world.ids)):
        write_precomputed(world.folder / name / kind, data, OFFSET, levels, **options)
    return Shown(f"{name}/em/{suffix}", f"{name}/ids/{suffix}")


EXPORTS: dict[str, Export] = {
    "to_zarr": our_zarr,
    "to_zarr-sharded": partial(our_zarr, shards=(64, 96, 32), codec="zstd"),
    "to_zarr-0.4": partial(our_zarr, suffix="|zarr2:", ome_version="0.4", codec="gzip"),
    "to_zarr-source-mips": lambda world, name, levels: our_zarr(world, name, "source"),
    "to_precomputed": our_precomputed,
    "to_precomputed-png": partial(our_precomputed, encoding={"image": "png"}, chunks=(32, 32, 32)),
    # Files of other writers, which show that the comparison does not depend on our writers.
    "ome-zarr-0.5-sharded": partial(ome_zarr, shards=(64, 96, 32)),
    "precomputed-sharded": partial(precomputed, sharding=True),
}


# -------------------------------------------------------------------------------------------------------- pictures


class Camera:
    """Takes pictures of served layers and saves them as files.

    Parameters
    ----------
    screen, world
        The browser, and the served folder.
    folder
        Folder for ``NAME.png``.
    """

    def __init__(self, screen: Screen, world: World, folder: Path) -> None:
        self.screen, self.world, self.folder = screen, world, folder

    def image(self, shown: Shown, level: int = 0, shader: str = GREY, **options: Any) -> Any:
        return neuroglancer.ImageLayer(
            source=f"{self.world.server.url}/{shown.image}",
            shader=shader,
            opacity=1.0,
            cross_section_render_scale=self._pixels_per_voxel(level),
            **options,
        )

    def segmentation(self, shown: Shown, level: int = 0) -> Any:
        return neuroglancer.SegmentationLayer(
            source=f"{self.world.server.url}/{shown.ids}",
            segments=self.world.selected,
            selected_alpha=0.8,
            not_selected_alpha=0.2,
            cross_section_render_scale=self._pixels_per_voxel(level),
        )

    @staticmethod
    def _pixels_per_voxel(level: int) -> float:
        """Return the render scale at which Neuroglancer draws a level without zooming out."""
        return RESOLUTION_NM[0] * 2**level / NM_PER_PIXEL

    def take(self, name: str, *layers: Any, at: Xyz, timeout_s: float = PICTURE_S) -> Picture:
        position = [(o + v + 0.5) * nm for o, v, nm in zip(OFFSET, at, RESOLUTION_NM, strict=True)]
        picture = self.screen.picture(*layers, position_nm=position, nm_per_pixel=NM_PER_PIXEL, timeout_s=timeout_s)
        Image.fromarray(picture.pixels).save(self.folder / f"{name}.png")
        return picture


@pytest.fixture
def camera(screen: Screen, world: World, tmp_path: Path) -> Camera:
    return Camera(screen, world, tmp_path)


def assert_same_picture(camera: Camera, source: Any, export: Any, *, at: Xyz, level: int = 0) -> None:
    """Assert that two layers, shown one at a time, give the same picture of a level, and that it is not empty."""
    key = (json.dumps(source.to_json(), sort_keys=True), at)
    expected = camera.world.taken.get(key) or camera.take("source", source, at=at)
    camera.world.taken[key] = expected
    picture = camera.take("export", export, at=at)
    side = RESOLUTION_NM[0] * 2**level
    assert picture.voxels == expected.voxels == [f"x {side}nm y {side}nm z {RESOLUTION_NM[2]}nm"]
    assert_something_is_shown(expected)
    different = int((picture.pixels != expected.pixels).any(axis=-1).sum())
    assert not different, f"{different} pixels differ"


def assert_something_is_shown(picture: Picture) -> None:
    for panel in picture.panels:
        colors, counts = np.unique(panel[(panel != BACKGROUND).any(axis=-1)], axis=0, return_counts=True)
        assert counts.sum() > PANEL**2 / 10, "less than a tenth of the panel is drawn"
        assert len(colors) > 10, "the panel has ten colors or fewer"


# ----------------------------------------------------------------------------------------------------------- tests


#: The end of the volume is compared for one export of `imagery_dask`.
VIEWS = [*(pytest.param(name, BEGIN, id=name) for name in EXPORTS), pytest.param("to_zarr", END, id="to_zarr-end")]


@pytest.mark.parametrize(("export", "at"), VIEWS)
def test_an_exported_image_has_the_pixels_of_its_source(camera: Camera, export: str, at: Xyz) -> None:
    world = camera.world
    assert_same_picture(camera, camera.image(world.source), camera.image(world.export(export)), at=at)


@pytest.mark.parametrize(("export", "at"), VIEWS)
def test_exported_segments_have_the_pixels_of_their_source(camera: Camera, export: str, at: Xyz) -> None:
    world = camera.world
    assert_same_picture(camera, camera.segmentation(world.source), camera.segmentation(world.export(export)), at=at)


@pytest.mark.long
@pytest.mark.parametrize("export", EXPORTS)
def test_source_and_export_overlap_exactly(camera: Camera, export: str) -> None:
    """Red and green add up to yellow where both have the same voxels."""
    world = camera.world
    source = camera.image(world.source, shader=RED)
    picture = camera.take("both", source, camera.image(world.export(export), shader=GREEN, blend="additive"), at=BEGIN)
    assert_something_is_shown(picture)
    np.testing.assert_array_equal(picture.pixels[..., 0], picture.pixels[..., 1])


@pytest.mark.long
@pytest.mark.parametrize("level", range(1, LEVELS))
@pytest.mark.parametrize("kind", ["image", "segmentation"])
@pytest.mark.parametrize("export", EXPORTS)
def test_a_level_has_the_pixels_of_the_same_level_of_its_source(
    camera: Camera, export: str, kind: str, level: int
) -> None:
    # Not at the end: only precomputed volumes cut off half a voxel beyond the last voxel of level 0.
    world, layer = camera.world, getattr(camera, kind)
    assert_same_picture(
        camera, layer(world.source, level), layer(world.export(export, LEVELS), level), at=BEGIN, level=level
    )


# ---------------------------------------------------------------------------------- the comparison detects errors


@pytest.mark.parametrize("shift", [0.5, 1])
@pytest.mark.parametrize("axis", range(3), ids="xyz")
def test_a_shift_of_half_a_voxel_is_detected(camera: Camera, axis: int, shift: float) -> None:
    world = camera.world
    start = [first + shift * (n == axis) for n, first in enumerate(OFFSET)]
    name = f"shifted-{shift}-{'xyz'[axis]}"
    write_ome_zarr(world.folder / name, world.image, start, 1)
    with pytest.raises(AssertionError, match="pixels differ"):
        assert_same_picture(camera, camera.image(world.source), camera.image(Shown(f"{name}/|zarr3:", "")), at=BEGIN)


def test_levels_with_the_translation_of_level_0_are_detected(camera: Camera) -> None:
    world = camera.world
    write_ome_zarr(world.folder / "not-centred", world.image, OFFSET, LEVELS, centred=False)
    shown = Shown("not-centred/|zarr3:", "")
    with pytest.raises(AssertionError, match="pixels differ"):
        assert_same_picture(camera, camera.image(world.source, 1), camera.image(shown, 1), at=BEGIN, level=1)


def test_ids_rounded_to_floats_are_detected(camera: Camera) -> None:
    world = camera.world
    write_ome_zarr(world.folder / "rounded", world.ids.astype(np.float64).astype(np.uint64), OFFSET, 1)
    shown = Shown("", "rounded/|zarr3:")
    with pytest.raises(AssertionError, match="pixels differ"):
        assert_same_picture(camera, camera.segmentation(world.source), camera.segmentation(shown), at=BEGIN)


def test_a_layer_that_neuroglancer_cannot_read_gives_no_picture(camera: Camera) -> None:
    """Neuroglancer does not support int64, the default dtype of `segmentation_cutout`."""
    world = camera.world
    write_ome_zarr(world.folder / "int64", world.ids.astype(np.int64), OFFSET, 1)
    with pytest.raises(NoPicture):
        camera.take("none", camera.segmentation(Shown("", "int64/|zarr3:")), at=BEGIN, timeout_s=2)
    assert_something_is_shown(camera.take("again", camera.segmentation(world.source), at=BEGIN))
