"""Listed root ids: checked by one request, refused if invalid, and named if outdated."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from support.dynamic import SOME, WHOLE, assert_clean, bounds, changed, client_of, cut, expected, roots_at
from support.settings import Configure

from imagery_dask import ImageryClient
from imagery_dask.errors import (
    OutdatedRootsError,
)  # fmt: skip
from imagery_dask.testing.cave import CaveServer, Fault, World


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_listed_roots_are_checked_by_one_request(
    server: CaveServer, client: ImageryClient, world: World, count: int
) -> None:
    listed = (roots_at(world, world.times["split_1"]) * count)[:count]
    server.reset()
    array = cut(client, world, WHOLE, timestamp=world.times["split_1"], root_ids=listed)
    assert [request.endpoint for request in server.requests] == ["is_latest_roots"]
    assert server.requests[0].path.endswith(f"is_latest_roots?timestamp={int(world.times['split_1'])}")
    assert server.requests[0].n_ids == len(set(listed))
    array.compute()
    assert server.count("is_latest_roots") == 1
    assert server.count("leaves") == 0 < server.count("roots_binary")


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([1.0], TypeError),
        ([8.6e17], TypeError),
        (np.array([1.5]), TypeError),
        (["864691135000000001"], TypeError),
        ([None], TypeError),
        (864691135000000001, TypeError),
        ([-1], ValueError),
        ([2**64], ValueError),
        ([True], ValueError),
        ("some", ValueError),
    ],
)
def test_invalid_root_ids_are_refused(
    client: ImageryClient, server: CaveServer, world: World, ids: Any, kind: type[Exception]
) -> None:
    server.reset()
    for call in (client.segmentation_cutout, client.split_segmentation_cutout, client.dataset, client.unique_roots):
        with pytest.raises(kind, match="root_ids must be"):
            call(bounds(world, SOME), root_ids=ids)
    assert server.count() == 0


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 5, 255])
def test_ids_of_another_layer_are_refused_without_a_request(
    client: ImageryClient, server: CaveServer, world: World, layer: int
) -> None:
    nodes = {1: int(world.graph.supervoxels[5]), 2: int(world.graph.roots(world.graph.supervoxels[:1], None, 2)[0])}
    other = nodes.get(layer, (layer << 56) + 7)
    server.reset()
    with pytest.raises(ValueError, match=rf"{other}.* not root ids of table 'demo_v1'") as refused:
        cut(client, world, root_ids=[roots_at(world, world.times["split_1"])[0], other])
    assert not isinstance(refused.value, OutdatedRootsError)
    assert_clean(refused.value)
    assert server.count() == 0


def test_a_root_of_another_table_is_refused(client: ImageryClient, server: CaveServer, world: World) -> None:
    """The id looks like one of this table, but the server does not know it."""
    stranger = (4 << 56) + 2**40
    server.reset()
    with pytest.raises(ValueError, match=rf"{stranger}.*") as refused:
        cut(client, world, root_ids=[stranger])
    assert_clean(refused.value)
    assert server.count("is_latest_roots") == 1  # the answer is final, so the request is not repeated


def test_outdated_roots_are_named_with_their_successors(
    client: ImageryClient, server: CaveServer, world: World
) -> None:
    (first, second), (merged,) = changed(world, "merge_1")
    (whole,), halves = changed(world, "split_1")
    current = roots_at(world, world.times["split_1"])[3]
    for call in (client.segmentation_cutout, client.split_segmentation_cutout, client.dataset, client.unique_roots):
        server.reset()
        with pytest.raises(OutdatedRootsError) as refused:
            call(bounds(world, SOME), root_ids=[first, current, whole])
        text = str(refused.value)
        assert f"{first} -> {merged}" in text
        assert re.search(rf"{whole} -> {halves[0]}, {halves[1]}|{whole} -> {halves[1]}, {halves[0]}", text)
        assert "2 of 3" in text
        assert str(current) not in text
        assert str(second) not in text
        assert "stale_roots='warn'" in text
        assert "2024-01-03T00:00:00Z" in text
        assert server.count("is_latest_roots") == 1
        assert server.count("roots_binary") == server.count("leaves") == 0
        assert_clean(refused.value)
        assert isinstance(refused.value, ValueError)


def test_successors_are_those_of_the_moment(server: CaveServer, world: World) -> None:
    """The merged root was split again later, so its successors now are others."""
    (first, _), (merged,) = changed(world, "merge_1")
    halves = changed(world, "split_2")[1]
    with pytest.raises(OutdatedRootsError, match=f"{first} -> {merged}[^,0-9]"):
        cut(client_of(server), world, root_ids=[first], timestamp=world.times["merge_2"])
    with pytest.raises(OutdatedRootsError) as refused:
        cut(client_of(server), world, root_ids=[first])
    assert f"{first} -> {halves[0]}, {halves[1]}" in str(refused.value)
    assert str(merged) not in str(refused.value)


def test_roots_created_after_the_moment_are_refused(client: ImageryClient, world: World) -> None:
    later = changed(world, "split_2")[1]
    with pytest.raises(OutdatedRootsError, match=str(later[0])):
        cut(client, world, root_ids=later)
    with pytest.raises(OutdatedRootsError):
        cut(client, world, root_ids=changed(world, "merge_1")[1], timestamp=world.times["created"])


def test_an_error_names_only_some_of_many_ids(client: ImageryClient, server: CaveServer, world: World) -> None:
    later = [(4 << 56) + 2**30 + number for number in range(1000)]
    server.faults = lambda name, n: Fault(status=400, body=b"no") if name == "lineage_graph_multiple" else None
    server.reset()
    with pytest.raises(OutdatedRootsError, match="1000 of 1000") as refused:
        cut(client, world, root_ids=later)
    assert len(str(refused.value)) < 1000
    assert server.count() < 10


@pytest.mark.parametrize("way", ["blocks", "leaves"])
def test_outdated_roots_match_nothing_and_warn_on_request(
    server: CaveServer, world: World, configure: Configure, small_lazy_blocks: None, way: str
) -> None:
    configure("graph.processes", 1 if way == "leaves" else 100)
    client = client_of(server, timestamp=world.times["split_1"], stale_roots="warn")
    (first, _), (merged,) = changed(world, "merge_1")
    whole, later = changed(world, "split_1")[0][0], changed(world, "split_2")[1][0]
    listed = [first, merged, whole, later]
    with pytest.warns(UserWarning, match=rf"3 of 4 .*{first} ") as warned:
        array = cut(client, world, WHOLE, root_ids=listed)
    assert len(warned) == 1
    expected_voxels = expected(world, world.times["split_1"], WHOLE, keep=[merged])
    assert expected_voxels.any()
    np.testing.assert_array_equal(array, expected_voxels)
    assert (server.count("leaves") > 0) == (way == "leaves")
    with pytest.warns(UserWarning, match=str(first)):
        assert not cut(client, world, WHOLE, root_ids=[first]).compute().any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut(client, world, root_ids=[merged])


def test_a_warning_points_at_the_caller(server: CaveServer, world: World) -> None:
    client = client_of(server, timestamp=world.times["split_1"], stale_roots="warn")
    old, box = changed(world, "merge_1")[0], bounds(world, SOME)
    for call in (
        client.segmentation_cutout, client.split_segmentation_cutout, client.dataset, client.unique_roots,
        lambda _, root_ids: client.segmentation_volume(root_ids=root_ids),
    ):  # fmt: skip
        with pytest.warns(UserWarning, match=str(old[0])) as warned:
            call(box, root_ids=old)
        assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("ids", [[], (), np.array([], np.uint64), [0], iter([])])
def test_an_empty_list_of_ids_gives_zeros_without_requests(
    client: ImageryClient, server: CaveServer, world: World, small_lazy_blocks: None, ids: Any,
    configure: Configure,
) -> None:  # fmt: skip
    configure("graph.processes", 1)
    server.reset()
    array = cut(client, world, WHOLE, root_ids=ids)
    assert array.shape == (128, 128, 32)
    assert not array.compute().any()
    assert len(client.split_segmentation_cutout(bounds(world, SOME), root_ids=[])) == 0
    assert client.unique_roots(bounds(world, SOME), root_ids=[]) == {}
    assert server.count() == 0
