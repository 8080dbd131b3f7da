"""What is wrong in a store is found: damaged tables, voxels that were changed, roots that a server denies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from support.dynamic import forget_roots
from support.made_stores import assert_roots, create
from support.settings import Configure

from imagery_dask import add_version, open_versions, remove_version, verify_versions
from imagery_dask.errors import SourceError
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.testing.cave import CaveServer, World
from imagery_dask.versions import create_store


@pytest.fixture
def made(server: CaveServer, world: World, tmp_path: Path) -> Path:
    create(server, tmp_path / "out", world.times["merge_1"])
    forget_roots()
    add_version(tmp_path / "out", timestamp=world.times["split_1"], progress=False)
    forget_roots()
    return tmp_path / "out"


def rewrite(path: Path, column: str, values: np.ndarray) -> None:
    table = pq.read_table(path)
    at = table.column_names.index(column)
    said = json.loads(table.schema.metadata[b"imagery_dask"])
    table = table.set_column(at, column, pa.array(values))
    pq.write_table(table.replace_schema_metadata({b"imagery_dask": json.dumps(said).encode()}), path)
    forget_tables()


def test_a_store_as_written_is_well(made: Path, server: CaveServer) -> None:
    sent = server.ids_sent
    check = verify_versions(made)
    assert check.ok, check.problems
    assert (check.tables, check.asked, server.ids_sent) == (3, 0, sent)
    live = verify_versions(made, live=10, seed=1)
    assert live.ok, live.problems
    assert live.asked == 20
    assert server.ids_sent == sent + 20


def test_a_changed_root_is_found(made: Path) -> None:
    path = sorted((made / "roots").glob("*.parquet"))[0]
    roots = pq.read_table(path).column("root").to_numpy().copy()
    roots[3] += np.uint64(1)
    rewrite(path, "root", roots)
    assert any(path.name in problem and "hash" in problem for problem in verify_versions(made).problems)


def test_a_changed_voxel_is_found(made: Path) -> None:
    array = zarr.open_array(str(made / "volume.zarr/0"), mode="r+")
    voxels = array[:]
    z, y, x = np.argwhere(voxels != 0)[0]
    array[z, y, x] = 0
    (problem,) = verify_versions(made).problems
    assert "does not agree with the voxels" in problem


@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.6])
def test_damaged_bytes_of_a_table_are_found(made: Path, share: float) -> None:
    path = sorted((made / "roots").glob("*.parquet"))[-1]
    content, group = path.read_bytes(), pq.read_metadata(path).row_group(0)
    at = 4 + int(share * sum(group.column(n).total_compressed_size for n in range(3)))
    path.write_bytes(content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 8]) + content[at + 8 :])
    forget_tables()
    assert any(path.name in problem for problem in verify_versions(made).problems)


def test_a_lost_shard_is_found(made: Path) -> None:
    """Absent chunks of zarr are zeros, which have no supervoxels that a table could be asked for."""
    shards = [path for path in (made / "volume.zarr/0/c").rglob("*") if path.is_file()]
    shards[0].unlink()
    problems = verify_versions(made).problems
    assert problems
    assert all("does not agree with the voxels" in problem for problem in problems)


def test_a_damaged_shard_is_a_problem(made: Path) -> None:
    shard = next(path for path in (made / "volume.zarr/0/c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:1000])
    assert all("does not decode" in problem for problem in verify_versions(made).problems)


def test_supervoxels_that_lie_in_several_blocks_agree(
    server: CaveServer, world: World, tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where edges of graph chunks cut voxels, blocks are no groups of graph chunks."""
    monkeypatch.setattr(create_store, "_graph_grid", lambda facts: (Vec3(30, 30, 10), Vec3(0, 0, 0)))
    configure("export.block_bytes", 30 * 30 * 10 * 8)
    create(server, tmp_path / "out", world.times["merge_1"])
    check = verify_versions(tmp_path / "out")
    assert check.blocks > 1
    assert check.ok, check.problems


@pytest.mark.parametrize("name", ["roots", "supervoxels"])
@pytest.mark.parametrize("content", [b"", b"not a table" * 100, None], ids=["empty", "foreign", "absent"])
def test_a_table_that_cannot_be_opened_is_a_problem(made: Path, name: str, content: bytes | None) -> None:
    path = sorted((made / "roots").glob("*.parquet"))[0] if name == "roots" else made / "supervoxels.parquet"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    forget_tables()
    if name == "roots" and content is None:
        assert verify_versions(made).ok  # a version exists if its table does
        return
    (problem,) = verify_versions(made).problems
    assert path.name in problem
    assert "Restore it from a copy" in problem


@pytest.mark.parametrize("other", ["another version", "supervoxels"])
def test_a_table_under_the_name_of_another_is_found_and_removed(made: Path, other: str) -> None:
    first, second = sorted((made / "roots").glob("*.parquet"))
    shutil.copy(second if other == "another version" else made / "supervoxels.parquet", first)
    forget_tables()
    with pytest.raises(SourceError, match=r"under the name of another. Remove version"):
        open_versions(made).at(first.stem)
    assert any("under the name of another" in problem for problem in verify_versions(made).problems)
    assert remove_version(made, version=first.stem) == first.stem  # type: ignore[arg-type]
    assert verify_versions(made).ok


def test_a_damaged_version_is_removed_and_added_again(made: Path, world: World) -> None:
    damaged, moment = sorted((made / "roots").glob("*.parquet"))[1], world.times["split_1"]
    before = damaged.read_bytes()
    damaged.write_bytes(before[:100])
    forget_tables()
    remove_version(made, timestamp=moment)
    assert not damaged.exists()
    add_version(made, timestamp=moment, progress=False)
    assert_roots(made, damaged.stem, world, moment)
