"""Versions of a store as lazy arrays and tables, read by a process without network."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from imagery_dask import ImageryClient, open_versions
from imagery_dask.errors import OutdatedRootsError, SourceError, SourceNotFoundError
from imagery_dask.sources import collect_counts, open_volume
from imagery_dask.testing.cave import World
from imagery_dask.versions.opened_versions import VersionStore

Moments = dict[str, tuple[float, int | None]]


def volume(world: World, moment: float, level: int = 0, stop_layer: int | None = None) -> np.ndarray:
    return world.roots_volume(moment, level, stop_layer)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", ["1", "2024-01-03T00-00-00Z", "2", "3"])
def test_a_version_has_the_roots_of_its_moment(
    store: VersionStore, world: World, moments: Moments, name: str, level: int
) -> None:
    moment, number = moments[name]
    data = store.at(version=name, level=level)
    assert list(data) == ["segmentation"]
    array = data["segmentation"]
    expected = volume(world, moment, level)
    assert array.dtype == np.uint64
    assert int(expected.max()) > 2**53
    np.testing.assert_array_equal(array.to_numpy(), expected[tuple(map(slice, array.shape))])
    assert array.attrs["timestamp_unix_s"] == moment
    assert array.attrs.get("materialization_version") == number
    x = (world.voxel_offset[0] // 2**level + 0.5) * world.resolution[0] * 2**level
    assert float(array.x[0]) == x


def test_a_version_is_found_by_number_moment_and_name(store: VersionStore, moments: Moments) -> None:
    moment = moments["2"][0]
    found = [
        store.at(2), store.at("2"), store.at(version=2), store.at(timestamp=moment), store.at(np.int64(2)),
        store.at(timestamp=datetime.fromtimestamp(moment, UTC)), store.at(datetime.fromtimestamp(moment, UTC)),
        store.at(timestamp=datetime.fromtimestamp(moment, UTC).isoformat()), store.at(timestamp=moment - 0.5),
    ]  # fmt: skip
    assert {data["segmentation"].data.name for data in found} == {found[0]["segmentation"].data.name}
    assert store.at(1)["segmentation"].data.name != found[0]["segmentation"].data.name


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"version": 7}, r"no record of version 7. The nearest are version 4 \(2024-01-06T.*\) and version 3.*"
                         r"imagery-dask versions add .*out --version 7"),
        ({"timestamp": "2024-01-02T13:00:00Z"}, r"moment 2024-01-02T13:00:00Z. The nearest are version 1 .* and "
                                                 r"2024-01-03T00:00:00Z\..*--timestamp 2024-01-02T13:00:00Z"),
        ({"timestamp": "2024-01-01T13:00:00Z"}, "The nearest are version 1"),
        ({}, "Give one of version and timestamp"),
        ({"version": 1, "timestamp": 5.0}, "Give one of version and timestamp"),
        ({"version": 1, "level": 3}, "level must be a whole number from 0 to 2"),
        ({"version": 1, "stop_layer": 3}, "stop_layer=3 is not recorded of version 1, which has 2"),
        ({"version": 1, "stop_layer": 3, "root_ids": None}, "stop_layer=3 is not recorded of version 1"),
        ({"version": 1, "stop_layer": 99, "root_ids": None}, "stop_layer must be a whole number from 1 to"),
        ({"version": 1, "bounds": [[0, 0, 0], [9, 9, 9]]}, "lie outside of the store"),
        ({"version": 1, "stale_roots": "no"}, "stale_roots"),
    ],
)  # fmt: skip
def test_what_is_not_recorded_is_refused(store: VersionStore, which: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.at(**which)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.at(version=1.5)  # type: ignore[arg-type]


def test_a_box_of_a_version_is_a_cutout(store: VersionStore, world: World, moments: Moments) -> None:
    start, size = np.array(world.voxel_offset) + (5, 9, 3), (60, 50, 20)
    expected = volume(world, moments["3"][0])[5:65, 9:59, 3:23]
    for resolution, scale in ((None, 1), (np.array(world.resolution) / 2, 2)):
        bounds = np.array([start, start + size]) * scale
        array = store.at(3, bounds=bounds, resolution=resolution)["segmentation"]
        np.testing.assert_array_equal(array, expected)
    beyond = store.at(3, bounds=[start - (20, 0, 0), start + size])["segmentation"].to_numpy()
    assert not beyond[:15].any()
    np.testing.assert_array_equal(beyond[20:], expected)


def test_objects_layers_supervoxels_and_signed_ids(store: VersionStore, world: World, moments: Moments) -> None:
    moment = moments["3"][0]
    whole = volume(world, moment)
    keep = np.unique(whole)[[3, 7]].tolist()
    kept = store.at(3, root_ids=keep)["segmentation"]
    np.testing.assert_array_equal(kept, np.where(np.isin(whole, keep), whole, 0))
    np.testing.assert_array_equal(store.at(3, stop_layer=2)["segmentation"], volume(world, moment, 0, 2))
    np.testing.assert_array_equal(store.at(3, root_ids=None)["segmentation"], world.supervoxels)
    layers = store.facts.graph.layers
    np.testing.assert_array_equal(store.at(3, stop_layer=layers)["segmentation"], whole)
    signed = store.at(3, convert_to_int64=True)["segmentation"]
    assert signed.dtype == np.int64
    np.testing.assert_array_equal(signed, whole.astype(np.int64))


def test_a_plane_reads_its_chunks_and_asks_nobody(store: VersionStore, world: World, moments: Moments) -> None:
    array = store.at(2)["segmentation"]
    with collect_counts() as counts:
        plane = array[:, :, 17].to_numpy()
    np.testing.assert_array_equal(plane, volume(world, moments["2"][0])[:, :, 17])
    with collect_counts() as stored:
        store.at(2, root_ids=None)["segmentation"][:, :, 17].to_numpy()
    assert counts.chunks == stored.chunks == 16
    assert counts.requests == stored.requests
    assert (counts.root_requests, counts.ids_sent) == (0, 0)


def test_outdated_roots_name_their_successors(store: VersionStore, world: World, moments: Moments) -> None:
    first, last = (np.unique(volume(world, moments[name][0])) for name in ("1", "3"))
    old, valid = int(np.setdiff1d(first, last)[0]), int(last[5])
    now = np.unique(volume(world, moments["3"][0])[volume(world, moments["1"][0]) == old])
    with pytest.raises(OutdatedRootsError, match=rf"1 of 2 .* at version 3 .*{old} \(of .*\) -> {now[0]}"):
        store.at(3, root_ids=[old, valid])
    with pytest.warns(UserWarning, match=str(old)):
        data = store.at(3, root_ids=[old, valid], stale_roots="warn")
    assert np.unique(data["segmentation"]).tolist() == [0, valid]
    with pytest.raises(OutdatedRootsError, match="5 .in no version of this store"):
        store.at(3, root_ids=[5])
    assert not store.at(3, root_ids=[])["segmentation"].to_numpy().any()


def test_imagery_lies_on_the_same_grid(with_image: Path, world: World, moments: Moments, no_network: None) -> None:
    data = open_versions(with_image).at(3)
    start = np.array(world.voxel_offset)
    client = ImageryClient(image_source=world.image_source, segmentation_source=world.watershed_source, image_mip=1)
    of_client = client.dataset([start, start + (128, 128, 32)], resolution=world.resolution, segmentation_mip=0)
    xr.testing.assert_identical(data["image"].drop_attrs(), of_client["image"].drop_attrs())
    xr.testing.assert_identical(data.coords.to_dataset(), of_client.coords.to_dataset())
    np.testing.assert_array_equal(data["segmentation"], volume(world, moments["3"][0]))
    assert data["image"].data.chunks == data["segmentation"].data.chunks
    coarse = open_versions(with_image).at(3, level=1)
    assert dict(coarse.sizes) == {"x": 64, "y": 64, "z": 32}


def test_the_versions_are_listed(store: VersionStore, moments: Moments) -> None:
    table = store.versions
    assert table.index.tolist() == ["1", "2024-01-03T00-00-00Z", "2", "3", "4"]
    assert table["version"].isna().tolist() == [False, True, False, False, False]
    assert [moment.timestamp() for moment in table["timestamp"]] == [moments[name][0] for name in table.index]
    assert table["layers"].tolist() == [(2,)] * 5
    assert (table["roots"] > 10).all()
    text, html = repr(store), store._repr_html_()
    assert text.startswith("VersionStore\n")
    assert "128 x 128 x 32 of 16 x 16 x 40 nm" in text
    assert "5: 1, 2024-01-03T00-00-00Z, 2, 3, 4" in text
    assert "2024-01-03T00:00:00Z" in html


def test_the_objects_of_a_version_have_sizes_and_boxes(store: VersionStore, world: World, moments: Moments) -> None:
    whole, offset = volume(world, moments["3"][0]), np.array(world.voxel_offset)
    table = store.roots(3)
    ids, counts = np.unique(whole[whole != 0], return_counts=True)
    assert table.index.tolist() == ids.tolist()
    assert table["voxels"].tolist() == counts.tolist()
    assert table["supervoxels"].sum() == len(np.unique(world.supervoxels)) - 1
    for root in ids[::7]:
        places = np.argwhere(whole == root) + offset
        row = table.loc[root]
        assert [row[f"{axis}_start"] for axis in "xyz"] == places.min(axis=0).tolist()
        assert [row[f"{axis}_stop"] for axis in "xyz"] == (places.max(axis=0) + 1).tolist()


def test_an_object_is_found_without_voxels(
    store: VersionStore, world: World, moments: Moments, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = volume(world, moments["3"][0])
    root = int(store.roots(3)["voxels"].idxmax())
    monkeypatch.setattr("imagery_dask.sources.handle.open_volume", None)  # no voxel can be read
    place = store.where(root, 3)
    monkeypatch.undo()
    assert place.voxels == (whole == root).sum()
    chunks = np.unique(world.graph.layout.chunk_ids(world.supervoxels[whole == root]))
    assert place.chunks.index.tolist() == chunks.tolist()
    assert len(chunks) > 3
    assert str(root) in repr(place)
    inside = store.at(3, bounds=place.bounds, root_ids=[root])["segmentation"].to_numpy()
    assert (inside == root).sum() == place.voxels
    assert all(inside.any(axis=(1, 2))[[0, -1]])
    old = np.setdiff1d(np.unique(volume(world, moments["1"][0])), whole)
    with pytest.raises(OutdatedRootsError, match=f"{old[0]} .of .* -> "):
        store.where(int(old[0]), 3)
    with pytest.raises(OutdatedRootsError):
        store.where(0, 3)


def test_a_store_opens_on_another_machine(store: VersionStore, world: World, moments: Moments) -> None:
    again = pickle.loads(pickle.dumps(store))
    array = pickle.loads(pickle.dumps(again.at(1)["segmentation"].data))
    np.testing.assert_array_equal(array.compute(), volume(world, moments["1"][0]))


def test_a_store_is_read_over_http(
    out: Path, world: World, moments: Moments, http_server_factory: Callable[..., object]
) -> None:
    url = http_server_factory(out.parent).url + "/out"  # type: ignore[attr-defined]
    np.testing.assert_array_equal(open_versions(url).at(1)["segmentation"], volume(world, moments["1"][0]))


def test_supervoxels_of_another_volume_are_an_error(tmp_path: Path, store: VersionStore, world: World) -> None:
    from support.version_stores import make_store, write_version

    out = make_store(tmp_path / "out", world, {})
    ids = np.unique(world.supervoxels[world.supervoxels != 0])
    write_version(out, world, "9", world.times["split_2"], 9, supervoxels=ids[:-1])
    with pytest.raises(SourceError, match=f"1 of .* supervoxels, the first is {ids[-1]}"):
        open_versions(out).at(9)["segmentation"].compute()


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no version store.*versions create"):
        open_versions(tmp_path)
    (tmp_path / "versions.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        open_versions(tmp_path)
    (tmp_path / "versions.json").write_text('{"format": "imagery_dask versions", "format_version": 2}')
    with pytest.raises(ValueError, match="Update imagery_dask"):
        open_versions(tmp_path)


def test_a_store_that_is_opened_as_a_volume_says_what_reads_it(out: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"a version store, .*open_versions.*volume\.zarr"):
        open_volume(str(out))
