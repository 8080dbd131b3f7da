"""Chunks that are made on demand hold the voxels of sources, cutouts and arrays; nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from support.http_server import FileServer
from support.volumes import coordinate_volume, downsample, random_labels, write_volume

from imagery_dask import ImageryClient
from imagery_dask.geometry.grid import VoxelGrid, bounds_key
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.precomputed.codecs import SEGMENTATION_BLOCK, decode
from imagery_dask.viewer.served import ServedLevel, ServedVolume, volume_of_layer, volumes_of_data

SHAPE, OFFSET, CHUNK = (70, 50, 20), (-32, 64, 7), (32, 16, 8)


def read(volume: ServedVolume, number: int = 0) -> Any:
    """Return all voxels of a level, x, y, z, channel, from its chunks."""
    info = json.loads(volume.get("info").content)  # type: ignore[union-attr]
    scale = info["scales"][number]
    grid = VoxelGrid(scale["voxel_offset"], scale["size"], scale["resolution"])
    voxels = np.zeros((*grid.shape, info["num_channels"]), info["data_type"])
    for box in grid.tiles(scale["chunk_sizes"][0]):
        answer = volume.get(f"{scale['key']}/{bounds_key(box.start, box.stop)}")
        assert answer is not None
        shape = (*box.shape, info["num_channels"])
        region = tuple(slice(a, a + n) for a, n in zip(box.start - grid.start, box.shape, strict=True))
        voxels[region] = decode(answer.content, scale["encoding"], shape, info["data_type"], SEGMENTATION_BLOCK)
    return voxels


@pytest.mark.parametrize(("dtype", "kind"), [("uint8", "image"), ("uint16", "image"), ("uint64", "segmentation")])
def test_levels_are_the_mips_of_a_source(tmp_path: Path, dtype: str, kind: str) -> None:
    data = coordinate_volume(SHAPE, OFFSET, np.dtype(dtype))
    path = write_volume(tmp_path, data, voxel_offset=OFFSET, chunk_size=CHUNK, mips=3, layer_type=kind)
    client = ImageryClient(**{f"{kind}_source": path})
    layer = client._settings.image or client._settings.segmentation
    volume = volume_of_layer("em", layer)
    assert (volume.kind, len(volume.levels)) == (kind, 3)
    for mip in range(3):
        np.testing.assert_array_equal(read(volume, mip)[..., 0], downsample(data, mip))
        assert volume.info()["scales"][mip]["chunk_sizes"] == [list(CHUNK)]


def test_channels_are_kept(tmp_path: Path) -> None:
    data = coordinate_volume((*SHAPE, 3), OFFSET, np.uint8)
    client = ImageryClient(image_source=write_volume(tmp_path, data, voxel_offset=OFFSET, chunk_size=CHUNK))
    np.testing.assert_array_equal(read(volume_of_layer("em", client._settings.image)), data)  # type: ignore[arg-type]


def test_a_chunk_reads_one_chunk(tmp_path: Path, http_server_factory: Callable[..., FileServer]) -> None:
    write_volume(tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET, chunk_size=CHUNK)
    server = http_server_factory(tmp_path)
    client = ImageryClient(image_source=f"{server.url}/em", cache_bytes=0)
    server.reset()
    volume = volume_of_layer("em", client._settings.image)  # type: ignore[arg-type]
    volume.get("info")
    assert server.count() == 0
    assert volume.get("0/0-32_64-80_7-15") is not None
    assert [request.path.rpartition("/")[2] for request in server.requests] == ["0-32_64-80_7-15"]


@pytest.mark.parametrize(
    "path",
    [
        "", "info/", "0", "0/0-32_64-80", "1/0-32_64-80_7-15", "0/0-32_64-80_7-14", "0/1-33_64-80_7-15",
        "0/32-64_64-80_7-15", "0/00-32_64-80_7-15", "0/-64--32_64-80_7-15", "0/0-0_64-80_7-15", "../info",
    ],
)  # fmt: skip
def test_other_names_are_not_found(path: str) -> None:
    grid = VoxelGrid(OFFSET, SHAPE, (8, 8, 40))

    def refuse(box: VoxelGrid) -> Any:
        raise AssertionError("nothing is to be read")

    volume = ServedVolume("em", "image", "uint8", 1, (ServedLevel(grid, Vec3.of(CHUNK), refuse),))
    assert volume.get(path) is None


@given(
    start=st.tuples(*[st.integers(-(2**40), 2**40)] * 3), shape=st.tuples(*[st.integers(1, 200)] * 3),
    chunk=st.tuples(*[st.integers(1, 99)] * 3), data=st.data(),
)  # fmt: skip
def test_every_chunk_of_a_level_has_a_name(start: Any, shape: Any, chunk: Any, data: Any) -> None:
    level = ServedLevel(VoxelGrid(start, shape, (8, 8, 40)), Vec3.of(chunk), lambda box: np.zeros(box.shape, np.uint8))
    volume = ServedVolume("em", "image", "uint8", 1, (level,))
    cell = Vec3.of(data.draw(st.integers(0, (n - 1) // size)) for n, size in zip(shape, chunk, strict=True))
    first = Vec3.of(start) + cell * Vec3.of(chunk)
    stop = (first + chunk).minimum(level.grid.stop)
    answer = volume.get(f"0/{bounds_key(first, stop)}")
    assert answer is not None
    assert len(answer.content) == (stop - first).prod()


# ---------------------------------------- arrays


def array_at(data: Any, nm: tuple[float, ...] = (8, 8, 40), name: str = "density") -> xr.DataArray:
    coords = {
        axis: (np.arange(n) + first + 0.5) * size
        for axis, n, first, size in zip("xyz", data.shape, OFFSET, nm, strict=True)
    }
    return xr.DataArray(data, dims=("x", "y", "z"), coords=coords, name=name)


@pytest.mark.parametrize(
    ("dtype", "kind", "served"),
    [
        ("bool", "segmentation", "uint8"), ("int64", "segmentation", "uint64"), ("uint32", "segmentation", "uint32"),
        ("uint64", "segmentation", "uint64"), ("int16", "image", "int16"), ("float32", "image", "float32"),
        ("float64", "image", "float32"), ("float16", "image", "float32"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lazy", [True, False])
def test_arrays_of_every_dtype(dtype: str, kind: str, served: str, lazy: bool) -> None:
    data = random_labels(SHAPE, n=12) if kind == "segmentation" else coordinate_volume(SHAPE, dtype=np.uint8)
    data = data.astype(dtype)
    array = array_at(da.from_array(data, chunks=(33, 20, 20)) if lazy else data)
    (volume,) = volumes_of_data(array)
    assert (volume.name, volume.kind, volume.grid.start) == ("density", kind, OFFSET)
    voxels = read(volume)
    assert voxels.dtype == served
    np.testing.assert_array_equal(voxels[..., 0], data.astype(served))


def test_only_the_asked_chunk_of_an_array_is_computed() -> None:
    computed = []

    def block(block_info: Any = None) -> Any:
        computed.append(block_info[None]["chunk-location"])
        return np.ones((16, 16, 16), np.uint8)

    lazy = da.map_blocks(block, chunks=((16,) * 4,) * 3, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    (volume,) = volumes_of_data(lazy, (8, 8, 40))
    assert volume.get("0/16-32_0-16_48-64") is not None
    assert computed == [(1, 0, 3)]


def test_chunks_of_an_array_are_small_enough_to_show() -> None:
    (volume,) = volumes_of_data(da.zeros((4096, 4096, 512), chunks=2048, dtype=np.uint64), (8, 8, 40))
    assert volume.levels[0].chunk.prod() * 8 <= 2**22


def test_an_array_within_voxels_is_shown_at_its_place() -> None:
    array = (
        array_at(coordinate_volume(SHAPE, dtype=np.uint8)).isel(x=slice(1, None)).coarsen(x=2, boundary="trim").mean()
    )
    (volume,) = volumes_of_data(array)
    assert volume.shift == (0.5, 0, 0)
    assert volume.source("http://host/0") == {
        "url": "precomputed://http://host/0",
        "transform": {
            "matrix": [[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0]],
            "outputDimensions": {"x": [1.6e-8, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
        },
    }


def test_the_range_of_an_image_is_that_of_one_chunk() -> None:
    computed = []

    def block(block_info: Any = None) -> Any:
        computed.append(block_info[None]["chunk-location"])
        return np.arange(16**3, dtype=np.float32).reshape(16, 16, 16) + 500

    lazy = da.map_blocks(block, chunks=((16,) * 4,) * 3, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    (volume,) = volumes_of_data(lazy, (8, 8, 40))
    low, high = volume.display()["shaderControls"]["normalized"]["range"]
    assert computed == [(2, 2, 2)]
    assert 500 < low < 510 < 4580 < high < 500 + 16**3


@pytest.mark.parametrize(
    "data", [np.zeros((4, 4, 4), np.float32), np.full((4, 4, 4), np.nan), np.zeros((4, 4, 4), np.uint8)]
)
def test_images_without_contrast_keep_the_range_of_the_viewer(data: Any) -> None:
    (volume,) = volumes_of_data(data, (8, 8, 40))
    assert volume.display() == {}


def test_an_array_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place in the world.*resolution_nm"):
        volumes_of_data(np.zeros((4, 4, 4), np.uint8))


def test_negative_ids_are_refused() -> None:
    (volume,) = volumes_of_data(np.full((4, 4, 4), -5, np.int64), (8, 8, 40))
    with pytest.raises(OverflowError, match="Id -5 of .* is negative"):
        read(volume)


def test_a_cutout_has_the_coarser_mips_of_its_source(tmp_path: Path) -> None:
    data = coordinate_volume(SHAPE, OFFSET)
    path = write_volume(tmp_path, data, voxel_offset=OFFSET, chunk_size=CHUNK, mips=2, layer_type="segmentation")
    client = ImageryClient(segmentation_source=path)
    bounds = [[-20, 70, 9], [20, 100, 20]]
    (volume,) = volumes_of_data(client.dataset(bounds, convert_to_int64=True))
    assert (volume.kind, volume.served_dtype) == ("segmentation", "uint64")
    for mip in range(2):
        expected = client.segmentation_cutout(bounds, mip=mip, scale_to_bounds=False).compute()
        np.testing.assert_array_equal(read(volume, mip)[..., 0], expected)
