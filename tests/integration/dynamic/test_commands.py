"""Dynamic segmentations on the command line: timestamps, versions, root ids and refusals."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from integration.stores import labels
from support.dynamic import SOME, TOKEN, Box, bounds, changed, closed_port, expected
from support.streams import without_dashboard

from imagery_dask import open_export, root_ids_of
from imagery_dask.cli import main
from imagery_dask.testing.cave import CaveServer, World


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line and return exit code, stdout and stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["imagery-dask", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, errors = capfd.readouterr()
        return int(stopped.value.code or 0), out, without_dashboard(errors)

    return call


def options_for(server: CaveServer, world: World, box: Box = SOME) -> list[Any]:
    low, high = bounds(world, box) * (2, 2, 1)
    return ["--datastack", server.datastack, "--server", server.url, "--bounds", *low, *high, "--chunks", "32,32,16"]


@pytest.mark.parametrize(
    ("arguments", "moment"),
    [
        (["--timestamp", "2024-01-03T00:00:00Z"], "split_1"),
        (["--timestamp", "1704240000"], "split_1"),
        (["--version", "2"], "split_1"),
        ([], "split_2"),
        (["--timestamp", "now"], "split_2"),
    ],
)
def test_the_command_exports_the_voxels_of_the_moment(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Client,
    arguments: list[str], moment: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    out = tmp_path / "out.zarr"
    address = threads.scheduler.address
    code, text, errors = run("export", "zarr", out, *options_for(server, world), "--cluster", address, *arguments)
    assert code == 0, errors
    expected_voxels = expected(world, np.ceil(world.times[moment]), SOME)
    np.testing.assert_array_equal(labels(out)[::2, ::2], expected_voxels)
    assert re.search(r"supervoxels without a root: 0$", text, re.MULTILINE)
    assert re.search(r"supervoxels looked up: \d+ in \d+ requests", text)
    assert TOKEN not in text + errors


def test_the_command_exports_listed_roots_and_names_outdated_ones(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Client
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    address = threads.scheduler.address
    (first, _), (merged,) = changed(world, "merge_1")
    common = [*options_for(server, world), "--cluster", address, "--version", "2"]
    code, text, errors = run("export", "zarr", tmp_path / "a.zarr", *common, "--root-ids", f"{merged}")
    assert code == 0, errors
    expected_voxels = expected(world, world.times["split_1"], SOME, keep=[merged])
    np.testing.assert_array_equal(labels(tmp_path / "a.zarr")[::2, ::2], expected_voxels)
    code, text, errors = run("export", "zarr", tmp_path / "b.zarr", *common, "--root-ids", f"{first},{merged}")
    assert code == 2
    assert f"1 of 2 were not valid at 2024-01-03T12:00:01Z: {first} " in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "b.zarr").exists()
    with pytest.warns(UserWarning, match=f"{first} "):
        code, text, errors = run(
            "export", "zarr", tmp_path / "b.zarr", *common, "--root-ids", f"{first},{merged}", "--stale-roots", "warn"
        )
    assert code == 0, errors
    np.testing.assert_array_equal(labels(tmp_path / "b.zarr")[::2, ::2], expected_voxels)


def test_the_command_counts_supervoxels_without_a_root(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Client
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    address = threads.scheduler.address
    code, text, errors = run(
        "export", "zarr", tmp_path / "a.zarr", *options_for(server, world), "--cluster", address, "--timestamp",
        "2023-12-31",
    )  # fmt: skip
    assert code == 0, errors
    assert re.search(r"supervoxels without a root: [1-9]\d* \(written as 0\): \d+, ", text)
    assert not labels(tmp_path / "a.zarr").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timestamp", "2100-01-01"], "future"),
        (["--timestamp", "soon"], "date and time"),
        (["--version", "9"], "Version 9 of datastack"),
        (["--version", "2", "--timestamp", "now"], "not both"),
        (["--root-ids", "1.5"], "whole numbers"),
        (["--root-ids", "-5"], "--root-ids"),
        (["--root-ids", "123"], "not root ids of table"),
        (["--stale-roots", "maybe"], "maybe"),
        (["--datastack", "other"], "no datastack 'other'"),
    ],
)
def test_the_command_refuses_invalid_input(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    code, text, errors = run("export", "zarr", tmp_path / "out.zarr", *options_for(server, world), *arguments)
    assert code == 2, text + errors
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors
    assert TOKEN not in text + errors
    assert not (tmp_path / "out.zarr").exists()


def test_the_command_reports_token_and_server_errors(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, common = tmp_path / "out.zarr", options_for(server, world)
    code, text, errors = run("export", "zarr", out, *common)
    assert (code, "CAVE_TOKEN" in errors, "Traceback" in errors) == (2, True, False)
    monkeypatch.setenv("CAVE_TOKEN", "badbadbad0123456789")
    code, text, errors = run("export", "zarr", out, *common)
    assert (code, "refused" in errors, "badbadbad" in errors, "Traceback" in errors) == (2, True, False, False)
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    code, text, errors = run("export", "zarr", out, *common[:3], closed_port(), *common[4:])
    assert (code, "does not answer" in errors, TOKEN in errors, "Traceback" in errors) == (2, True, False, False)
    assert not out.exists()


def test_the_info_command_accepts_datastacks_and_graphene_sources(
    run: Any, server: CaveServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    code, text, errors = run("info", "--datastack", server.datastack, "--server", server.url)
    assert code == 0, errors
    assert server.segmentation_source in text
    assert world.image_source in text
    code, text, errors = run("info", server.segmentation_source)
    assert code == 0, errors
    assert TOKEN not in text + errors


def test_a_config_and_regions_keep_the_moment_of_now(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Client
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    low, high = bounds(world, SOME) * (2, 2, 1)
    rows = ["name,x0,y0,z0,x1,y1,z1", *(",".join(map(str, [name, *low, *high])) for name in "ab")]
    (tmp_path / "r.csv").write_text("\n".join(rows))
    options = ["--datastack", server.datastack, "--server", server.url, "--cluster", threads.scheduler.address]
    arguments = ["export", "zarr", tmp_path / "out", *options, "--regions", tmp_path / "r.csv"]
    code, _, errors = run(*arguments)
    assert code == 0, errors
    config = tmp_path / "out.receipts" / "config.yaml"
    assert re.search('timestamp: "[0-9]+"', config.read_text())
    moments = [open_export(tmp_path / "out", level=0)[name]["segmentation"].attrs["timestamp"] for name in "ab"]
    assert moments[0] == moments[1]
    assert TOKEN not in config.read_text()
    time.sleep(1.1)  # "now" is another second
    assert run(*arguments)[0] == 0  # resumed, not refused for another timestamp
    code, text, errors = run("export", "--config", config)
    assert (code, "0 were left to do" in text) == (0, True), errors


def test_compact_ids_of_a_dynamic_segmentation(
    run: Any, server: CaveServer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Client
) -> None:
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    out = tmp_path / "out.zarr"
    options = [*options_for(server, world), "--version", "2", "--relabel", "uint32"]
    code, _, errors = run("export", "zarr", out, *options, "--cluster", threads.scheduler.address)
    assert code == 0, errors
    compact = labels(out)
    assert compact.dtype == np.uint32
    expected_voxels = expected(world, np.ceil(world.times["split_1"]), SOME)
    np.testing.assert_array_equal(root_ids_of(out, compact)[::2, ::2], expected_voxels)
