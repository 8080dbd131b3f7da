"""A source that answers wrongly by schedule: every block ends right or is named, and the next run does only those."""

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
    driver,
    export,
    receipts_so_far,
    settled,
)
from support.http_server import Fault, FileServer, Request
from support.volumes import coordinate_volume, random_labels, write_volume

pytestmark = pytest.mark.long

# Pauses between attempts as short as the tests are.
HASTY = """
from imagery_dask.config import config
config.set({"requests.longest_pause_s": 0.05, "requests.timeout_s": (2, 0.7)})
"""
HASTY_DRIVER = HASTY + 'config.set({"run.pauses_s": (0.1, 0.2, 0.4)})\n' + CLI


@dataclass
class Faulty:
    """A server whose chunks say by checksums when they were damaged, a cluster, and what an export leaves."""

    server: FileServer
    cluster: Cluster
    expected: dict[str, bytes]

    def run(self, folder: Path) -> tuple[int, str]:
        folder.mkdir(exist_ok=True)
        said = folder.with_suffix(f".{len(list(folder.parent.glob('*.log')))}.log")
        arguments = export("zarr", folder / "out", self.server.url, "--cluster", self.cluster.address)
        process = driver(arguments, said, HASTY_DRIVER)
        try:
            return process.wait(), process.said
        finally:
            process.end()

    def chunks(self, which: Callable[[Request], bool] = lambda request: True) -> list[str]:
        """Paths of the storage chunks that were asked for."""
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
        made = Faulty(server, running, {})
        code, said = made.run(folder / "expected")
        assert code == 0, said
        made.expected = settled(folder / "expected")
        yield made


@pytest.fixture(autouse=True)
def _forgotten(faulty: Faulty) -> Iterator[None]:
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
def test_faults_that_pass_are_not_seen(tmp_path: Path, faulty: Faulty, fault: str) -> None:
    """Of every seventh chunk (or all of them in turn) the first two answers are wrong."""
    kinds = [PASSING[kind] for kind in ("429", "503", "cut", "corrupt")]

    def faults(path: str, nth: int) -> Fault | None:
        number = sum(path.encode())
        if not is_chunk(path) or nth > 2:
            return None
        if fault == "each in turn":
            return kinds[number % 4] if number % 2 else None
        return None if number % (31 if fault == "hang" else 7) else PASSING[fault]

    faulty.server.faults = faults
    code, said = faulty.run(tmp_path / "export")
    assert code == 0, said
    assert len(faulty.chunks()) > len(set(faulty.chunks()))
    check_receipts(tmp_path / "export")
    assert_same(settled(tmp_path / "export"), faulty.expected)


@pytest.mark.parametrize("fault", ["503", "cut", "corrupt"] if MANY else ["503", "corrupt"])
def test_blocks_that_fail_are_named_and_done_by_the_next_run(tmp_path: Path, faulty: Faulty, fault: str) -> None:
    folder, broken = tmp_path / "export", {"/image/8_8_40/32-64_0-32_16-32", "/ids/8_8_40/64-96_96-128_48-64"}
    faulty.server.faults = lambda path, nth: PASSING[fault] if path in broken else None
    code, said = faulty.run(folder)
    assert code == 1, said
    failed = re.findall(r"^ +read\+write (image|segmentation) (z\d+ y\d+ x\d+): (.*)$", said, re.MULTILINE)
    assert {name for name, _, _ in failed} == {"image", "segmentation"}, said
    assert f"{len(failed)} blocks FAILED" in said
    assert all("8_8_40/32-64_0-32_16-32" in reason or "8_8_40/64-96_96-128_48-64" in reason for *_, reason in failed)
    assert "Traceback" not in said
    done = receipts_so_far(folder)
    assert f"{done} of " in said
    # What is there of the other blocks is right; it says of itself that it is not finished.
    faulty.server.reset()
    faulty.server.faults = None
    code, said = faulty.run(folder)
    assert code == 0, said
    # The chunks of the blocks that had failed, and no others.
    again = faulty.chunks()
    assert broken <= set(again)
    assert len(again) == len(set(again)) == 4 + 1, again
    check_receipts(folder)
    assert_same(settled(folder), faulty.expected)


def test_access_that_is_refused_in_the_middle(tmp_path: Path, faulty: Faulty) -> None:
    folder, count, lock = tmp_path / "export", [0], threading.Lock()

    def faults(path: str, nth: int) -> Fault | None:
        with lock:
            count[0] += is_chunk(path)
        return Fault(status=403, body=b"no") if count[0] > 60 else None

    faulty.server.faults = faults
    code, said = faulty.run(folder)
    assert code == 1, said
    assert len(said.splitlines()) == 1, said
    assert said.startswith("Error: Access was refused to ")
    # At once: those that were being done may ask once each.
    assert len(faulty.chunks(lambda request: request.status == 403)) < 60
    done = receipts_so_far(folder)
    assert done
    faulty.server.reset()
    faulty.server.faults = None
    code, said = faulty.run(folder)
    assert code == 0, said
    assert len(faulty.chunks()) <= 128 - 40
    check_receipts(folder)
    assert_same(settled(folder), faulty.expected)
