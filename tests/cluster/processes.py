"""Schedulers and workers as processes of their own, as people start them, on ports that are free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

START_TIMEOUT_S = 30.0
ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Environment in which workers find the package that is tested."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@contextmanager
def process(folder: Path, name: str, *command: str, env: dict[str, str] | None = None) -> Iterator[None]:
    """Run a command, whose output goes to NAME.log in a folder, until the block ends."""
    with (folder / f"{name}.log").open("wb") as output:
        running = subprocess.Popen(
            command, env={**environment(), **(env or {})}, cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
                if running.poll() is None:
                    os.killpg(running.pid, number)
                    try:
                        running.wait(patience)
                    except subprocess.TimeoutExpired:
                        continue


@contextmanager
def dask_processes(folder: Path, *options: str, workers: int = 1, env: dict[str, str] | None = None) -> Iterator[Path]:
    """Run ``dask scheduler`` and some ``dask worker``; give the scheduler file.

    Parameters
    ----------
    folder : pathlib.Path
        Where files and logs go.
    *options : str
        For both, such as certificates.
    workers : int
        How many.
    env : dict, optional
        Variables of the workers.
    """
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    with ExitStack() as stack:
        stack.enter_context(
            process(
                folder, "scheduler", *dask, "scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1", "--port",
                "0", "--dashboard-address", "127.0.0.1:0", *options,
            )
        )  # fmt: skip
        wait_for(file, folder / "scheduler.log")
        for number in range(workers):
            stack.enter_context(dask_worker(folder, f"worker-{number}", *options, env=env))
        yield file


def dask_worker(
    folder: Path, name: str, *options: str, threads: int = 1, env: dict[str, str] | None = None
) -> AbstractContextManager[None]:
    """Run a ``dask worker`` of the scheduler of `dask_processes`."""
    return process(
        folder, name, sys.executable, "-m", "dask", "worker", "--scheduler-file", str(folder / "scheduler.json"),
        "--nthreads", str(threads), "--memory-limit", "1GiB", "--local-directory", str(folder / "scratch"), "--host",
        "127.0.0.1", *options, env=env,
    )  # fmt: skip


def wait_for(file: Path, log: Path) -> None:
    """Wait for a file that a process writes when it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not file.exists() or not file.read_text().strip():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {file} within {START_TIMEOUT_S:.0f} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)
