"""Run schedulers and workers with dask's command line, in processes of their own and on free ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

START_TIMEOUT_S = 30.0
ROOT = Path(__file__).parents[2]
# For which each process would import bokeh, which takes a second.
NO_DASHBOARD = ("--no-dashboard",)


def environment() -> dict[str, str]:
    """Return an environment in which workers import the package that is tested."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@contextmanager
def process(folder: Path, name: str, *command: str, env: dict[str, str] | None = None) -> Iterator[None]:
    """Run a command until the block ends; its output goes to NAME.log in the folder."""
    with (folder / f"{name}.log").open("wb") as output:
        running = subprocess.Popen(
            command, env={**environment(), **(env or {})}, cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield running
        finally:
            for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
                if running.poll() is None:
                    os.killpg(running.pid, number)
                    try:
                        running.wait(patience)
                    except subprocess.TimeoutExpired:
                        continue


@contextmanager
def dask_processes(
    folder: Path,
    *options: str,
    workers: int = 1,
    env: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    prefixes: Sequence[Sequence[str]] = (),
    scheduler_env: dict[str, str] | None = None,
) -> Iterator[Path]:
    """Run ``dask scheduler`` and some ``dask worker``; yield the scheduler file.

    Parameters
    ----------
    folder : pathlib.Path
        Folder for the scheduler file and logs.
    *options : str
        Options of scheduler and workers, such as certificates.
    workers : int
        Number of workers.
    env : dict, optional
        Environment variables of the workers.
    host : str
        Address of the scheduler.
    prefixes : sequence of sequence of str
        Command that starts each of the first workers, such as `Host.prefix`.
    scheduler_env : dict, optional
        Environment variables of the scheduler.
    """
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    with ExitStack() as stack:
        stack.enter_context(
            process(
                folder, "scheduler", *dask, "scheduler", "--scheduler-file", str(file), "--host", host, "--port",
                "0", "--dashboard-address", "127.0.0.1:0", *NO_DASHBOARD, *options, env=scheduler_env,
            )
        )  # fmt: skip
        wait_for(file, folder / "scheduler.log")
        for number in range(workers):
            prefix = prefixes[number] if number < len(prefixes) else ()
            worker_host = host if not prefix else None
            worker = dask_worker(folder, f"worker-{number}", *options, env=env, host=worker_host, prefix=prefix)
            stack.enter_context(worker)
        yield file


def dask_worker(
    folder: Path,
    name: str,
    *options: str,
    threads: int = 1,
    env: dict[str, str] | None = None,
    host: str | None = "127.0.0.1",
    prefix: Sequence[str] = (),
) -> AbstractContextManager[None]:
    """Run a ``dask worker`` that connects to the scheduler of `dask_processes`."""
    return process(
        folder, name, *prefix, sys.executable, "-m", "dask", "worker", "--scheduler-file",
        str(folder / "scheduler.json"), "--nthreads", str(threads), "--memory-limit", "1GiB", "--local-directory",
        str(folder / "scratch"), *(("--host", host) if host else ()), *NO_DASHBOARD, *options, env=env,
    )  # fmt: skip


def wait_for(file: Path, log: Path) -> None:
    """Wait for a file that a process writes when it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not file.exists() or not file.read_text().strip():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {file} within {START_TIMEOUT_S:.0f} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)
