"""Output of the command line about clusters: the address of the dashboard, and errors."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from support.settings import Configure
from support.volumes import coordinate_volume, write_volume

from imagery_dask.cli import main
from imagery_dask.run.thread_workers import ThreadWorkers

BOUNDS = ("--bounds", 0, 0, 0, 32, 32, 16)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_volume(tmp_path / "em", coordinate_volume((32, 32, 16), (0, 0, 0), np.uint8))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """Run the command line in this process; return the exit code."""
    monkeypatch.setattr(sys, "argv", ["imagery-dask", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.long
def test_the_dashboards_address_is_printed_before_blocks_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, source: str
) -> None:
    pytest.importorskip("bokeh", reason="needs bokeh: pip install 'imagery_dask[clusters]'")
    pages: list[int] = []
    errors: list[str] = []

    def open_dashboard_first(*arguments: Any, **options: Any) -> Any:
        errors.append(capfd.readouterr().err)
        (address,) = re.findall(r"^dashboard: (http://127.0.0.1:\d+/status)$", errors[0], re.MULTILINE)
        with urlopen(address) as page:
            pages.append(page.status)
        return run_blocks(*arguments, **options)

    from imagery_dask.export.execution.execute import run_blocks

    monkeypatch.setattr("imagery_dask.export.execution.execute.run_blocks", open_dashboard_first)
    code = run(monkeypatch, "export", "zarr", tmp_path / "o.zarr", "--image-source", source, *BOUNDS, "--workers", 1)
    assert code == 0
    assert pages == [200]
    assert "dashboard: " not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cluster: distributed.LocalCluster\nworker: 2\n", "line 2: unknown key 'worker' (did you mean 'workers'?)"),
        ("cluster: distributed.LocalClutser\n", "line 1: 'cluster' names no class"),
        ("cluster: moon.MoonCluster\n", "line 1: moon.MoonCluster needs the package 'moon'; pip install moon."),
        ("address: tcp://127.0.0.1:1\n", "tcp://127.0.0.1:1: nothing listens there. Is it running?"),
    ],
)
def test_an_error_of_a_cluster_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    source: str,
    text: str,
    line: str,
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    started = time.monotonic()
    out = tmp_path / "o.zarr"
    code = run(monkeypatch, "export", "zarr", out, "--image-source", source, *BOUNDS, "--cluster", file)
    assert code == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert line in errors[0]
    assert time.monotonic() - started < 30
    assert not out.exists()


def test_retire_before_needs_a_batch_system(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, source: str
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster: distributed.LocalCluster\n")
    for cluster, message in (("local", "the cluster is 'local'"), (file, "workers of LocalCluster have no walltime")):
        arguments = ("export", "zarr", tmp_path / "o.zarr", "--image-source", source, *BOUNDS, "--cluster", cluster)
        assert run(monkeypatch, *arguments, "--retire-before", "5m") == 2
        (error,) = capfd.readouterr().err.splitlines()
        assert message in error
    assert not (tmp_path / "o.zarr").exists()


def test_no_worker_within_the_wait_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, source: str
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "cluster: distributed.LocalCluster\n"
        "arguments: {n_workers: 0, processes: false, dashboard_address: '127.0.0.1:0'}\n"
    )
    out = tmp_path / "o.zarr"
    arguments = ("export", "zarr", out, "--image-source", source, *BOUNDS, "--cluster", file, "--wait", "1s")
    assert run(monkeypatch, *arguments) == 2
    assert "Error: No worker came within 1 s (--wait)." in capfd.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "0", "0s", "-1m", "soon", "5 fortnights", "m", "nan"])
def test_invalid_times_are_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    assert run(monkeypatch, "verify", tmp_path, "--wait", text) == 2
    assert f"{text!r} is not a time such as 30s, 10m or 2h" in capfd.readouterr().err


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Run all exports on threads; return where they were asked to run: cluster and workers."""
    asked: list[tuple[Any, Any]] = []

    @contextmanager
    def workers_of(cluster: Any, workers: Any, *options: Any, **more: Any) -> Iterator[ThreadWorkers]:
        asked.append((cluster, workers))
        yield ThreadWorkers(1)

    monkeypatch.setattr("imagery_dask.export.core.run_options.workers_of", workers_of)
    return asked


@pytest.mark.parametrize(
    ("options", "process_bytes", "where"),
    [
        ((), None, (None, None)),
        ((), 32 * 32 * 16, ("local", None)),
        (("--workers", 3), None, ("local", 3)),
        (("--cluster", "local"), None, ("local", None)),
        (("--cluster", "tcp://host:8786"), 0, ("tcp://host:8786", None)),
    ],
)
def test_an_export_runs_on_threads_unless_it_is_large_or_has_workers(
    monkeypatch: pytest.MonkeyPatch,
    configure: Configure,
    started: list[tuple[Any, Any]],
    tmp_path: Path,
    source: str,
    options: tuple[Any, ...],
    process_bytes: int | None,
    where: tuple[Any, Any],
) -> None:
    if process_bytes is not None:
        configure("run.process_bytes", process_bytes)
    command = ("export", "zarr", tmp_path / "o.zarr", "--image-source", source, *BOUNDS, *options)
    assert run(monkeypatch, *command) == 0
    assert started == [where]
    # Nothing is left to do, and nothing is started.
    assert run(monkeypatch, *command) == 0
    assert started == [where]


def test_regions_share_workers_and_finished_ones_start_none(
    monkeypatch: pytest.MonkeyPatch, started: list[tuple[Any, Any]], tmp_path: Path, source: str
) -> None:
    (tmp_path / "regions.csv").write_text("name,x0,y0,z0,x1,y1,z1\na,0,0,0,16,16,16\nb,16,0,0,32,16,16\n")
    command = ("export", "zarr", tmp_path / "out", "--image-source", source, "--regions", tmp_path / "regions.csv")
    assert run(monkeypatch, *command) == 0
    assert started == [(None, None)]
    assert run(monkeypatch, *command) == 0
    assert started == [(None, None)]
