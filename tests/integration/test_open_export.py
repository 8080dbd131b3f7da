"""Exports that are opened again are the exported data: voxels, centers in nm, levels and where they come from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from support.buckets import GcsServer, S3Server
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, open_export, to_precomputed, to_zarr, verify_export
from imagery_dask.testing.volume import write_demo_volumes

SHAPE, START = (70, 52, 21), (-6, 40, 3)
NM = (4.3, 8.6, 40)
BOUNDS = [START, tuple(np.add(START, SHAPE).tolist())]
LAYOUTS: dict[str, dict[str, Any]] = {
    "0.5": {"ome_version": "0.5", "chunks": (16, 16, 16)},
    "0.5 shards": {"ome_version": "0.5", "chunks": (16, 16, 8), "shards": (32, 32, 16)},
    "0.4": {"ome_version": "0.4", "chunks": (16, 16, 16)},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> ImageryClient:
    folder = tmp_path_factory.mktemp("volumes")
    geometry: dict[str, Any] = {"resolution": NM, "voxel_offset": START, "chunk_size": (16, 16, 8)}
    return ImageryClient(
        image_source=write_volume(folder / "em", coordinate_volume(SHAPE, START, np.uint8), **geometry),
        segmentation_source=write_volume(
            folder / "ids", random_labels(SHAPE, n=30), layer_type="segmentation", **geometry
        ),
    )


@pytest.fixture(scope="module")
def data(client: ImageryClient) -> xr.Dataset:
    return client.dataset(BOUNDS)


@pytest.fixture(scope="module", params=LAYOUTS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: xr.Dataset) -> Path:
    out: Path = tmp_path_factory.mktemp("export") / "out.zarr"
    to_zarr(data, out, levels=3, progress=False, **LAYOUTS[request.param])
    return out


def by_zarr(store: Path, path: str) -> Any:
    return np.asarray(zarr.open_array(store, path=path, mode="r")[...]).T


# ------------------------------------------------------------------------------------------------------- round trips


def test_every_level_has_the_voxels_that_zarr_reads(store: Path) -> None:
    tree = open_export(store)
    assert isinstance(tree, xr.DataTree)
    assert list(tree.children) == ["0", "1", "2"]
    for level, node in tree.children.items():
        assert node["image"].dims == node["segmentation"].dims == ("x", "y", "z")
        assert node["segmentation"].dtype == np.uint64
        np.testing.assert_array_equal(node["image"], by_zarr(store, level))
        np.testing.assert_array_equal(node["segmentation"], by_zarr(store, f"labels/segmentation/{level}"))


def test_level_0_is_the_dataset_that_was_exported(store: Path, data: xr.Dataset) -> None:
    opened = open_export(store, level=0)
    xr.testing.assert_equal(opened.load(), data.compute())  # with coordinates, bit for bit
    for name in ("image", "segmentation"):
        for key in ("source", "mip", "resolution_nm", "voxel_offset", "long_name"):
            assert opened[name].attrs[key] == data[name].attrs[key]
        assert opened[name].attrs["bounds_voxels"] == [list(corner) for corner in BOUNDS]
    for axis in "xyz":
        assert opened[axis].attrs == {"units": "nm", "long_name": axis}


def test_coarser_levels_are_at_the_centers_of_their_voxels(store: Path, data: xr.Dataset) -> None:
    tree = open_export(store)
    for finer, coarser in (("0", "1"), ("1", "2")):
        for axis in "xyz":
            one, other = tree[finer][axis].values, tree[coarser][axis].values
            factor = round(float(np.diff(other)[0] / np.diff(one)[0]))
            assert factor in (1, 2)
            whole = one[: len(one) // factor * factor].reshape(-1, factor).mean(axis=1)
            np.testing.assert_allclose(other[: len(whole)], whole, rtol=1e-12)
    np.testing.assert_allclose(tree["1"]["image"].attrs["resolution_nm"], [8.6, 8.6, 40])


def test_opening_reads_no_voxels_and_slices_read_their_chunks(tmp_path: Path, data: xr.Dataset) -> None:
    to_zarr(data["image"], tmp_path / "out.zarr", chunks=(16, 16, 16), shards=None, progress=False)
    opened = open_export(tmp_path / "out.zarr", level=0)["image"]
    assert opened.chunks
    expected = data["image"].values
    for file in (tmp_path / "out.zarr" / "0" / "c").rglob("*"):
        if file.is_file() and file.relative_to(tmp_path / "out.zarr" / "0" / "c").parts != ("1", "2", "3"):
            file.write_bytes(b"damaged")
    np.testing.assert_array_equal(opened[48:64, 32:48, 16:], expected[48:64, 32:48, 16:])
    with pytest.raises(RuntimeError, match="decompression"):
        opened[47:64, 32:48, 16:].load()


SELECTIONS: dict[str, dict[str, Any]] = {
    "plane": {"z": 3},
    "box": {"x": slice(3, 50), "y": slice(20, 21), "z": slice(5, 17)},
    "steps": {"x": slice(None, None, -3), "y": slice(40, 3, -7)},
    "lists": {"x": [5, 60, 2], "z": 0},
    "nothing": {"x": slice(9, 9)},
    "one voxel": {"x": -1, "y": 0, "z": 4},
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_equal_those_of_the_data(store: Path, data: xr.Dataset, name: str) -> None:
    opened = open_export(store, level=0)
    xr.testing.assert_equal(opened.isel(SELECTIONS[name]).load(), data.isel(SELECTIONS[name]).compute())
    persisted = dask.persist(opened.isel(SELECTIONS[name]) + np.uint8(1))[0]
    xr.testing.assert_equal(persisted.load(), (data.isel(SELECTIONS[name]) + np.uint8(1)).compute())


def test_an_opened_export_is_exported_again(tmp_path: Path, store: Path) -> None:
    to_zarr(open_export(store, level=0), tmp_path / "again.zarr", progress=False)
    xr.testing.assert_equal(open_export(tmp_path / "again.zarr", 0).load(), open_export(store, 0).load())


# ---------------------------------------------------------------------------------------------------- kinds of stores


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_segmentation_alone_a_mask_and_channels(tmp_path: Path, data: xr.Dataset, version: Any) -> None:
    ids = data["segmentation"]
    to_zarr(ids, tmp_path / "ids.zarr", ome_version=version, progress=False)
    opened = open_export(tmp_path / "ids.zarr", level=0)
    assert list(opened.data_vars) == ["segmentation"]
    xr.testing.assert_equal(opened["segmentation"].load(), ids.compute())
    to_zarr(ids > 2**60, tmp_path / "mask.zarr", ome_version=version, progress=False)
    (mask,) = open_export(tmp_path / "mask.zarr", level=0).data_vars.values()
    np.testing.assert_array_equal(mask, (ids > 2**60).values)
    colors = xr.concat([data["image"]] * 3, "channel").transpose("x", "y", "z", "channel")
    to_zarr(colors, tmp_path / "colors.zarr", ome_version=version, progress=False)
    (image,) = open_export(tmp_path / "colors.zarr", level=0).data_vars.values()
    assert image.dims == ("x", "y", "z", "channel")
    np.testing.assert_array_equal(image, colors.values)


def test_an_array_without_a_place_has_voxel_numbers(tmp_path: Path) -> None:
    to_zarr(np.arange(60, dtype=np.uint8).reshape(5, 4, 3), tmp_path / "out.zarr", progress=False)
    image = open_export(tmp_path / "out.zarr", level=0)["image"]
    assert image["x"].attrs == {"long_name": "x"}
    assert "resolution_nm" not in image.attrs
    np.testing.assert_array_equal(image, np.arange(60).reshape(5, 4, 3))


def test_levels_of_sources_that_differ_are_nodes_of_their_own(tmp_path: Path) -> None:
    volumes = write_demo_volumes(tmp_path, shape=(128, 128, 8))
    client = ImageryClient(image_source=volumes.image_source, segmentation_source=volumes.segmentation_source)
    x, y, z = (int(n) for n in volumes.center)
    data = client.dataset([(x - 20, y - 20, z - 2), (x + 20, y + 20, z + 2)], image_mip=2)
    to_zarr(data, tmp_path / "out.zarr", levels="source", progress=False)
    tree = open_export(tmp_path / "out.zarr")
    paths = {node.path for node in tree.subtree if node.data_vars}
    assert all(path in paths or f"{path}/image" in paths or path == "/1" for path in ("/0", "/1"))
    xr.testing.assert_equal(tree["0"].to_dataset().load(), data.compute())


def test_an_export_in_a_bucket_is_opened(s3_server: S3Server, data: xr.Dataset) -> None:
    with s3_server.environment():
        s3_server.create_bucket("opened")
        for version in ("0.5", "0.4"):
            url = f"s3://opened/{version}.zarr"
            to_zarr(data, url, levels=2, ome_version=version, progress=False)
            opened = open_export(url)
            xr.testing.assert_equal(opened["0"].to_dataset().load(), data.compute())
            assert s3_server.secret_key.encode() not in pickle.dumps(opened["0"]["image"].data)
        with pytest.raises(FileNotFoundError, match="no zarr store at 's3://opened/nothing.zarr'"):
            open_export("s3://opened/nothing.zarr")


def test_an_export_in_google_cloud_storage_is_opened(gcs_server: GcsServer, data: xr.Dataset) -> None:
    with gcs_server.environment():
        gcs_server.create_bucket("opened")
        to_zarr(data, "gs://opened/out.zarr", progress=False)
        xr.testing.assert_equal(open_export("gs://opened/out.zarr", level=0).load(), data.compute())


# ------------------------------------------------------------------------------------------------------------ errors


def test_what_is_no_export_is_named(tmp_path: Path, store: Path, data: xr.Dataset) -> None:
    with pytest.raises(FileNotFoundError, match=r"no zarr store at .*nothing.*ImageryClient"):
        open_export(tmp_path / "nothing")
    to_precomputed(data["image"], tmp_path / "precomputed", progress=False)
    with pytest.raises(FileNotFoundError, match=r"A precomputed export is opened by ImageryClient\(image_source=...\)"):
        open_export(tmp_path / "precomputed")
    zarr.create_group(tmp_path / "plain.zarr").create_array("0", shape=(2, 2, 2), dtype="uint8")
    with pytest.raises(ValueError, match=r"zarr, but no OME-Zarr image .*xarray.open_zarr"):
        open_export(tmp_path / "plain.zarr")
    for level in (3, -1, 1.0, True):
        with pytest.raises(ValueError, match="level must be one of the 3 levels"):
            open_export(store, level=level)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "cxyz"])
def test_axes_that_were_asked_for(tmp_path: Path, axes: Any, version: Any) -> None:
    voxels = {"image": coordinate_volume((70, 60, 20), dtype=np.uint8), "segmentation": random_labels((70, 60, 20))}
    data = xr.Dataset({name: (("x", "y", "z"), values) for name, values in voxels.items()})
    url = tmp_path / "out.zarr"
    to_zarr(data, url, axes=axes, levels=2, ome_version=version, resolution_nm=(8, 8, 40), progress=False)
    ahead, space = (1,) * (len(axes) - 3), (35, 30, 20) if axes.endswith("xyz") else (20, 30, 35)
    for path in ("1", "labels/segmentation/1"):
        array: Any = zarr.open_array(url, path=path, mode="r")
        assert array.shape == (*ahead, *space)
    assert verify_export(url, sample=None).ok
    opened: Any = open_export(url)["0"]
    for name, values in voxels.items():
        np.testing.assert_array_equal(np.squeeze(opened[name].values), values, strict=True)
