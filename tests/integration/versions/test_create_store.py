"""A store holds the supervoxels of a region, their table, and their roots, and is made in steps that resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.dynamic import SOME, TOKEN, WHOLE, bounds, crop, distinct
from support.made_stores import assert_roots, columns, create, supervoxels_in

from imagery_dask import ImageryClient, create_versions, open_versions
from imagery_dask.config import config
from imagery_dask.errors import BlockFailedError, ImageryDaskError
from imagery_dask.model.moments import describe_moment
from imagery_dask.testing.cave import CaveServer, World
from imagery_dask.testing.cave.http_base import Fault
from imagery_dask.versions.recorded import recorded_in
from imagery_dask.versions.store_places import StorePlaces
from imagery_dask.versions.tables.table_files import groups_of


def name_at(moment: float) -> str:
    return describe_moment(np.ceil(moment)).replace(":", "-")


@pytest.mark.parametrize("box", [WHOLE, SOME], ids=["whole chunks", "cut chunks"])
def test_a_store_has_the_supervoxels_and_their_roots(server: CaveServer, world: World, tmp_path: Path, box) -> None:
    moment = world.times["split_1"]
    report = create(server, tmp_path / "out", moment, box)
    stored = zarr.open_array(str(tmp_path / "out/volume.zarr/0"))[:].transpose()
    np.testing.assert_array_equal(stored, crop(world.supervoxels, box))
    assert_roots(tmp_path / "out", name_at(moment), world, moment, box)
    assert report.ids_sent == server.ids_sent == distinct(world, box)


def test_the_table_has_voxels_and_boxes(server: CaveServer, world: World, tmp_path: Path) -> None:
    create(server, tmp_path / "out", world.times["split_1"])
    table, voxels = columns(tmp_path / "out/supervoxels.parquet"), crop(world.supervoxels, SOME)
    np.testing.assert_array_equal(table["supervoxel"], supervoxels_in(world))
    start = bounds(world, SOME)[0]
    for row, id_ in enumerate(table["supervoxel"].tolist()):
        at = np.argwhere(voxels == np.uint64(id_))
        assert table["voxels"][row] == len(at)
        low, high = at.min(axis=0) + start, at.max(axis=0) + 1 + start
        assert [int(table[f"{axis}_start"][row]) for axis in "xyz"] == low.tolist()
        assert [int(table[f"{axis}_stop"][row]) for axis in "xyz"] == high.tolist()


def test_many_blocks_and_row_groups_make_the_same_tables(
    server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = world.times["split_1"]
    create(server, tmp_path / "one", moment)
    monkeypatch.setattr("imagery_dask.versions.tables.table_files.GROUP_ROWS", (16, 32))
    with config.set({"export.block_bytes": 2**12}):
        create(server, tmp_path / "many", moment)
    for name in ("supervoxels.parquet", f"roots/{name_at(moment)}.parquet"):
        one, many = columns(tmp_path / "one" / name), columns(tmp_path / "many" / name)
        for column, values in one.items():
            np.testing.assert_array_equal(values, many[column], err_msg=column)
    table = StorePlaces(tmp_path / "many").supervoxels.open()
    assert len(table.group_rows) > 4
    assert max(table.group_rows) <= 32
    chunks = [group["chunk"] for group in groups_of(table, ["chunk"])]
    assert any(before[-1] != after[0] for before, after in zip(chunks, chunks[1:], strict=False))


def test_an_image_of_another_resolution_lies_beside_the_supervoxels(
    server: CaveServer, world: World, tmp_path: Path
) -> None:
    client = ImageryClient(server.client(), resolution=world.resolution)
    create_versions(client, tmp_path / "out", bounds(world, SOME), version=2, image=True, progress=False)
    stored = zarr.open_array(str(tmp_path / "out/volume.zarr/labels/segmentation/0"))[:].transpose()
    np.testing.assert_array_equal(stored[::2, ::2], crop(world.supervoxels, SOME))
    table = columns(tmp_path / "out/supervoxels.parquet")
    assert table["voxels"].sum() == np.count_nonzero(stored)
    assert_roots(tmp_path / "out", "2", world, world.versions[2].timestamp)
    facts = json.loads((tmp_path / "out/versions.json").read_text())
    assert facts["layers"] == ["image", "segmentation"]
    assert facts["datastack"] == server.datastack
    assert TOKEN not in (tmp_path / "out/versions.json").read_text()


def test_the_same_call_does_nothing_and_another_is_refused(server: CaveServer, world: World, tmp_path: Path) -> None:
    moment = world.times["split_1"]
    create(server, tmp_path / "out", moment)
    sent = server.ids_sent
    assert "nothing is left" in create(server, tmp_path / "out", moment).notes[0]
    assert server.ids_sent == sent
    with pytest.raises(FileExistsError, match="bounds was .* and is"):
        create(server, tmp_path / "out", moment, WHOLE)
    with pytest.raises(FileExistsError, match="without version .*versions add"):
        create(server, tmp_path / "out", moment + 5)


def test_something_else_is_left_alone(server: CaveServer, world: World, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        create(server, tmp_path / "out", world.times["split_1"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_flat_segmentation_is_refused(world: World, tmp_path: Path) -> None:
    client = ImageryClient(segmentation_source=world.watershed_source)
    with pytest.raises(ValueError, match="is flat"):
        create_versions(client, tmp_path / "out", bounds(world, SOME), resolution=world.resolution)
    assert not (tmp_path / "out").exists()


def test_now_is_that_of_the_call_that_is_resumed(server: CaveServer, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server.faults = lambda endpoint, n: Fault(status=500) if endpoint == "roots_binary" else None
    with pytest.raises((BlockFailedError, ImageryDaskError)):
        create(server, out, None)  # type: ignore[arg-type]
    begun = json.loads((out / "creating.json").read_text())
    assert not (out / "versions.json").exists()
    server.faults = None
    with pytest.raises(FileExistsError, match="timestamp was"):
        create(server, out, world.times["split_1"])
    report = create(server, out, None)  # type: ignore[arg-type]
    assert report.stages["volume"].before == report.stages["volume"].blocks
    assert recorded_in(str(out))[0].timestamp == begun["timestamp"]
    assert not (out / "creating.json").exists()


def test_levels_that_cutouts_cannot_read_are_named(server: CaveServer, world: World, tmp_path: Path) -> None:
    for name, first, unread in (("even", (4, 4, 0), None), ("odd", (2, 4, 0), 2)):
        box = (first, (60, 60, 16))
        notes = create(server, tmp_path / name, world.times["merge_1"], box, levels=3).notes
        said = [note for note in notes if "begin within a voxel" in note]
        assert [note.split()[2] for note in said] == ([] if unread is None else [str(unread)])
        store = open_versions(tmp_path / name)
        for level in (1, 2):
            if level == unread:
                with pytest.raises(ValueError, match="cannot be read"):
                    store.at(timestamp=world.times["merge_1"], level=level)
            else:
                assert store.at(timestamp=world.times["merge_1"], level=level)["segmentation"].any().compute()
