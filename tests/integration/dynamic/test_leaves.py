"""Few listed roots in many blocks are read with one request per root for its leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dynamic import (
    BOXES,
    at_mip,
    bounds,
    changed,
    client_of,
    cut,
    expected,
    resolution,
    roots_at,
    served,
    squeezed,
)
from support.settings import Configure

from imagery_dask.testing.cave import CaveServer, World, world_from_arrays


@pytest.mark.parametrize("mip", [0, 1, 2])
@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("edit", ["created", "merge_1", "split_2"])
def test_few_roots_in_many_blocks_are_read_through_their_leaves(
    server: CaveServer, world: World, small_lazy_blocks: None, configure: Configure,
    mip: int, layer: Any, edit: str,
) -> None:  # fmt: skip
    """The number of requests is that of the roots rather than of the blocks; the voxels are the same."""
    configure("graph.processes", 1)
    configure("lazy.block_bytes", 2**14)
    moment, client = int(np.ceil(world.times[edit])), client_of(server)
    listed = [*changed(world, edit)[1][:2], roots_at(world, moment)[4]]
    for box in BOXES:
        box = at_mip(box, mip)
        array = cut(client, world, box, mip, timestamp=moment, root_ids=listed, stop_layer=layer)
        server.reset()
        np.testing.assert_array_equal(
            array.compute(), squeezed(expected(world, moment, box, mip=mip, keep=listed, stop_layer=layer))
        )
        if len(listed) > array.npartitions:
            assert server.count("leaves") == 0
            continue
        assert server.count("leaves") == len(listed)
        assert layer or server.count() == len(listed)
        server.reset()
        array.compute()
        assert server.count() == 0


@pytest.mark.parametrize("scale", [0.5, 1.5, 3])
def test_scaled_cutouts_are_the_same_through_leaves(
    server: CaveServer, world: World, configure: Configure, scale: float
) -> None:
    """The box of a request for leaves covers every voxel that is read."""
    configure("lazy.block_bytes", 2**14)
    nm = np.array(resolution(world)) * (scale, scale, 1)
    moment = int(world.times["split_1"])
    listed = changed(world, "split_1")[1]
    results = []
    for processes in (1, 10**6):
        configure("graph.processes", processes)
        client = client_of(server)
        server.reset()
        for box in BOXES:
            low, high = np.floor(bounds(world, box) / (scale, scale, 1)).astype(int)
            array = client.segmentation_cutout(
                [low, np.maximum(high, low + 2)], resolution=nm, timestamp=moment, root_ids=listed,
                scale_to_bounds=True,
            )  # fmt: skip
            results.append(array.compute())
        assert (server.count("leaves") > 0) == (processes == 1)
    for left, right in zip(results[: len(BOXES)], results[len(BOXES) :], strict=True):
        np.testing.assert_array_equal(left, right)
    assert any(result.any() for result in results)


def test_few_roots_are_read_at_negative_coordinates(tmp_path: Path, configure: Configure) -> None:
    """The service accepts no negative bounds, so such a box is not requested; the voxels are right nevertheless."""
    configure("graph.processes", 1)
    configure("lazy.block_bytes", 2**12)
    objects = np.arange(1, 31).reshape(2, 3, 5).repeat(20, 0).repeat(15, 1).repeat(7, 2)
    world = world_from_arrays(
        tmp_path, objects, chunk_size=(16, 16, 8), storage_chunk=(8, 16, 4), voxel_offset=(16, -32, 8), n_mips=1,
        edited=False,
    )  # fmt: skip
    moment, box = int(world.times["created"]), ((0, 0, 0), objects.shape)
    listed = roots_at(world, moment)[:3]
    with served(world) as server:
        array = cut(client_of(server), world, box, root_ids=listed, timestamp=moment)
        np.testing.assert_array_equal(array, expected(world, moment, box, keep=listed))
