"""Stores that webknossos, ome-zarr and zarr-python 2 write are read as they read them, and ours by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.foreign.stores import PACKAGES, Reading, read_by, written_by
from support.http_server import FileServer
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import InvalidInfoError, SourceError, SourceNotFoundError
from imagery_dask.export.downsampling.downsample import downsample
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources import open_volume, volumes_at

# Each package has an environment of its own, which pip takes minutes to make on a busy machine.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Written:
    """The stores of a package, and what it reads from them."""

    folder: Path
    readings: list[Reading]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    known: dict[str, Written] = {}

    def of(package: str) -> Written:
        if package not in known:
            folder = tmp_path_factory.mktemp(package)
            known[package] = Written(folder, written_by(package, folder))
        return known[package]

    return of


@pytest.mark.parametrize("package", PACKAGES)
def test_volumes_are_read_as_their_writers_read_them(package: str, written: Callable[[str], Written]) -> None:
    readings = written(package).readings
    assert len(readings) > 40
    for reading in readings:
        volume = open_volume(reading.path)
        level = volume.layer.mips[reading.mip]
        grid, expected = level.grid, reading.voxels
        assert grid.resolution_nm == pytest.approx(reading.resolution_nm, rel=1e-12), reading.name
        assert volume.layer.kind == (reading.kind or volume.layer.kind), reading.name
        assert volume.layer.dtype == expected.dtype.name, reading.name
        # It ends where the writer's does; of webknossos, it begins at the chunk with the first voxel of the writer's.
        start = Vec3.of(reading.start)
        assert grid.stop == start + expected.shape[:3], reading.name
        before = start - grid.start
        assert before.all_lt(level.chunk_shape), reading.name
        assert package == "webknossos" or not any(before), reading.name
        own = VoxelGrid(start, expected.shape[:3], grid.resolution_nm)
        found, counts = volume.read(reading.mip, own, "error")
        np.testing.assert_array_equal(found, expected, err_msg=reading.name)
        assert counts.missing == 0
    of_ids = [reading.voxels for reading in readings if reading.voxels.dtype == np.uint64]
    assert max(int(voxels.max()) for voxels in of_ids) > 2**63


def test_all_levels_of_images_are_found(written: Callable[[str], Written]) -> None:
    for package in ("webknossos", "ome-zarr"):
        levels = Counter(reading.path for reading in written(package).readings)
        for path, count in levels.items():
            assert len(open_volume(path).layer.mips) == count, path


def test_a_dataset_of_webknossos_is_given_by_its_folder(written: Callable[[str], Written], tmp_path: Path) -> None:
    folder = written("webknossos").folder
    readings = {reading.path: reading for reading in written("webknossos").readings if reading.mip == 0}
    client = ImageryClient(image_source=str(folder / "pair"))
    assert client.segmentation_source == f"zarr3://file://{folder}/pair/neurons"
    em, neurons = (readings[str(folder / "pair" / name)] for name in ("em", "neurons"))
    box = [em.start, [at + n for at, n in zip(em.start, em.voxels.shape[:3], strict=True)]]
    np.testing.assert_array_equal(client.image_cutout(box).compute(), em.voxels[..., 0])
    ids = client.segmentation_cutout(box)
    out = tmp_path / "out.zarr"
    report = to_zarr(client.dataset(box, convert_to_int64=False), out, progress=False)
    assert report.ok
    np.testing.assert_array_equal(
        open_volume(str(out / "labels" / "segmentation")).read(
            0, VoxelGrid(em.start, em.voxels.shape[:3], (4, 4, 40)), "error"
        )[0],
        neurons.voxels,
    )
    assert ids.shape == neurons.voxels.shape[:3]
    with pytest.raises(ValueError, match=r"has the images .*/color, .*/rgb: give one as image_source"):
        ImageryClient(image_source=str(folder / "zarr3"))
    with pytest.raises(ValueError, match=r"has the labels .*/cells, .*/organelles: give one as segmentation_source"):
        ImageryClient(segmentation_source=str(folder / "zarr"), imagery=False)
    assert [path.rpartition("/")[2] for path in volumes_at(str(folder / "zarr"))] == [
        "color", "rgb", "cells", "organelles"
    ]  # fmt: skip


def test_a_dataset_of_webknossos_on_a_server(
    written: Callable[[str], Written], http_server_factory: Callable[..., FileServer]
) -> None:
    folder = written("webknossos").folder
    server = http_server_factory(folder)
    for data_format in ("zarr", "zarr3"):
        for name in ("color", "cells/2-2-1"):
            here = open_volume(str(folder / data_format / name))
            there = open_volume(f"{server.url}/{data_format}/{name}")
            assert there.layer.mips == here.layer.mips
            assert there.layer.kind == here.layer.kind
            grid = here.layer.mips[0].grid
            np.testing.assert_array_equal(there.read(0, grid, "error")[0], here.read(0, grid, "error")[0])


@pytest.mark.parametrize("name", ["wkw", "wkw/cells", "wkw/cells/2-2-1"])
def test_wkw_is_refused_by_name(
    name: str, written: Callable[[str], Written], http_server_factory: Callable[..., FileServer]
) -> None:
    folder = written("webknossos").folder
    server = http_server_factory(folder)
    for path in (str(folder / name), f"{server.url}/{name}"):
        with pytest.raises(SourceNotFoundError, match=r"WKW, which is no zarr\. Copy it with .*data_format='zarr3'"):
            open_volume(path)


def test_levels_are_not_added_where_webknossos_would_not_see_them(written: Callable[[str], Written]) -> None:
    layer = str(written("webknossos").folder / "zarr3" / "color")
    with pytest.raises(SourceError, match="whose properties would not name new levels"):
        downsample(layer)


@pytest.mark.parametrize("name", ["fixedscaleoffset", "astype"])
def test_filters_that_make_floats_of_ids_are_refused(name: str, written: Callable[[str], Written]) -> None:
    with pytest.raises(InvalidInfoError, match=f"its filter '{name}' makes floats of uint64"):
        open_volume(str(written("zarr2").folder / f"floats-{name}"))


@pytest.mark.parametrize(
    ("package", "version"),
    [("ome-zarr", "0.4"), ("ome-zarr", "0.5"), ("webknossos", "0.4"), ("webknossos", "0.5"), ("zarr2", "0.4")],
)
def test_our_stores_are_read_by_them(package: str, version: Any, tmp_path: Path) -> None:
    offset, resolution = (16, -32, 8), (4.0, 4.0, 40.0)
    ids = coordinate_volume((71, 53, 21), offset)
    ids += np.uint64(2**63)
    write_volume(tmp_path / "em", ids.astype(np.uint8), voxel_offset=offset, resolution=resolution)
    write_volume(tmp_path / "seg", ids, voxel_offset=offset, resolution=resolution, layer_type="segmentation")
    client = ImageryClient(image_source=str(tmp_path / "em"), segmentation_source=str(tmp_path / "seg"))
    box = [list(offset), [at + n for at, n in zip(offset, ids.shape, strict=True)]]
    out = tmp_path / "out.zarr"
    to_zarr(client.dataset(box, convert_to_int64=False), out, ome_version=version, levels=2, progress=False)
    stores = [out, out / "labels" / "segmentation"]
    readings = read_by(package, stores, tmp_path / "read")
    for store, kind in zip(stores, ("image", "segmentation"), strict=True):
        volume = open_volume(str(store))
        found = {reading.mip: reading for reading in readings if Path(reading.path) == store}
        # webknossos converts the finest level.
        assert set(found) == ({0} if package == "webknossos" else {0, 1})
        for mip, reading in found.items():
            grid = volume.layer.mips[mip].grid
            np.testing.assert_array_equal(reading.voxels, volume.read(mip, grid, "error")[0])
            if package == "ome-zarr":
                assert (reading.resolution_nm, reading.kind) == (grid.resolution_nm, kind)
        np.testing.assert_array_equal(found[0].voxels[..., 0], ids if kind == "segmentation" else ids.astype(np.uint8))
