"""Neuroglancer shows an export where it shows the source, pixel for pixel.

It places every voxel by its edges, whatever the format, and these views have no pixel whose centre is on an edge
(`CORNER`, `SCALES_NM`). So the pictures are equal: there is no tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from browser.stores import FACTOR, RESOLUTION_NM, write_ome_zarr, write_precomputed
from numpy.typing import NDArray
from PIL import Image
from support.http_server import FileServer
from support.volumes import coordinate_volume, random_labels, smooth_image

from imagery_dask import ImageryClient, to_zarr

if TYPE_CHECKING:
    from browser.viewing import Picture, Screen

SHAPE = (193, 151, 41)
LEVELS = 3
#: A multiple of the voxels of the coarsest level.
OFFSET = (-20, 32, 7)
#: Centres of views, in voxels from the volume's first. The first view has an end of the volume in each panel.
CORNER, MIDDLE = (12, 9, 2), (96, 75, 20)
#: At 4 nm a voxel is 2 x 2 pixels, at 16 and 32 nm Neuroglancer turns to levels 1 and 2.
CLOSE, LEVEL_1, LEVEL_2 = 4.0, 16.0, 32.0

GREY = "void main() { emitGrayscale(toNormalized(getDataValue())); }"
RED = "void main() { emitRGB(vec3(toNormalized(getDataValue()), 0, 0)); }"
GREEN = "void main() { emitRGB(vec3(0, toNormalized(getDataValue()), 0)); }"


class Shown(NamedTuple):
    """Where a volume's image and segmentation are: URLs below the served folder, as Neuroglancer wants them."""

    image: str
    ids: str


@dataclass(frozen=True)
class World:
    """A folder that is served, with the source in it."""

    folder: Path
    server: FileServer
    image: NDArray[np.uint8]
    ids: NDArray[np.uint64]
    source: Shown

    @property
    def selected(self) -> list[int]:
        """Every other id. They come in pairs that differ by 1, so that one of each pair is selected."""
        ids = np.unique(self.ids)
        return [int(value) for value in ids[ids > 0][::2]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("served")
    image = smooth_image(SHAPE) // 2 + coordinate_volume(SHAPE, OFFSET, np.uint8) // 2
    ids = random_labels(SHAPE, n=60, block=7)
    with FileServer(folder) as server:
        world = World(folder, server, image, ids, Shown("source/em/", "source/ids/"))
        precomputed(world, "source", LEVELS)
        yield world


# --------------------------------------------------------------------------------------------------------- exports

Export = Callable[[World, str, int], Shown]
"""Writes the world below a name with so many levels."""


def exported(world: World, name: str, levels: int) -> Shown:
    assert levels == 1
    client = ImageryClient(
        image_source=f"precomputed://file://{world.folder}/source/em",
        segmentation_source=f"precomputed://file://{world.folder}/source/ids",
    )
    data = client.dataset([OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]])
    to_zarr(data, world.folder / name, chunks=(64, 32, 16), progress=False)
    return Shown(f"{name}/|zarr3:", f"{name}/labels/segmentation/|zarr3:")


def ome_zarr(world: World, name: str, levels: int, suffix: str = "|zarr3:", **options: Any) -> Shown:
    for kind, data in (("em", world.image), ("ids", world.ids)):
        write_ome_zarr(world.folder / name / kind, data, OFFSET, levels, **options)
    return Shown(f"{name}/em/{suffix}", f"{name}/ids/{suffix}")


def precomputed(world: World, name: str, levels: int, **options: Any) -> Shown:
    suffix = "|neuroglancer-precomputed:"
    for kind, data in (("em", world.image), ("ids", world.ids)):
        write_precomputed(world.folder / name / kind, data, OFFSET, levels, **options)
    return Shown(f"{name}/em/{suffix}", f"{name}/ids/{suffix}")


#: What other writers write, until `imagery_dask` writes it.
PYRAMIDS: dict[str, Export] = {
    "ome-zarr-0.5": ome_zarr,
    "ome-zarr-0.5-sharded": partial(ome_zarr, shards=(64, 96, 32)),
    "ome-zarr-0.4": partial(ome_zarr, suffix="|zarr2:", version="0.4"),
    "precomputed": partial(precomputed, compress=False),
    "precomputed-sharded": partial(precomputed, sharding=True),
}
EXPORTS: dict[str, Export] = {"to_zarr": exported, **PYRAMIDS}


# ---------------------------------------------------------------------------------------------------------- pictures


