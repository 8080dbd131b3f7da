"""Cutouts of dynamic segmentations equal those of the released imageryclient; both use one local CAVE server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import imageryclient
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.dynamic import at, changed, forget_roots, roots_at, served

import imagery_dask
from imagery_dask.testing.cave import CaveServer, World, make_world

EDITS = ["created", "merge_1", "split_1", "merge_2", "split_2"]
IMAGE = (256, 256, 32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaveServer]:
    with served(make_world(tmp_path_factory.mktemp("cave"))) as server:
        yield server


@pytest.fixture(scope="module")
def world(server: CaveServer) -> World:
    return server.world


@pytest.fixture(scope="module")
def both(server: CaveServer) -> tuple[Any, Any]:
    """Make both clients, each from its own CAVEclient."""
    return imageryclient.ImageryClient(client=server.client()), imagery_dask.ImageryClient(
        client=server.client(), outside="fill"
    )


def box(world: World, low: Any, high: Any) -> np.ndarray:
    """Return the bounds, in the viewer's resolution, of a box relative to the image's first voxel."""
    return np.array([low, high]) + np.array(world.voxel_offset) * (2, 2, 1)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Draw a box inside the volume, across its border or outside it, wider than one voxel of every mip."""
    low = [draw(st.integers(-40, n + 10)) for n in IMAGE]
    size = draw(st.integers(24, 150)), draw(st.integers(24, 150)), draw(st.integers(3, 20))
    return low, [a + n for a, n in zip(low, size, strict=True)]


def test_both_clients_take_the_same_settings_from_a_caveclient(both: tuple[Any, Any]) -> None:
    released, ours = both
    assert ours.image_source == released.image_source
    assert ours.segmentation_source == released.segmentation_source
    assert list(ours.resolution) == list(released.resolution)
    assert ours.segmentation_cv.info == released.segmentation_cv.info


@settings(max_examples=40)
@given(
    corners=boxes(), edit=st.sampled_from(EDITS), shift=st.sampled_from([0, 1, 0.25]), mip=st.integers(0, 2),
    form=st.sampled_from(["number", "datetime"]), which=st.sampled_from(["all", "all", "some", None]),
    convert=st.booleans(), data=st.data(),
)  # fmt: skip
def test_cutouts_of_random_requests_are_equal(
    both: tuple[Any, Any], world: World, corners: Any, edit: str, shift: float, mip: int, form: str, which: Any,
    convert: bool, data: st.DataObject,
) -> None:  # fmt: skip
    moment = world.times[edit] + shift
    root_ids: Any = which
    if which == "some":
        present = roots_at(world, np.ceil(moment))
        root_ids = data.draw(st.lists(st.sampled_from(present), min_size=1, max_size=4, unique=True))
    request: dict[str, Any] = {
        "bounds": box(world, *corners), "mip": mip, "root_ids": root_ids, "convert_to_int64": convert,
        "timestamp": at(moment) if form == "datetime" else moment,
    }  # fmt: skip
    released, ours = both
    expected = released.segmentation_cutout(**request)
    cutout = ours.segmentation_cutout(**request)
    assert cutout.dtype == expected.dtype
    np.testing.assert_array_equal(cutout.compute(), expected)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("mip", [0, 1])
def test_cutouts_of_the_whole_volume_are_equal(both: tuple[Any, Any], world: World, edit: str, mip: int) -> None:
    released, ours = both
    request = {"bounds": box(world, (0, 0, 0), IMAGE), "mip": mip, "timestamp": int(np.ceil(world.times[edit]))}
    expected = world.roots_volume(int(np.ceil(world.times[edit])), mip)
    for client in (released, ours):
        np.testing.assert_array_equal(np.asarray(client.segmentation_cutout(**request)), expected)


@pytest.mark.parametrize("options", [{"bbox_size": (64, 50, 10)}, {"image_size": (20, 30, 7)}, {"bbox_size": (40, 40)}])
def test_cutouts_around_a_center_are_equal(both: tuple[Any, Any], world: World, options: dict[str, Any]) -> None:
    center = np.array(world.voxel_offset) * (2, 2, 1) + (101, 88, 15)
    moment = int(world.times["split_1"])
    results = [
        np.asarray(client.segmentation_cutout(center, mip=0, timestamp=moment, scale_to_bounds=False, **options))
        for client in both
    ]
    np.testing.assert_array_equal(results[1], results[0])
    assert results[0].any()


