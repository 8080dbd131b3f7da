"""``imagery-dask versions create|add|list|remove|verify``: plans, reports, refusals and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.dynamic import SOME, TOKEN, bounds, forget_roots, secrets_file
from support.made_stores import assert_roots, supervoxels_in
from support.streams import without_dashboard

from imagery_dask.cli import main
from imagery_dask.testing.cave import CaveServer, World


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line and return exit code, stdout and stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        forget_roots()
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["imagery-dask", "versions", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, errors = capfd.readouterr()
        return int(stopped.value.code or 0), out, without_dashboard(errors)

    return call


def options_for(server: CaveServer, world: World) -> list[Any]:
    where = ["--bounds", *bounds(world, SOME).ravel(), "--resolution", *world.resolution]
    return ["--datastack", server.datastack, "--server", server.url, *where]


def test_a_store_from_its_plan_to_its_removal(server: CaveServer, world: World, tmp_path: Path, run: Any) -> None:
    out, total = tmp_path / "OUT", len(supervoxels_in(world))
    with secrets_file(server):
        create = ["create", out, *options_for(server, world), "--version", 2]
        code, text, errors = run(*create, "--dry-run")
        assert (code, out.exists(), server.count("roots_binary")) == (0, False, 0), errors
        assert "all supervoxels, once" in text
        assert "bounds (6144, 4096, 1024) to" in " ".join(text.split())
        code, text, errors = run(*create, "--max-requests", 2, "--report", tmp_path / "page.html")
        assert code == 0, errors
        assert f"supervoxels looked up: {total} in 1 requests" in text
        assert (tmp_path / "page.html").stat().st_size > 1000
        assert "nothing is left to do" in run(*create)[1]
        code, _, errors = run("create", out, *options_for(server, world), "--version", 3)
        assert (code, "versions add adds it" in errors) == (2, True), errors

        code, text, errors = run("add", out, "--version", 3, "--dry-run")
        assert code == 0, errors
        assert f"of {total}" in text
        assert "delta from 2" in text
        assert not (out / "roots/3.parquet").exists()
        code, text, errors = run("add", out, "--version", 3)
        assert code == 0, errors
        assert "note: delta from 2" in text
        assert_roots(out, "3", world, world.versions[3].timestamp)
        code, text, _ = run("list", out)
        assert code == 0
        assert [line.split()[0] for line in text.splitlines()] == ["name", "2", "3"]
        listed = json.loads(run("list", out, "--json")[1])
        assert [one["version"] for one in listed] == [2, 3]
        assert listed[1]["made_from"] == "2"
        assert TOKEN not in json.dumps(listed)

        code, text, _ = run("verify", out, "--live", 5)
        assert (code, "all as written" in text, "10 roots asked for again" in text) == (0, True, True)
    assert run("remove", out, "--version", 2)[0] == 0
    code, _, errors = run("remove", out, "--version", 3)
    assert (code, "only version" in errors) == (2, True)
    code, _, errors = run("remove", out, "--version", 9)
    assert (code, "version 3" in errors) == (2, True)


def test_what_verify_finds_is_an_exit_code(server: CaveServer, world: World, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "OUT"
    with secrets_file(server):
        assert run("create", out, *options_for(server, world), "--version", 2)[0] == 0
    path = out / "roots/2.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1).replace_schema_metadata(table.schema.metadata), path)
    code, text, errors = run("verify", out)
    assert code == 1
    assert "not as it was written" in text
    assert "problem" in errors


def test_a_store_is_not_replaced_and_the_remedy_is_named(
    server: CaveServer, world: World, tmp_path: Path, run: Any
) -> None:
    out = tmp_path / "OUT"
    with secrets_file(server):
        create = ["create", out, *options_for(server, world), "--version", 2]
        assert run(*create)[0] == 0
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        code, _, errors = run("create", out, *options_for(server, world), "--version", 2, "--image")
        assert (code, "layers" in errors, "remove it with all of its versions to start over" in errors) == (
            2,
            True,
            True,
        )
        code, _, errors = run(*create, "--overwrite")
        assert (code, "remove OUT yourself, or choose another name" in " ".join(errors.split())) == (2, True), errors
        code, _, errors = run(*create, "--repair")
        repair = f"imagery-dask export --plan {out}/volume.zarr --repair"
        assert (code, repair.replace(str(out), "OUT") in " ".join(errors.split())) == (2, True), errors
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
        next(path for path in (out / "volume.zarr/0/c").rglob("*") if path.is_file()).unlink()
        code, _, errors = run("verify", out)
        assert (code, repair in " ".join(errors.split())) == (1, True), errors
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").touch()
        code, _, errors = run("create", tmp_path / "other", *options_for(server, world), "--timestamp", 1704412801)
    assert (code, "holds 'file'. Choose another name" in errors) == (2, True), errors


def test_what_cannot_be_a_store_is_refused(server: CaveServer, world: World, tmp_path: Path, run: Any) -> None:
    code, _, errors = run("create", tmp_path / "OUT", "--segmentation-source", world.watershed_source,
                          "--bounds", *bounds(world, SOME).ravel())  # fmt: skip
    assert (code, "is flat" in errors) == (2, True), errors
    code, _, errors = run("create", tmp_path / "OUT", "--segmentation-source", server.segmentation_source)
    assert (code, "--bounds" in errors) == (2, True), errors
    code, _, errors = run("add", tmp_path / "nothing", "--version", 3)
    assert (code, "versions create" in errors) == (2, True), errors
    assert not (tmp_path / "OUT").exists()


def test_a_store_of_a_graph_alone_has_moments_but_no_versions(
    server: CaveServer, world: World, tmp_path: Path, run: Any
) -> None:
    out, where = tmp_path / "OUT", ["--bounds", *bounds(world, SOME).ravel(), "--resolution", *world.resolution]
    with secrets_file(server):
        source = ["--segmentation-source", server.segmentation_source]
        code, _, errors = run("create", out, *source, *where, "--timestamp", "2024-01-02T00:00:01Z")
        assert code == 0, errors
        code, _, errors = run("add", out, "--version", 3)
        assert (code, "--datastack" in errors) == (2, True), errors
        code, _, errors = run("add", out, "--version", 3, "--datastack", server.datastack, "--server", server.url)
        assert code == 0, errors
        code, _, errors = run("add", out, "--timestamp", "1704412801")
        assert code == 0, errors
    assert sorted(path.name for path in (out / "roots").glob("*.parquet")) == [
        "2024-01-02T00-00-01Z.parquet", "2024-01-05T00-00-01Z.parquet", "3.parquet",
    ]  # fmt: skip
