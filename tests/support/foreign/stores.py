"""Stores of packages that exclude this one's dependencies: their programs run in environments of their own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import python_of

__all__ = ["PACKAGES", "Reading", "read_by", "written_by"]

# Also the names of their requirements.
PACKAGES = ("webknossos", "ome-zarr", "zarr2")
CACHE = Path(__file__).parents[3] / "benchmarks" / "results"


@dataclass(frozen=True)
class Reading:
    """What a package read of a level: see `own_reading.OwnReadings.keep`."""

    name: str
    path: str
    mip: int
    kind: str
    voxels: NDArray[Any]
    resolution_nm: tuple[float, float, float]
    start: tuple[int, int, int]


def written_by(package: str, folder: Path) -> list[Reading]:
    """Write the stores of a package to a folder; return what it reads from them."""
    return _run(package, "write", folder)


def read_by(package: str, stores: Sequence[Path], folder: Path) -> list[Reading]:
    """Return what a package reads from stores of ours; the folder takes its files."""
    folder.mkdir()
    return _run(package, "read", *stores, folder)


def _run(package: str, command: str, *folders: Path) -> list[Reading]:
    python = python_of(package, CACHE, create=True)
    script = Path(__file__).with_name(f"write_{package.replace('-', '_')}.py")
    # Of the parent's paths, none: this package's dependencies are not the other's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-W", "ignore", script, command, *folders],
        capture_output=True, text=True, timeout=240, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((folders[-1] / "readings.json").read_text())
    return [
        Reading(
            row["name"], row["path"], row["mip"], row["kind"], np.load(row["voxels"]), tuple(row["resolution_nm"]),
            tuple(row["start"]),
        )
        for row in rows
    ]  # fmt: skip
