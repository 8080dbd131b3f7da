"""What is wrong in a store is found: damaged tables, voxels that were changed, roots that a server denies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from support.dynamic import forget_roots
from support.made_stores import create

from imagery_dask import add_version, verify_versions
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.testing.cave import CaveServer, World


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
