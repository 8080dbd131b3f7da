"""The harness of the benchmarks: it compares results, counts requests, and sees whole process trees from outside."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from benchmarks import report, servers
from benchmarks.rows import SECTIONS, Program, Row
from benchmarks.runner import ROOT, Child, Failed, Runner

# A child that lives on, as those of process pools do, after it has used half a second.
BURN = """
import atexit, subprocess, sys
program = "import time\\nwhile time.process_time() < 0.5: pass\\nprint(flush=True)\\ninput()"
child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
atexit.register(child.communicate, b"end")
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    with closing(Runner(tmp_path, small=True, repeats=0)) as runner:
        yield runner


def test_the_time_of_a_process_includes_that_of_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "burn.py").write_text(BURN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child(Path(sys.executable), tmp_path / "log")
    job = {"call": "programs.commands:load", "arguments": {"source": "", "modules": ["burn"]}}
    seen = child.answer(job) | child.end()
    assert "burn" in seen["imported"]
    assert 0.45 < seen["cpu_s"] < seen["process_cpu_s"]  # Linux counts that of others in hundredths
    assert 1 < seen["peak_mib"] < 1000

    child = Child(Path(sys.executable), tmp_path / "log")
    preloaded = child.answer(job | {"preload": ["burn"]}) | child.end()
    assert "burn" not in preloaded["imported"]
    assert preloaded["cpu_s"] < 0.45 < preloaded["process_cpu_s"]


def test_results_that_differ_and_counts_above_their_limit_fail(runner: Runner) -> None:
    plan = Program("plan", "programs.runs:plan", options={"blocks": 8})
    row = Row("plan", "", "nothing", (plan,), limits={"plan bytes": lambda facts: 10})
    with pytest.raises(Failed, match="plan bytes is [0-9,]+; at most 10"):
        runner.check_counts(row, runner.measure(row))
    unlike = (
        Program(kind, "programs.codecs:measure", options={"kind": kind, "codec": "zstd 1"}) for kind in ("ids", "mask")
    )
    with pytest.raises(Failed, match="results differ"):
        runner.measure(Row("unlike", "", "microscopy", tuple(unlike)))
    fails = Program("fails", "programs.commands:load", options={"modules": ["no_such_module"]})
    with pytest.raises(Failed, match="no_such_module"):
        runner.measure(Row("fails", "", "nothing", (fails,)))


@pytest.mark.parametrize("kind", ["slow", "nginx"])
def test_servers_count_requests_and_bytes(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "plain").write_bytes(bytes(range(100)))
    (folder / "packed.gz").write_bytes(gzip.compress(b"voxels"))
    if kind == "nginx" and shutil.which("nginx", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("nginx is not installed")
    server = servers.slow(folder, 0.0) if kind == "slow" else servers.nginx(folder, tmp_path / "nginx")
    with server as (url, counts):
        counts()
        assert urlopen(f"{url}/plain").read() == bytes(range(100))
        for asked, expected in (("10-19", range(10, 20)), ("90-", range(90, 100)), ("-5", range(95, 100))):
            with urlopen(Request(f"{url}/plain", headers={"Range": f"bytes={asked}"})) as answer:
                assert (answer.status, answer.read()) == (206, bytes(expected))
        found = counts()
        assert (found["requests"], found["bytes"]) == (4, 125)
        with urlopen(Request(f"{url}/packed", headers={"Accept-Encoding": "gzip"})) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(answer.read()) == b"voxels"
        assert counts()["requests"] == 1


def test_names_of_rows_differ() -> None:
    names = [row.name for section in SECTIONS for row in section.rows]
    assert len(names) == len(set(names))
    assert all(len({program.name for program in row.programs}) == len(row.programs) for row in _rows())


def _rows() -> list[Row]:
    return [row for section in SECTIONS for row in section.rows]


def test_the_page_is_made_from_the_json_of_a_run() -> None:
    def program(number: int) -> dict[str, Any]:
        run = {
            "wall_s": 0.5 + number,
            "cpu_s": 1.0 + number,
            "process_wall_s": 1.0,
            "process_cpu_s": 2.0,
            "peak_mib": 300.0,
        }
        return {"counts": {"requests": 1234}, "figures": {}, "notes": ["level 1: differs"], "runs": [run, run]}

    rows = {row.name: {known.name: program(n) for n, known in enumerate(row.programs)} for row in _rows()}
    found = {
        "date": "2026-12-01", "commit": "abc", "cpu": "a CPU", "cores": 2, "python": "3.11", "load": 0.0, "repeats": 2,
        "names": ["cutout", "zarr"], "peers": {"tensorstore": {"tensorstore": "0.1"}}, "rows": rows,
    }  # fmt: skip
    page = report.page(found)
    assert all(f"| {row.title} |" in page for row in _rows())
    assert "| 1.50 (1.50 - 1.50) | 2.00 (2.00 - 2.00) | 2.00 (2.00 - 2.00) | 3.00, 2.00 |" in page
    assert "tensorstore 0.1" in page
    assert "python -m benchmarks cutout zarr --repeats 2 --json" in page
    xml.etree.ElementTree.fromstring(report.picture(found))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the data of the rows."""
    return tmp_path_factory.mktemp("benchmarks")


# Rows that a quick run leaves out, without those that repeat one of them with other data. Rows of one command share the
# process that has imported everything.
LEFT_OUT = (
    ("small-command", "zarr-cluster-labels", "cluster-cpu", "cluster-overhead", "cluster-plane", "cluster-maximum"),
    (
        "process-completion",
        "process-verify",
        "blocks-none",
        "blocks-million",
        "blocks-labels-shards",
        "overlay-1-style",
    ),
)


@pytest.mark.long
@pytest.mark.parametrize("rows", LEFT_OUT, ids=lambda rows: rows[0])
def test_rows_that_a_quick_run_leaves_out_start(cache: Path, rows: tuple[str, ...]) -> None:
    assert not any(known.in_quick for known in _rows() if known.name in rows)
    command = [sys.executable, "-m", "benchmarks", "--quick", "--cache", cache, *rows]
    done = subprocess.run(command, cwd=ROOT, check=False, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^([a-z0-9-]+)(?: \(|: not measured)", done.stdout, re.MULTILINE) == list(rows)
