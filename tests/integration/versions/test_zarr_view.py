"""A version as a zarr store: what opens zarr reads it without a copy."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from imagery_dask import open_versions
from imagery_dask.testing.cave import World
from imagery_dask.versions.opened_versions import VersionStore

Moments = dict[str, tuple[float, int | None]]


@pytest.mark.parametrize("name", ["1", "3"])
def test_zarr_reads_every_level_of_a_version(store: VersionStore, world: World, moments: Moments, name: str) -> None:
    group = zarr.open_group(store.zarr_store(name), mode="r")
    levels = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert [level["path"] for level in levels] == ["0", "1", "2"]
    for level in range(3):
        array = group[str(level)]
        expected = store.at(name, level=level)["segmentation"].to_numpy()
        if level == 0:
            np.testing.assert_array_equal(expected, world.roots_volume(moments[name][0]))
        assert (array.dtype, array.shards, array.chunks) == (np.uint64, None, (16, 32, 32))
        np.testing.assert_array_equal(np.asarray(array[:]).T, expected)
        np.testing.assert_array_equal(np.asarray(array[7]).T, expected[:, :, 7])
    attributes = group.attrs["imagery_dask"]
    assert attributes["timestamp_unix_s"] == moments[name][0]
    assert attributes.get("materialization_version") == moments[name][1]


def test_dask_and_xarray_open_it(store: VersionStore, world: World, moments: Moments) -> None:
    expected = world.roots_volume(moments["3"][0])
    view = store.zarr_store(3)
    array = da.from_zarr(view, component="0")
    np.testing.assert_array_equal(array.compute().T, expected)
    again = pickle.loads(pickle.dumps(view))
    assert again == view
    assert store.zarr_store(1) != view
    np.testing.assert_array_equal(zarr.open_array(again, path="0", mode="r")[:].T, expected)
    data = xr.open_dataset(view, engine="zarr", consolidated=False, chunks={}, drop_variables=["1", "2"])
    np.testing.assert_array_equal(data["0"].to_numpy().T, expected)


def test_objects_and_layers_of_a_version(store: VersionStore, world: World, moments: Moments) -> None:
    whole = world.roots_volume(moments["3"][0])
    keep = np.unique(whole)[[4, 9]].tolist()
    kept = zarr.open_array(store.zarr_store(3, root_ids=keep), path="0", mode="r")
    np.testing.assert_array_equal(kept[:].T, np.where(np.isin(whole, keep), whole, 0))
    pieces = zarr.open_array(store.zarr_store(timestamp=moments["3"][0], stop_layer=2), path="0", mode="r")
    np.testing.assert_array_equal(pieces[:].T, world.roots_volume(moments["3"][0], 0, 2))


def test_imagery_is_passed_on(with_image: Path, world: World, moments: Moments, no_network: None) -> None:
    group = zarr.open_group(open_versions(with_image).zarr_store(3), mode="r")
    stored = zarr.open_group(with_image / "volume.zarr", mode="r")
    np.testing.assert_array_equal(group["1"][:], stored["1"][:])
    assert dict(group.attrs) == dict(stored.attrs)
    assert group["labels"].attrs["ome"]["labels"] == ["segmentation"]
    np.testing.assert_array_equal(group["labels/segmentation/0"][:].T, world.roots_volume(moments["3"][0]))
    assert sorted(name for name, _ in group.members()) == ["0", "1", "2", "labels"]


def test_it_is_only_read(store: VersionStore) -> None:
    view = store.zarr_store(3)
    assert view.read_only
    with pytest.raises(ValueError, match="read-only"):
        sync(view.set("0/c/0/0/0", default_buffer_prototype().buffer.from_bytes(b"1")))
    with pytest.raises(ValueError, match="read-only"):
        sync(view.delete("0/c/0/0/0"))
    with pytest.raises(ValueError, match="materialize"):
        view.with_read_only(False)
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_group(view, mode="r+").attrs["a"] = 1


def test_files_and_parts_of_files(store: VersionStore) -> None:
    view, prototype = store.zarr_store(3), default_buffer_prototype()

    async def listed(prefix: str, folder: bool) -> list[str]:
        return sorted([key async for key in (view.list_dir(prefix) if folder else view.list_prefix(prefix))])

    assert sync(listed("", True)) == ["0", "1", "2", "zarr.json"]
    assert sync(listed("0", True)) == ["c", "zarr.json"]
    chunks = sync(listed("0/c/", False))
    assert len(chunks) == 32
    whole = sync(view.get(chunks[5])).to_bytes()
    assert len(whole) == 32 * 32 * 16 * 8
    parts = [RangeByteRequest(5, 90), OffsetByteRequest(70), SuffixByteRequest(33)]
    found = [buffer.to_bytes() for buffer in sync(view.get_partial_values(prototype, [(chunks[5], p) for p in parts]))]
    assert found == [whole[5:90], whole[70:], whole[-33:]]
    for key in ("0/c/9/0/0", "3/c/0/0/0", "0/c/0/0", "nothing", "4/zarr.json"):
        assert not sync(view.exists(key))
    assert sync(view.exists("0/zarr.json"))


def test_a_volume_that_ends_within_chunks(tmp_path: Path, world: World, moments: Moments, no_network: None) -> None:
    from support.version_stores import make_store

    out = make_store(tmp_path / "out", world, {"3": moments["3"]}, chunks=(48, 40, 20), shards=(96, 40, 20))
    array = zarr.open_array(open_versions(out).zarr_store(3), path="0", mode="r")
    assert (array.shards, array.chunks) == (None, (20, 40, 48))
    np.testing.assert_array_equal(array[:].T, world.roots_volume(moments["3"][0]))
