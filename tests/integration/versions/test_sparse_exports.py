"""Exports of a few objects read their graph chunks alone, and write the files of exports that read everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.stores import written
from support.dynamic import forget
from support.http_server import FileServer
from support.programs import Done
from support.settings import Configure

from imagery_dask import open_versions, to_zarr, verify_export
from imagery_dask.arrays import remap
from imagery_dask.export.core.run_states import plan_in
from imagery_dask.export.registry import run_at
from imagery_dask.testing.cave import World

Moments = dict[str, tuple[float, int | None]]
Command = Callable[..., Done]
Served = Callable[[Path], FileServer]


@pytest.fixture
def small_blocks(configure: Configure) -> None:
    """Blocks of a graph chunk."""
    for name in ("block_bytes", "small_block_bytes", "fused_bytes"):
        configure(f"export.{name}", 2**17)


def chunk_files(out: Path) -> dict[str, bytes]:
    """Return the stored chunks of all levels."""
    files = [path for path in out.rglob("*") if path.is_file() and "/c/" in path.as_posix()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def smallest(world: World, moment: float) -> int:
    """Return the object that is in the fewest graph chunks."""
    ids, counts = np.unique(world.roots_volume(moment), return_counts=True)
    return int(ids[ids != 0][counts[ids != 0].argmin()])


def chunks_with(world: World, root: int, moment: float) -> set[tuple[int, ...]]:
    """Return the graph chunks that an object has voxels in."""
    places = np.argwhere(world.roots_volume(moment) == root) // np.array(world.graph.layout.chunk_size)
    return set(map(tuple, np.unique(places, axis=0).tolist()))


@pytest.mark.parametrize("levels", [1, 3])
def test_an_export_of_an_object_reads_its_graph_chunks_alone(
    tmp_path: Path, out: Path, world: World, moments: Moments, http_server_factory: Served, small_blocks: None,
    monkeypatch: pytest.MonkeyPatch, levels: int,
) -> None:  # fmt: skip
    moment = moments["3"][0]
    root, size = smallest(world, moment), np.array(world.graph.layout.chunk_size)
    held = chunks_with(world, root, moment)
    server = http_server_factory(out.parent)
    store = open_versions(f"{server.url}/out")
    data, chunks = store.at(3, root_ids=[root])["segmentation"], tuple(world.graph.layout.chunk_size)
    options: dict[str, Any] = {"chunks": chunks, "levels": levels, "progress": False}
    server.reset()
    report = to_zarr(data, tmp_path / "sparse.zarr", **options)
    read = {request.path for request in server.requests if "/volume.zarr/0/c/" in request.path}
    places = {tuple(map(int, path.rsplit("/", 3)[1:][::-1])) for path in read}
    assert places == held
    assert 0 < len(held) < np.prod(-(-np.array(world.supervoxels.shape) // size)) / 4
    assert report.counts.chunks == len(held)
    blocks = [len(part.blocks) for part in plan_in(run_at(str(tmp_path / "sparse.zarr"))).stages[0]]
    note = f"{len(held):,} of {blocks[0]:,} blocks are in graph chunks that hold the objects."
    assert [said for said in report.notes if "graph chunks" in said] == [
        f"segmentation: {note} The others are 0, and nothing is read for them."
    ]
    assert verify_export(tmp_path / "sparse.zarr", sample=None, source=True).ok
    monkeypatch.setattr(remap, "has_objects", lambda *given: True)
    full = to_zarr(data, tmp_path / "full.zarr", **options)
    assert full.counts.chunks > 4 * len(held)
    files = chunk_files(tmp_path / "sparse.zarr")
    assert files == chunk_files(tmp_path / "full.zarr")
    assert files
    forget()


def test_objects_have_the_same_voxels_at_every_level(
    out: Path, world: World, moments: Moments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes that cut graph chunks, lie partly outside, and levels whose voxels are larger."""
    store, (moment, _) = open_versions(out), moments["2"]
    roots = [smallest(world, moment), int(world.roots_volume(moment).max())]
    start = np.array(world.voxel_offset)
    boxes = [None, [start + 5, start + (77, 70, 29)], [start - 9, start + (40, 40, 20)]]
    for level in (0, 1, 2):
        for box in boxes:
            for layer in (None, 2):
                array = store.at(2, bounds=box, root_ids=roots, level=level, stop_layer=layer)["segmentation"]
                with monkeypatch.context() as patched:
                    patched.setattr(remap, "has_objects", lambda *given: True)
                    full = array.to_numpy()
                np.testing.assert_array_equal(array.to_numpy(), full)
                assert box is not None or full.any()


def test_a_version_is_exported_by_a_command(
    command: Command, tmp_path: Path, out: Path, world: World, moments: Moments
) -> None:
    moment, start = moments["3"][0], np.array(world.voxel_offset)
    root, box = smallest(world, moment), [*start, *start + world.supervoxels.shape]
    given = ("--versions", out, "--version", 3, "--root-ids", root, "--bounds", *box)
    done = command("export", "zarr", tmp_path / "one.zarr", *given, "--sparse", "--levels", 1)
    assert done.code == 0, done.error
    ids = world.roots_volume(moment)
    np.testing.assert_array_equal(written(tmp_path / "one.zarr"), np.where(ids == root, ids, np.uint64(0)))
    again = command("export", "zarr", tmp_path / "one.zarr", *given, "--levels", 1)
    assert again.code == 0, again.error
    done = command("export", "--config", tmp_path / "one.zarr.receipts" / "config.yaml")
    assert done.code == 0, done.error
    refused = command("export", "zarr", tmp_path / "two.zarr", *given, "--datastack", "d", "--missing", "error")
    assert (refused.code, "leave out --datastack, --missing error" in refused.error) == (2, True)
    refused = command("export", "zarr", tmp_path / "two.zarr", *given[:4], *given[6:], "--sparse")
    assert (refused.code, "give --root-ids" in refused.error) == (2, True)
