"""Workers that die during an export, and workers that join during it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from cluster.processes import dask_processes, dask_worker
from distributed import Client, LocalCluster
from integration.stores import files_of, written
from support.settings import Configure
from support.volumes import coordinate_volume

from imagery_dask import to_zarr
from imagery_dask.cluster import connect
from imagery_dask.cluster.replacing import replacing_workers
from imagery_dask.errors import BlockFailedError
from imagery_dask.run import RunReport

pytestmark = pytest.mark.long

SHAPE = (64, 64, 64)
BLOCK = (16, 16, 16)
BLOCKS = 64


@pytest.fixture(autouse=True)
def _small_blocks(configure: Configure) -> None:
    configure("export.block_bytes", 16**3)


@contextmanager
def one_worker(threads: int = 1) -> Iterator[Client]:
    """Run one worker process, with a scheduler that gives up a task after the first death of its worker."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=threads, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        # Under load a worker that the scheduler has forgotten closes with its nanny, which nobody starts again.
        replacing_workers(cluster, {}),
    ):
        yield client


def test_only_the_block_that_kills_its_workers_fails(tmp_path: Path, configure: Configure) -> None:
    configure("run.worker_deaths", 3)
    configure("run.batch_blocks", 1)
    data = coordinate_volume(SHAPE, dtype=np.uint8)

    def kill(block: Any, block_info: Any = None) -> Any:
        import time

        time.sleep(0.1)
        if block_info and block_info[0]["chunk-location"] == (1, 0, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)  # so that other blocks run when the worker dies
        return block

    array = da.from_array(data, chunks=BLOCK).map_blocks(kill, dtype=data.dtype)
    with one_worker(threads=2) as client, pytest.raises(BlockFailedError) as caught:
        to_zarr(array, tmp_path / "out.zarr", chunks=BLOCK, cluster=client, progress=False)
    report = caught.value.report
    (failed,) = report.failed
    assert failed.name.endswith("z0 y0 x1")
    assert failed.reason.startswith("its worker died 3 times; the last: tcp://127.0.0.1:")
    assert "memory" in failed.reason
    assert (report.failures, report.repeats, report.done) == (1, 0, BLOCKS - 1)
    data[16:32, :16, :16] = 0
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), data)


@pytest.mark.parametrize("batch", [1, 128])
def test_the_death_of_a_worker_does_not_count_as_an_attempt(tmp_path: Path, configure: Configure, batch: int) -> None:
    configure("run.batch_blocks", batch)
    configure("run.attempts", 1)
    data = coordinate_volume(SHAPE, dtype=np.uint8)
    killed: list[int | None] = [None]

    def slow(block: Any) -> Any:
        import time

        time.sleep(0.1)
        return block

    array = da.from_array(data, chunks=BLOCK).map_blocks(slow, dtype=data.dtype)
    with one_worker() as client:

        def kill(report: RunReport) -> None:
            pid = next(iter(client.cluster.workers.values())).pid
            if report.done >= 25 * len(killed) - 20 and pid not in killed and len(killed) < 3:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        report = to_zarr(array, tmp_path / "out.zarr", chunks=BLOCK, cluster=client, progress=kill)
    assert len(killed) == 3
    assert (report.done, report.failures, report.repeats) == (BLOCKS, 0, 0)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), data)


def test_a_worker_that_dask_drops_is_replaced() -> None:
    # The timeout stands for a machine on which a nanny needs longer to restart its worker than dask waits.
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}), connect("local", workers=2) as client:
        client.wait_for_workers(2, timeout=60)
        before = client.run(os.getpid)
        os.kill(min(before.values()), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(now := client.nthreads()) < 2 or set(now) == set(before):
            assert time.monotonic() < deadline, now
            time.sleep(0.2)
        answers = client.run(lambda: dask.config.get("distributed.worker.profile.enabled"))
        assert list(answers.values()) == [False, False]


def test_workers_that_join_later_get_blocks(tmp_path: Path, configure: Configure) -> None:
    configure("run.batch_blocks", 1)
    configure("run.ask_s", 0.5)
    data = coordinate_volume((64, 64, 96), dtype=np.uint8)
    spans = tmp_path / "spans"
    spans.mkdir()

    def slow_and_recorded(block: Any) -> Any:
        import os
        import time
        import uuid

        begin = time.time()
        time.sleep(0.5)
        (spans / uuid.uuid4().hex).write_text(f"{begin} {time.time()} {os.getpid()}")
        return block

    array = da.from_array(data, chunks=BLOCK).map_blocks(
        slow_and_recorded, dtype=data.dtype, meta=np.empty((0, 0, 0), data.dtype)
    )
    with dask_processes(tmp_path) as scheduler, ExitStack() as stack:

        def start_workers(report: RunReport) -> None:
            if report.done == 3:
                for number in range(3):
                    stack.enter_context(dask_worker(tmp_path, f"later-{number}", threads=2))

        report = to_zarr(array, tmp_path / "out.zarr", chunks=BLOCK, cluster=scheduler, progress=start_workers)
    assert report.done == 96
    periods = [tuple(map(float, span.read_text().split())) for span in spans.iterdir()]
    assert len({pid for *_, pid in periods}) == 4
    # With the window of one worker, at most four blocks would run at once.
    assert max(sum(begin <= at < end for begin, end, _ in periods) for at, *_ in periods) == 7
    to_zarr(data, tmp_path / "here.zarr", chunks=BLOCK, progress=False)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), data)
    assert files_of(tmp_path / "here.zarr" / "0") == files_of(tmp_path / "out.zarr" / "0")


def test_a_stopped_worker_is_named_and_its_blocks_are_given_to_others(
    tmp_path: Path, configure: Configure, logged_warnings: list[str]
) -> None:
    configure("run.batch_blocks", 1)
    configure("run.ask_s", 0.5)
    configure("run.silent_s", 12.0)
    data = coordinate_volume(SHAPE, dtype=np.uint8)
    stopped: list[int] = []

    def slow(block: Any) -> Any:
        import time

        time.sleep(0.1)
        return block

    array = da.from_array(data, chunks=BLOCK).map_blocks(slow, dtype=data.dtype)
    with connect("local", workers=2) as client:
        addresses: dict[str, int] = {}
        named: list[str] = []

        def stop(report: RunReport) -> None:
            named.extend(report.silent)
            if report.done == 5 and not stopped:
                addresses.update(client.run(os.getpid))
                pid = min(addresses.values())
                stopped.append(pid)
                os.kill(pid, signal.SIGSTOP)

        try:
            report = to_zarr(array, tmp_path / "out.zarr", chunks=BLOCK, cluster=client, progress=stop)
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    (address,) = (address for address, pid in addresses.items() if pid in stopped)
    assert (report.done, report.failures) == (BLOCKS, 0)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), data)
    # On a busy machine the other worker may be late as well.
    assert address in named
    assert any(message.startswith(f"The worker {address} (") for message in logged_warnings)
    assert any("are given to other workers" in message and address in message for message in logged_warnings)
