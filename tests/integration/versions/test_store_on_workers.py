"""Stores and copies that processes of a dask cluster write have the bytes of those that threads write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.dynamic import SOME, bounds, secrets_file
from support.made_stores import chunks_of, table_of
from support.programs import Done
from support.version_stores import contents_without_dates

from imagery_dask.testing.cave import CaveServer, World

pytestmark = pytest.mark.long

Command = Callable[..., Done]

CLUSTER = ("--cluster", "local", "--workers", 2)


@pytest.mark.parametrize("image", [(), ("--image",)], ids=["segmentation", "with imagery"])
def test_workers_write_what_threads_write(
    server: CaveServer, world: World, tmp_path: Path, command: Command, image: tuple[str, ...]
) -> None:
    where = ["--bounds", *bounds(world, SOME).ravel(), "--resolution", *world.resolution]
    source = ["--datastack", server.datastack, "--server", server.url, *where, *image]
    form = ["--chunks", "16,16,16", "--shards", "32,32,16", "--levels", 2, "--block-mib", 0.25]
    made: dict[str, Any] = {}
    with secrets_file(server):
        for name, run in (("threads", ()), ("workers", CLUSTER)):
            out, copy = tmp_path / name / "OUT", tmp_path / name / "copy.zarr"
            out.parent.mkdir()
            one = tmp_path / "threads/OUT"  # whose name copies have
            copies = []
            for words in (
                ["create", out, *source, *form, "--version", 1, "--stop-layer", 2],
                ["add", out, "--version", 3, "--stop-layer", 2],
                ["materialize", one, "--version", 1, copy, "--block-mib", 0.25],
                ["materialize", one, "--version", 3, copy, "--block-mib", 0.25],
            ):
                done = command("versions", *words, *run)
                assert done.code == 0, done.error
                copies += [contents_without_dates(copy)] if words[0] == "materialize" else []
            tables = {str(path.relative_to(out)): table_of(path) for path in out.rglob("*.parquet")}
            made[name] = tables, chunks_of(out), *copies
    assert sorted(made["threads"][0]) == ["roots/1.parquet", "roots/3.parquet", "supervoxels.parquet"]
    assert made["threads"][2] != made["threads"][3]
    for of_threads, of_workers in zip(made["threads"], made["workers"], strict=True):
        assert sorted(of_threads) == sorted(of_workers)
        assert [name for name in of_threads if of_threads[name] != of_workers[name]] == []
