"""Run the command line and Python scripts in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import imagery_dask
from support.streams import without_dashboard

PROGRAM = "from imagery_dask.cli import main; main()"


class Done(NamedTuple):
    """The exit code and output of a process."""

    code: int
    out: str
    error: str


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which processes can import the tested package and the tests' modules."""
    folders = (Path(imagery_dask.__file__).parents[1], Path(__file__).parents[1])
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path.rstrip(os.pathsep), "COLUMNS": "160"} | dict(variables or {})


def python(*arguments: Any, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
    """Run a Python interpreter."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=180, check=False, cwd=cwd, env=environment(env),
    )  # fmt: skip
    return Done(done.returncode, done.stdout, without_dashboard(done.stderr))


def program(*arguments: Any, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
    """Run ``imagery-dask``."""
    return python("-c", PROGRAM, *arguments, cwd=cwd, env=env)
