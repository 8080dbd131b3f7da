"""Neuroglancer draws the right slice of everything that a view serves, in the right colors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from PIL import Image
from support.volumes import random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient, to_precomputed, to_zarr
from imagery_dask.render.palettes import colors_of
from imagery_dask.testing.cave import CaveServer, make_world

neuroglancer = pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")
from browser import viewing  # noqa: E402 (which needs it too)
from browser.clicking import Clicks  # noqa: E402

from imagery_dask.client.viewing import served_volumes  # noqa: E402
from imagery_dask.viewer.launch import launch, layers_of  # noqa: E402
from imagery_dask.viewer.served_stores import found_in, stores_in  # noqa: E402

SHAPE, OFFSET, NM = (150, 140, 24), (-20, 32, 8), (8, 8, 40)
#: The middle of the picture: a voxel of the volume. Voxels are 2 x 2 pixels, and a panel has an even number of them.
AT, PIXELS, PER_VOXEL = (55, 102, 20), 200, 2

TOLERANCE = 3
#: Of 4 x 4 x 2 chunks.
SHARDING = {
    "preshift_bits": 2, "minishard_bits": 3, "shard_bits": 5, "minishard_index_encoding": "gzip",
    "data_encoding": "gzip",
}  # fmt: skip


@dataclass
class World:
    """A page with one layer for each kind of thing that is served; one of them is visible at a time."""

    screen: Any
    view: Any
    clicks: Clicks
    expected: dict[str, NDArray[Any]]
    folder: Path

    def colored(self) -> set[int]:
        """Return the objects of the segmentation that have a color."""
        return set(self.view.viewer.state.layers["segmentation"].segment_colors)

    def picture(self, name: str, segments: list[int]) -> NDArray[np.uint8]:
        """Return the plane of one layer, (row, column, rgb)."""
        with self.view.viewer.txn() as state:
            for layer in state.layers:
                layer.visible = layer.name == name
            if segments:
                state.layers[name].segments = segments
        pixels: NDArray[np.uint8] = self.screen.shown()
        Image.fromarray(pixels).save(self.folder / f"{name}.png")
        return pixels


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("viewed")
    image, ids = smooth_image(SHAPE), random_labels(SHAPE, n=40, block=9, above_2_63=True)
    options: Any = {"voxel_offset": OFFSET, "resolution": NM, "chunk_size": (32, 32, 8), "mips": 2}
    client = ImageryClient(
        image_source=write_volume(folder / "em", image, **options),
        segmentation_source=write_volume(folder / "seg", ids, layer_type="segmentation", **options),
    )
    data = client.dataset([OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]])
    to_zarr(data, folder / "sharded.zarr", chunks=(32, 32, 8), shards=(64, 64, 16), progress=False)
    to_zarr(data, folder / "old.zarr", ome_version="0.4", progress=False)
    to_precomputed(data, folder / "export", progress=False)
    to_precomputed(data, folder / "shards", chunks=(32, 32, 8), levels=2, sharding=SHARDING, progress=False)
    lazy = xr.DataArray(da.from_array(255 - image, chunks=(40, 40, 10)), dims=("x", "y", "z"), coords=data.image.coords)
    served: list[Any] = served_volumes(client._settings)
    for name in ("sharded", "old"):
        served += [replace(one, name=f"{name} {one.kind}") for one in stores_in(folder / f"{name}.zarr")]
    for name in ("export", "shards"):
        exported = dict(zip(("image_source", "segmentation_source"), found_in(folder / name)[1], strict=True))
        exports = served_volumes(ImageryClient(**exported)._settings)
        served += [replace(one, name=f"{name} {one.kind}") for one in exports]
    deep = lazy.astype(np.uint16) * 16 + 2000
    rgb = xr.DataArray(
        np.stack([image, 255 - image, image // 2], -1), dims=("x", "y", "z", "channel"), coords=lazy.coords
    )
    served += layers_of({"lazy array": lazy, "16 bits": deep, "colors": rgb})
    expected = {one.name: ids if one.kind == "segmentation" else image for one in served}
    expected["lazy array"] = 255 - image
    low, high = np.percentile(deep[40:80, 40:80, 10:20], (0.1, 99.9))  # of the chunk in the middle
    expected["16 bits"] = (255 * ((deep.values - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    expected["colors"] = rgb.values
    with ExitStack() as stack:
        cave = make_world(folder / "cave", (256, 256, 32))
        server = stack.enter_context(CaveServer(cave))
        dynamic = ImageryClient(server.client(), imagery=False, resolution=cave.resolution)
        for edit in ("created", "split_1"):
            own = served_volumes(dynamic._settings, cave.times[edit])[0]
            served.append(replace(own, name=f"at {edit}", levels=own.levels[:1]))
            expected[f"at {edit}"] = dynamic.segmentation_volume(0, timestamp=cave.times[edit]).values
        view = stack.enter_context(launch(served, browser=False))
        try:
            clicks = Clicks(view)
            screen = stack.enter_context(viewing.page(view.viewer, clicks.url))
        except viewing.BrowserUnavailable as reason:
            pytest.skip(str(reason))
        with view.viewer.config_state.txn() as config:
            config.viewer_size = [PIXELS, PIXELS]
        yield World(screen, view, clicks, expected, tmp_path_factory.mktemp("pictures"))


def show(world: World, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Move to a layer's voxels; return those of the picture, (row, column), and the picture of its selected half."""
    served = next(one for one in world.view._server.served[world.view.viewer.token] if one.name == name)
    grid, data = served.grid, world.expected[name]
    middle = [n // 2 + 4 for n in data.shape[:3]]
    with world.view.viewer.txn() as state:
        state.dimensions = neuroglancer.CoordinateSpace(names="xyz", units="nm", scales=list(grid.resolution_nm))
        state.position = [a + m + 0.5 for a, m in zip(grid.start, middle, strict=True)]
        state.cross_section_scale = grid.resolution_nm[0] / min(grid.resolution_nm) / PER_VOXEL
        state.cross_section_background_color = "#000000"
        state.layout, state.show_axis_lines, state.show_scale_bar = "xy", False, False
    # The middle of the panel, between two pixels, is that of the voxel.
    offsets = np.floor((np.arange(PIXELS) + 0.5 - PIXELS / 2) / PER_VOXEL + 0.5).astype(int)
    plane = data[np.ix_(middle[0] + offsets, middle[1] + offsets, [middle[2]])][:, :, 0].swapaxes(0, 1)
    selected = np.unique(plane)[1::2].tolist() if served.kind == "segmentation" else []
    return plane, world.picture(name, selected)


NAMES = [
    f"{name}{kind}" for name in ("", "sharded ", "old ", "export ", "shards ") for kind in ("image", "segmentation")
]


@pytest.mark.parametrize("name", [*NAMES, "lazy array", "16 bits", "colors", "at created", "at split_1"])
def test_the_plane_in_the_picture_is_that_of_the_volume(world: World, name: str) -> None:
    plane, picture = show(world, name)
    if plane.dtype == np.uint8:
        expected = (plane if plane.ndim == 3 else np.repeat(plane[..., None], 3, axis=-1)).astype(int)
    else:
        assert plane.max() > 2**53
        selected = np.isin(plane, np.unique(plane)[1::2])
        expected = np.where(selected[..., None], colors_of(plane), 0).astype(int)  # the lowest layer is opaque
    assert len(np.unique(expected.reshape(-1, 3), axis=0)) > 3
    different = (np.abs(picture.astype(int) - expected) > TOLERANCE).any(axis=-1)
    assert different.mean() < 0.002, f"{different.sum()} of {different.size} pixels differ"


def test_an_edit_changes_the_picture(world: World) -> None:
    assert (world.expected["at created"] != world.expected["at split_1"]).any()


@pytest.mark.long
def test_a_double_click_selects_an_object_in_our_color(world: World) -> None:
    plane, _ = show(world, "segmentation")
    with world.view.viewer.config_state.txn() as config:
        config.viewer_size = None  # which would scale the panel
    with world.view.viewer.txn() as state:
        state.layers["segmentation"].segments, state.layers["segmentation"].segment_colors = [], {}
    height, width, _ = world.screen.shown().shape
    row, column = np.argwhere(plane > 0)[len(plane) * 20]
    chosen = int(plane[row, column])
    x, y = width // 2 - PIXELS // 2 + int(column), height // 2 - PIXELS // 2 + int(row)
    assert chosen > 2**53
    for _ in range(4):  # the viewer may not have drawn what is under the mouse
        world.clicks.double_click(x, y)
        deadline = time.monotonic() + 10
        while not world.colored() and time.monotonic() < deadline:
            time.sleep(0.02)
        if world.colored():
            break
    assert world.colored() == {chosen}
    assert chosen in world.view.root_ids
    picture = world.screen.shown()
    np.testing.assert_allclose(picture[y, x], colors_of(np.array([chosen], np.uint64))[0], atol=TOLERANCE)
