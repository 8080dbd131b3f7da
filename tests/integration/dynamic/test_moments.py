"""The timestamp of a dynamic segmentation: accepted forms, where it is shown, and that an array keeps it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from integration.stores import written
from support.dynamic import BOXES, SOME, assert_clean, bounds, client_of, cut, expected, forget_roots, roots_at, served

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.testing.cave import CaveServer, World, make_world


def forms(second: int) -> dict[str, Any]:
    """Return one moment in every accepted form."""
    aware = datetime.fromtimestamp(second, UTC)
    return {
        "number": second,
        "float": float(second),
        "aware": aware,
        "naive": aware.replace(tzinfo=None),
        "text": aware.isoformat(),
        "text of another zone": pd.Timestamp(aware).tz_convert("Asia/Tokyo").isoformat(),
        "numpy": np.datetime64(second, "s"),
        "pandas": pd.Timestamp(aware),
        "fraction": second - 0.75,
        "fraction of a datetime": datetime.fromtimestamp(second - 0.75, UTC),
    }


def test_all_forms_of_a_timestamp_give_the_same_array(client: ImageryClient, world: World) -> None:
    second = int(world.times["split_1"])
    arrays = {name: cut(client, world, BOXES[1], timestamp=form) for name, form in forms(second).items()}
    assert len({array.name for array in arrays.values()}) == 1
    clients = [client_of_moment(client, form) for form in forms(second).values()]
    assert {cut(client, world, BOXES[1]).name for client in clients} == {arrays["number"].name}
    np.testing.assert_array_equal(arrays["fraction"], expected(world, second, BOXES[1]))


def client_of_moment(client: ImageryClient, moment: Any) -> ImageryClient:
    return ImageryClient(segmentation_source=client.segmentation_source, timestamp=moment)


def test_the_timestamp_is_in_repr_and_attributes(server: CaveServer, world: World) -> None:
    second = int(np.ceil(world.times["merge_2"]))
    client = client_of(server, timestamp=world.times["merge_2"])
    text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert text in repr(client)
    assert "timestamp" not in repr(client_of(server))
    volume = client.segmentation_volume()
    assert (volume.attrs["timestamp"], volume.attrs["timestamp_unix_s"]) == (text, second)
    assert (volume.attrs["source"], volume.attrs["mip"]) == (server.segmentation_source, 0)
    json.dumps(volume.attrs)
    data = client.dataset(bounds(world, BOXES[1]), timestamp=world.times["created"])
    assert data.segmentation.attrs["timestamp_unix_s"] == world.times["created"]
    assert "timestamp" not in client.segmentation_volume(root_ids=None).attrs  # supervoxels have no moment


@pytest.mark.parametrize("now", [None, "now"])
def test_now_is_the_time_at_which_an_array_is_created(server: CaveServer, now: Any) -> None:
    before = int(time.time())
    volume = client_of(server).segmentation_volume(timestamp=now)
    assert before <= volume.attrs["timestamp_unix_s"] <= time.time()
    pinned = client_of(server, timestamp="now")
    first = pinned.segmentation_volume().attrs["timestamp_unix_s"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagery_dask.model.moments.time.time", lambda: before + 3600.0)
        assert pinned.segmentation_volume().attrs["timestamp_unix_s"] == first
        assert pinned.segmentation_volume(timestamp="now").attrs["timestamp_unix_s"] == before + 3600
        assert client_of(server).segmentation_volume().attrs["timestamp_unix_s"] == before + 3600


def test_an_array_keeps_its_moment_while_the_graph_is_edited(tmp_path: Path, small_lazy_blocks: None) -> None:
    world = make_world(tmp_path / "world", (128, 128, 32), edited=False)
    graph, whole = world.graph, ((0, 0, 0), (64, 64, 32))
    with served(world) as server:
        client = client_of(server)
        volume = client.segmentation_volume()
        masks = client.split_segmentation_cutout(bounds(world, whole), mip=0)
        first, second, *_ = roots_at(world, time.time())
        listed = cut(client, world, whole, root_ids=[first, second])
        merged = graph.merge(first, second)
        graph.split(merged, graph.leaves(merged)[::2])
        moment = volume.attrs["timestamp_unix_s"]
        expected_voxels = expected(world, moment, whole)
        assert {first, second} <= set(np.unique(expected_voxels).tolist())
        assert not np.array_equal(expected_voxels, world.roots_volume(time.time() + 1))
        for _ in range(2):
            np.testing.assert_array_equal(volume, expected_voxels)
            np.testing.assert_array_equal(
                listed, np.where(np.isin(expected_voxels, [first, second]), expected_voxels, 0)
            )
            forget_roots()
        assert {first, second} <= set(masks)
        np.testing.assert_array_equal(masks[first], expected_voxels == first)
        to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), progress=False)
        np.testing.assert_array_equal(written(tmp_path / "out.zarr"), expected_voxels)


@pytest.mark.parametrize("call", ["client", "cutout", "masks", "volume", "dataset", "unique_roots", "root_at", "remap"])
@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        (4e9, ValueError),
        ("2100-01-01", ValueError),
        ("soon", ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        ([2024], TypeError),
        (True, TypeError),
    ],
)
def test_invalid_timestamps_are_refused_by_every_call(
    client: ImageryClient, server: CaveServer, world: World, moment: Any, kind: type[Exception], call: str
) -> None:
    box = bounds(world, SOME)
    server.reset()
    calls: dict[str, Callable[[], Any]] = {
        "client": lambda: client_of(server, timestamp=moment),
        "cutout": lambda: client.segmentation_cutout(box, timestamp=moment),
        "masks": lambda: client.split_segmentation_cutout(box, timestamp=moment),
        "volume": lambda: client.segmentation_volume(timestamp=moment),
        "dataset": lambda: client.dataset(box, timestamp=moment),
        "unique_roots": lambda: client.unique_roots(box, timestamp=moment),
        "root_at": lambda: client.root_at(box, timestamp=moment),
        "remap": lambda: client.remap([1], timestamp=moment),
    }
    with pytest.raises(kind, match="timestamp") as refused:
        calls[call]()
    assert_clean(refused.value)
    assert server.count() == 0
