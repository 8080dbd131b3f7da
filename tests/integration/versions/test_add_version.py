"""A version is added by sending the supervoxels whose roots have changed, and equals a full lookup."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.dynamic import SOME, bounds, client_of, forget_roots
from support.made_stores import assert_roots, columns, create, roots_at, supervoxels_in

from imagery_dask import add_version, open_versions, plan_version, remove_version
from imagery_dask.errors import TargetBusyError
from imagery_dask.sources.graph.root_tables import id_table
from imagery_dask.testing.cave import CaveServer, World
from imagery_dask.testing.cave.http_base import Fault
from imagery_dask.versions.add_version import PlannedVersion
from imagery_dask.versions.recorded import find, names_of_tables
from imagery_dask.versions.store_places import StorePlaces


def add(out: Path, moment: float):
    forget_roots()
    return add_version(out, timestamp=moment, progress=False)


def changed(world: World, before: float, after: float) -> int:
    """Return how many supervoxels have other roots at another moment."""
    return int((roots_at(world, before) != roots_at(world, after)).sum())


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.permutations(["merge_1", "split_1", "merge_2", "split_2"], 2))
)
def test_only_changed_supervoxels_are_sent(
    server: CaveServer, world: World, tmp_path: Path, first: str, second: str
) -> None:
    out, moments = tmp_path / "out", [float(np.ceil(world.times[name])) for name in (first, second)]
    create(server, out, moments[0])
    server.reset()
    report = add(out, moments[1])
    name = report.version
    assert_roots(out, name, world, moments[1])
    facts = id_table(find(str(out), name).url).facts
    assert facts["made_from"] == StorePlaces(out).roots(find(str(out), timestamp=moments[0]).name).name[6:-8]
    sent = changed(world, *moments)
    assert 0 < sent <= server.ids_sent == facts["ids_sent"] < len(supervoxels_in(world))
    assert facts["requests"] == len(server.requests) - server.count("info")
    if moments[1] > moments[0]:
        # Supervoxels of roots that ended, whether or not their own root is another one now: all are.
        assert server.ids_sent == sent


def test_the_plan_says_what_is_sent(server: CaveServer, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    create(server, out, world.times["merge_1"])
    server.reset()
    planned = plan_version(out, timestamp=world.times["split_1"])
    assert isinstance(planned, PlannedVersion)
    assert server.count("roots_binary") == 0
    assert names_of_tables(str(out)) == [find(str(out), timestamp=np.ceil(world.times["merge_1"])).name]
    rows = dict(planned.rows())
    sent = changed(world, world.times["merge_1"], world.times["split_1"])
    assert rows["ids to send"] == f"{sent:,} of {len(supervoxels_in(world)):,}"
    assert rows["how"].startswith("delta from 2024-01-02")
    add(out, world.times["split_1"])
    assert server.ids_sent == sent


@pytest.mark.parametrize("of_base", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize(("first", "second"), [("merge_1", "split_2"), ("split_2", "merge_1")])
def test_other_layers_are_recorded(
    server: CaveServer, world: World, tmp_path: Path, first: str, second: str, of_base: tuple[int, ...]
) -> None:
    out, moments = tmp_path / "out", [float(np.ceil(world.times[name])) for name in (first, second)]
    create(server, out, moments[0], stop_layers=of_base)
    server.reset()
    forget_roots()
    planned = plan_version(out, timestamp=moments[1], stop_layers=[2])
    assert planned.stop_layers == (2,)
    assert 0 < planned.lookup.ids < planned.lookup.of
    report = add_version(out, timestamp=moments[1], stop_layers=[2], progress=False)
    names = [find(str(out), timestamp=moment).name for moment in moments]
    for name, moment, layers in zip(names, moments, (of_base, (2,)), strict=True):
        table = columns(out / "roots" / f"{name}.parquet")
        assert list(table) == ["supervoxel", "chunk", "root", *(f"layer_{layer}" for layer in layers)]
        assert_roots(out, name, world, moment)
        for layer in layers:
            expected = world.graph.roots(table["supervoxel"], moment, layer)
            np.testing.assert_array_equal(table[f"layer_{layer}"], expected)
    of_layer = planned.lookup.ids if of_base else planned.lookup.of  # all, where the base does not have it
    assert report.ids_sent == server.ids_sent == planned.lookup.ids + of_layer
    store, client = open_versions(out), client_of(server, resolution=world.resolution)
    box = bounds(world, SOME)
    live = client.segmentation_cutout(box, timestamp=moments[1], stop_layer=2, scale_to_bounds=False).compute()
    np.testing.assert_array_equal(store.at(names[1], stop_layer=2)["segmentation"].values, live)
    with pytest.raises(ValueError, match="without layer 3"):
        add_version(out, timestamp=moments[1], stop_layers=[3], progress=False)
    with pytest.raises(ValueError, match="stop_layers must be"):
        add_version(out, timestamp=moments[1], stop_layers=[1], progress=False)


@pytest.mark.parametrize("refused", ["always", "long intervals"])
def test_intervals_that_a_server_refuses(
    server: CaveServer, world: World, tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    create(server, out, world.times["merge_1"])
    before = server.count("delta_roots")
    if refused == "always":
        server.faults = lambda endpoint, n: Fault(status=400) if endpoint == "delta_roots" else None
    else:
        server.faults = lambda endpoint, n: Fault(status=504) if endpoint == "delta_roots" and n <= before + 6 else None
    server.reset()
    report = add(out, world.times["split_2"])
    assert_roots(out, report.version, world, np.ceil(world.times["split_2"]))
    facts = find(str(out), report.version).table.facts
    if refused == "always":
        assert facts["made_from"] is None
        assert facts["ids_sent"] == len(supervoxels_in(world))
        assert "does not say which roots changed" in report.notes[0]
    else:
        assert facts["made_from"].startswith("2024-01-02")
        assert facts["ids_sent"] == changed(world, world.times["merge_1"], world.times["split_2"])
        assert server.count("delta_roots") > 6


def test_a_version_that_is_there_is_not_looked_up_again(server: CaveServer, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    create(server, out, world.times["merge_1"])
    add(out, world.times["split_1"])
    server.reset()
    report = add(out, world.times["split_1"])
    assert "already" in report.notes[0]
    assert server.count("roots_binary") == server.count("delta_roots") == 0


def test_before_the_graph_existed_nothing_has_a_root(server: CaveServer, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    create(server, out, world.times["merge_1"])
    report = add(out, world.times["created"] - 100)
    assert_roots(out, report.version, world, world.times["created"] - 100)
    again = add(out, world.times["created"] + 100)  # whose nearest version has no roots: all are sent
    assert_roots(out, again.version, world, world.times["created"] + 100)
    assert find(str(out), again.version).table.facts["ids_sent"] == len(supervoxels_in(world))


def test_a_run_that_was_interrupted_goes_on(
    server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagery_dask.versions.tables.table_files.GROUP_ROWS", (16, 32))
    out = tmp_path / "out"
    create(server, out, world.times["merge_1"])
    failing = iter([False, False])
    server.faults = lambda endpoint, n: (
        Fault(status=400) if endpoint == "roots_binary" and next(failing, True) else None
    )
    with pytest.raises(Exception, match=r"roots|blocks"):
        add(out, world.times["split_2"])
    assert len(names_of_tables(str(out))) == 1
    server.faults = None
    report = add(out, world.times["split_2"])
    assert 0 < report.stages["roots"].before < report.stages["roots"].blocks
    assert_roots(out, report.version, world, np.ceil(world.times["split_2"]))
    records = list((out / f"roots/{report.version}.parquet.receipts").rglob("piece-*"))
    assert records == []


def test_versions_are_removed_but_not_the_last(server: CaveServer, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = create(server, out, world.times["merge_1"]).version
    second = add(out, world.times["split_1"]).version
    assert remove_version(out, timestamp=np.ceil(world.times["merge_1"])) == first
    assert sorted(path.name for path in (out / "roots").iterdir()) == [
        f"{second}.parquet", f"{second}.parquet.receipts",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="only version"):
        remove_version(out, timestamp=np.ceil(world.times["split_1"]))
    with pytest.raises(ValueError, match="nearest"):
        remove_version(out, timestamp=np.ceil(world.times["merge_1"]))
    assert add(out, world.times["merge_1"]).version == first  # from the one that is left
    assert_roots(out, first, world, np.ceil(world.times["merge_1"]))


def test_two_processes_do_not_write_one_store(server: CaveServer, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    create(server, out, world.times["merge_1"])
    with StorePlaces(out).lease():
        for change in (
            lambda: add(out, world.times["split_1"]),
            lambda: remove_version(out, timestamp=np.ceil(world.times["merge_1"])),
            lambda: create(server, out, world.times["merge_1"]),
        ):
            with pytest.raises(TargetBusyError):
                change()
    assert len(names_of_tables(str(out))) == 1


def test_a_materialization_version_has_the_moment_of_the_server(
    server: CaveServer, world: World, tmp_path: Path
) -> None:
    from support.dynamic import SOME, bounds

    from imagery_dask import ImageryClient, create_versions

    out = tmp_path / "out"
    client = ImageryClient(server.client(), imagery=False, resolution=world.resolution)
    create_versions(client, out, bounds(world, SOME), version=2, progress=False)
    add_version(out, version=3, client=server.client(), progress=False)
    assert_roots(out, "3", world, world.versions[3].timestamp)
    assert open_versions(out).versions["version"].tolist() == [2, 3]
    with pytest.raises(ValueError, match="Version 9 of datastack"):
        add_version(out, version=9, client=server.client(), progress=False)
