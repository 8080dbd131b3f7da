"""Supervoxels in a bucket that answers HTTP 403 for chunks that do not exist."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.dynamic import WHOLE, bounds, client_of, served
from support.http_server import Fault, FileServer
from support.volumes import delete_chunks

from imagery_dask.errors import AccessRefusedError
from imagery_dask.sources import collect_counts
from imagery_dask.testing.cave import World


def test_refused_or_absent_supervoxels_are_counted_until_all_is_refused(
    tmp_path: Path, world: World, http_server_factory: Callable[..., FileServer]
) -> None:
    folder = tmp_path / "watershed"
    shutil.copytree(world.watershed_source.removeprefix("precomputed://").removeprefix("file://"), folder)
    first = world.voxel_offset
    assert delete_chunks(f"precomputed://file://{folder}", 0, lambda start: start == tuple(first))
    files = http_server_factory(tmp_path)
    files.absent = 403, b""
    with served(replace(world, watershed_source=f"precomputed://{files.url}/watershed")) as server:
        client = client_of(server, timestamp=world.times["split_1"], cache_bytes=0)
        cutout = client.segmentation_cutout(bounds(world, WHOLE))
        with collect_counts() as counts:
            cutout.compute(scheduler="synchronous")
        assert counts.missing == counts.refused_or_absent == 1
        # The graph's server answers as before, and says nothing of the bucket.
        files.faults = lambda path, n: Fault(403)
        with pytest.raises(AccessRefusedError, match="watershed"):
            cutout.compute(scheduler="synchronous")