@pytest.mark.parametrize("edit", ["merge_1", "split_2"])
@pytest.mark.parametrize("null", [False, True])
def test_masks_are_equal(both: tuple[Any, Any], world: World, edit: str, null: bool) -> None:
    bounds, moment = box(world, (10, 20, 3), (150, 160, 12)), int(np.ceil(world.times[edit]))
    listed = changed(world, edit)[1]
    for root_ids in ("all", listed):
        released, ours = (
            client.split_segmentation_cutout(bounds, root_ids=root_ids, include_null_root=null, mip=0, timestamp=moment)
            for client in both
        )
        assert set(ours) == {int(root) for root in released}
        for root, mask in list(released.items())[::7]:
            np.testing.assert_array_equal(ours[int(root)], mask)


def test_pairs_are_equal(both: tuple[Any, Any], world: World) -> None:
    bounds, moment = box(world, (10, 20, 3), (150, 160, 12)), int(world.times["split_1"])
    (image, labels), (our_image, our_labels) = (
        client.image_and_segmentation_cutout(bounds, image_mip=1, segmentation_mip=0, timestamp=moment)
        for client in both
    )
    np.testing.assert_array_equal(our_image, image)
    np.testing.assert_array_equal(our_labels, labels)


def test_cutouts_of_clients_with_a_timestamp_are_equal(server: CaveServer, world: World) -> None:
    bounds = box(world, (10, 20, 3), (150, 160, 12))
    for edit in EDITS:
        moment = world.times[edit]
        released = imageryclient.ImageryClient(client=server.client(), timestamp=moment)
        ours = imagery_dask.ImageryClient(client=server.client(), timestamp=moment, outside="fill")
        expected = released.segmentation_cutout(bounds, mip=0)
        np.testing.assert_array_equal(ours.segmentation_cutout(bounds, mip=0), expected)


def test_a_pinned_caveclient_pins_only_our_client(server: CaveServer, world: World) -> None:
    """The release uses the latest roots, even with a pinned CAVEclient."""
    bounds = box(world, (0, 0, 0), IMAGE)
    cave = server.client(version=1)
    ours = imagery_dask.ImageryClient(client=cave).segmentation_cutout(bounds, mip=0)
    released = imageryclient.ImageryClient(client=cave).segmentation_cutout(bounds, mip=0)
    np.testing.assert_array_equal(ours, world.roots_volume(world.versions[1].timestamp))
    np.testing.assert_array_equal(released, world.roots_volume())
    assert not np.array_equal(ours.compute(), released)


def test_outdated_roots_raise_only_in_our_client(both: tuple[Any, Any], world: World) -> None:
    """The release returns the leaves that a root had, whatever the requested timestamp."""
    released, ours = both
    request = {
        "bounds": box(world, (0, 0, 0), IMAGE), "mip": 0, "root_ids": changed(world, "merge_1")[0],
        "timestamp": int(world.times["split_1"]),
    }  # fmt: skip
    assert released.segmentation_cutout(**request).any()
    with pytest.raises(imagery_dask.errors.OutdatedRootsError):
        ours.segmentation_cutout(**request)


def test_our_client_sends_fewer_requests(server: CaveServer, both: tuple[Any, Any], world: World) -> None:
    """For the same cutouts we send one request per piece at most, and the release one for each root of each piece."""
    released, ours = both
    moment = int(world.times["split_1"])
    listed = roots_at(world, moment)[:5]
    pieces = [box(world, (x, y, 0), (x + 32, y + 32, 16)) for x in range(0, 128, 32) for y in range(0, 128, 32)]
    request_counts = []
    for client in (released, ours):
        forget_roots()
        server.reset()
        for piece in pieces:
            np.asarray(client.segmentation_cutout(piece, mip=0, root_ids=listed, timestamp=moment))
        request_counts.append(server.count("roots_binary") + server.count("leaves"))
    assert request_counts[0] == len(pieces) * len(listed)
    assert request_counts[1] <= len(pieces)
