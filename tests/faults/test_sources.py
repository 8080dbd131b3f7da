"""A source that fails on schedule: each block is right or is named as failed, and the next run does only the failed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faults.harness import (
    CLI,
    MANY,
    SHAPE,
    WORKER,
    Cluster,
    assert_same,
    check_receipts,
    cluster,
    comparable_files,
    driver,
    export_arguments,
    receipts_so_far,
)
from support.http_server import Fault, FileServer, Request
from support.volumes import coordinate_volume, random_labels, write_volume

pytestmark = pytest.mark.long

# Short pauses between attempts.
HASTY = """
from imagery_dask.config import config
config.set({"requests.longest_pause_s": 0.05, "requests.timeout_s": (2, 0.7)})
"""
HASTY_DRIVER = HASTY + 'config.set({"run.pauses_s": (0.1, 0.2, 0.4)})\n' + CLI


@dataclass
class Faulty:
    """A server that sends checksums of its chunks, a cluster, and the files of an undisturbed export."""

    server: FileServer
    cluster: Cluster
    expected: dict[str, bytes]

    def run(self, folder: Path) -> tuple[int, str]:
        """Run an export to its end; return exit code and output."""
        folder.mkdir(exist_ok=True)
        log = folder.with_suffix(f".{len(list(folder.parent.glob('*.log')))}.log")
        arguments = export_arguments("zarr", folder / "out", self.server.url, "--cluster", self.cluster.address)
        process = driver(arguments, log, HASTY_DRIVER)
        try:
            return process.wait(), process.output
        finally:
            process.end()

    def chunks(self, which: Callable[[Request], bool] = lambda request: True) -> list[str]:
        """Return the paths of the requested storage chunks, one for each request."""
        return [request.path for request in self.server.requests if is_chunk(request.path) and which(request)]


def is_chunk(path: str) -> bool:
    return "/8_8_40/" in path


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faulty")
    write_volume(folder / "sources" / "image", coordinate_volume(SHAPE, dtype=np.uint8))
    write_volume(folder / "sources" / "ids", random_labels(SHAPE, n=60), layer_type="segmentation")
    with (
        FileServer(folder / "sources") as server,
        cluster(folder / "cluster", worker=HASTY + WORKER) as running,
    ):
        faulty_source = Faulty(server, running, {})
        code, output = faulty_source.run(folder / "expected")
        assert code == 0, output
        faulty_source.expected = comparable_files(folder / "expected")
        yield faulty_source


@pytest.fixture(autouse=True)
def _reset_server(faulty: Faulty) -> Iterator[None]:
    faulty.server.reset()
    yield
    faulty.server.faults = None


PASSING: dict[str, Fault] = {
    "429": Fault(status=429, headers={"Retry-After": "0.1"}, body=b"slow down"),
    "503": Fault(status=503, body=b"not now"),
    "cut": Fault(cut=100),
    "hang": Fault(delay_s=1.5),
    "corrupt": Fault(corrupt=True),
}


@pytest.mark.parametrize("fault", [*PASSING, "each in turn"] if MANY else ["hang", "each in turn"])
def test_passing_faults_do_not_change_an_export(tmp_path: Path, faulty: Faulty, fault: str) -> None:
    """The first two answers are wrong for every seventh chunk (or for every second, with each fault in turn)."""
    kinds = [PASSING[kind] for kind in ("429", "503", "cut", "corrupt")]

    def faults(path: str, nth: int) -> Fault | None:
        number = sum(path.encode())
        if not is_chunk(path) or nth > 2:
            return None
        if fault == "each in turn":
            return kinds[number % 4] if number % 2 else None
        return None if number % (31 if fault == "hang" else 7) else PASSING[fault]

    faulty.server.faults = faults
    code, output = faulty.run(tmp_path / "export")
    assert code == 0, output
    assert len(faulty.chunks()) > len(set(faulty.chunks()))
    check_receipts(tmp_path / "export")
    assert_same(comparable_files(tmp_path / "export"), faulty.expected)


@pytest.mark.parametrize("fault", ["503", "cut", "corrupt"] if MANY else ["503", "corrupt"])
def test_failed_blocks_are_named_and_done_by_the_next_run(tmp_path: Path, faulty: Faulty, fault: str) -> None:
    folder, broken = tmp_path / "export", {"/image/8_8_40/32-64_0-32_16-32", "/ids/8_8_40/64-96_96-128_48-64"}
    faulty.server.faults = lambda path, nth: PASSING[fault] if path in broken else None
    code, output = faulty.run(folder)
    assert code == 1, output
    failed = re.findall(r"^ +read\+write (image|segmentation) (z\d+ y\d+ x\d+): (.*)$", output, re.MULTILINE)
    assert {name for name, _, _ in failed} == {"image", "segmentation"}, output
    assert f"{len(failed)} blocks FAILED" in output
    assert all("8_8_40/32-64_0-32_16-32" in reason or "8_8_40/64-96_96-128_48-64" in reason for *_, reason in failed)
    assert "Traceback" not in output
    done = receipts_so_far(folder)
    assert f"{done} of " in output
    # The other blocks are right, and the store is marked as unfinished.
    faulty.server.reset()
    faulty.server.faults = None
    code, output = faulty.run(folder)
    assert code == 0, output
    # The next run reads the chunks of the failed blocks only.
    requested_chunks = faulty.chunks()
    assert broken <= set(requested_chunks)
    assert len(requested_chunks) == len(set(requested_chunks)) == 4 + 1, requested_chunks
    check_receipts(folder)
    assert_same(comparable_files(folder), faulty.expected)


def test_access_refused_during_an_export_ends_it_and_the_next_run_resumes(tmp_path: Path, faulty: Faulty) -> None:
    folder, count, lock = tmp_path / "export", [0], threading.Lock()

    def faults(path: str, nth: int) -> Fault | None:
        with lock:
            count[0] += is_chunk(path)
        return Fault(status=403, body=b"no") if count[0] > 60 else None

    faulty.server.faults = faults
    code, output = faulty.run(folder)
    assert code == 1, output
    assert len(output.splitlines()) == 1, output
    assert output.startswith("Error: Access was refused to ")
    # The export ends at once; each block in progress may send one more request.
    assert len(faulty.chunks(lambda request: request.status == 403)) < 60
    done = receipts_so_far(folder)
    assert done
    faulty.server.reset()
    faulty.server.faults = None
    code, output = faulty.run(folder)
    assert code == 0, output
    assert len(faulty.chunks()) <= 128 - 40
    check_receipts(folder)
    assert_same(comparable_files(folder), faulty.expected)