class Camera:
    """Takes pictures of what is in the world and keeps them as files."""

    def __init__(self, screen: Screen, world: World, folder: Path) -> None:
        self.screen, self.world, self.folder = screen, world, folder

    def image(self, shown: Shown, shader: str = GREY, **options: Any) -> Any:
        import neuroglancer

        return neuroglancer.ImageLayer(source=f"{self.world.server.url}/{shown.image}", shader=shader, **options)

    def segmentation(self, shown: Shown) -> Any:
        import neuroglancer

        return neuroglancer.SegmentationLayer(
            source=f"{self.world.server.url}/{shown.ids}",
            segments=self.world.selected,
            selected_alpha=0.8,
            not_selected_alpha=0.2,
        )

    def take(self, name: str, *layers: Any, at: Sequence[float], nm_per_pixel: float, **options: Any) -> Picture:
        """Take a picture of layers around the centre of a voxel."""
        position = [(o + v + 0.5) * nm for o, v, nm in zip(OFFSET, at, RESOLUTION_NM, strict=True)]
        picture = self.screen.picture(*layers, position_nm=position, nm_per_pixel=nm_per_pixel, **options)
        Image.fromarray(picture).save(self.folder / f"{name}.png")
        return picture


@pytest.fixture
def camera(screen: Screen, world: World, tmp_path: Path) -> Camera:
    return Camera(screen, world, tmp_path)


def same_picture(camera: Camera, source: Any, export: Any, *, at: Sequence[float], nm_per_pixel: float) -> None:
    """Require that two layers, one at a time, give one picture, with something in each of its panels."""
    expected = camera.take("source", source, at=at, nm_per_pixel=nm_per_pixel)
    found = camera.take("export", export, at=at, nm_per_pixel=nm_per_pixel)
    assert_something_is_shown(expected)
    np.testing.assert_array_equal(found, expected)


def assert_something_is_shown(picture: Picture) -> None:
    from browser.viewing import BACKGROUND, panels

    for panel in panels(picture):
        colours, counts = np.unique(panel[(panel != BACKGROUND).any(axis=-1)], axis=0, return_counts=True)
        assert counts.sum() > panel[..., 0].size / 20, "hardly anything is shown"
        assert len(colours) > 10, "what is shown has hardly any colours"


# ------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module", params=EXPORTS)
def single(request: pytest.FixtureRequest, screen: Screen, world: World) -> Shown:
    """Export of one level."""
    return EXPORTS[request.param](world, f"single-{request.param}", 1)


@pytest.mark.parametrize("at", [CORNER, MIDDLE], ids=["corner", "middle"])
def test_an_image_is_shown_where_the_source_is(camera: Camera, single: Shown, at: tuple[int, int, int]) -> None:
    same_picture(camera, camera.image(camera.world.source), camera.image(single), at=at, nm_per_pixel=CLOSE)


@pytest.mark.parametrize("at", [CORNER, MIDDLE], ids=["corner", "middle"])
def test_segments_have_the_place_and_colour_of_the_source(
    camera: Camera, single: Shown, at: tuple[int, int, int]
) -> None:
    source = camera.world.source
    same_picture(camera, camera.segmentation(source), camera.segmentation(single), at=at, nm_per_pixel=CLOSE)


def test_source_and_export_lie_on_top_of_each_other(camera: Camera, single: Shown) -> None:
    """Red and green add up to yellow wherever both show the same; labels of the export lie on the source's image."""
    layers = camera.image(camera.world.source, RED), camera.image(single, GREEN, blend="additive")
    picture = camera.take("both", *layers, at=CORNER, nm_per_pixel=CLOSE)
    assert_something_is_shown(picture)
    np.testing.assert_array_equal(picture[..., 0], picture[..., 1])


@pytest.fixture(scope="module", params=PYRAMIDS)
def pyramid(request: pytest.FixtureRequest, screen: Screen, world: World) -> Shown:
    return PYRAMIDS[request.param](world, f"pyramid-{request.param}", LEVELS)


@pytest.mark.parametrize("nm_per_pixel", [CLOSE, LEVEL_1, LEVEL_2])
def test_levels_lie_where_those_of_the_source_lie(camera: Camera, pyramid: Shown, nm_per_pixel: float) -> None:
    source = camera.world.source
    same_picture(camera, camera.image(source), camera.image(pyramid), at=MIDDLE, nm_per_pixel=nm_per_pixel)
    same_picture(
        camera, camera.segmentation(source), camera.segmentation(pyramid), at=MIDDLE, nm_per_pixel=nm_per_pixel
    )
