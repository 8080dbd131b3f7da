"""What a package reads from its own store, kept for a process that has another: voxels as .npy, the rest as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class OwnReadings:
    """Readings that are kept in a folder.

    Parameters
    ----------
    folder : pathlib.Path
        Takes ``readings.json`` and the voxels.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: list[dict[str, Any]] = []

    def keep(
        self, name: str, path: object, voxels: Any, axes: str, *, mip: int = 0,
        resolution_nm: Sequence[float] = (1, 1, 1), start: Sequence[int] = (0, 0, 0), kind: str = "",
    ) -> None:  # fmt: skip
        """Keep what was read of a level.

        Parameters
        ----------
        name : str
            What it is, in a word.
        path : str
            The path of the volume, for a user of imagery_dask.
        voxels : numpy.ndarray
            Its voxels.
        axes : str
            The axes of `voxels`, a letter each.
        mip : int
            The level.
        resolution_nm, start : sequence of 3 numbers
            Size of a voxel in nm, and the first voxel that was read (x, y, z).
        kind : str
            "image" or "segmentation", where the package says so.
        """
        voxels = np.asarray(voxels)
        for axis in "xyzc":
            if axis not in axes:
                voxels, axes = voxels[..., np.newaxis], axes + axis
        file = self.folder / f"{len(self._rows)}.npy"
        np.save(file, voxels.transpose([axes.index(axis) for axis in "xyzc"]))
        row = {"name": name, "path": str(path), "mip": mip, "kind": kind, "voxels": str(file)}
        row |= {"resolution_nm": [float(n) for n in resolution_nm], "start": [int(n) for n in start]}
        self._rows.append(row)
        (self.folder / "readings.json").write_text(json.dumps(self._rows))


def run(write: Callable[[Path, OwnReadings], None], read: Callable[[Path, OwnReadings], None]) -> None:
    """Do what the command line says."""
    command, *stores, folder = sys.argv[1:]
    readings = OwnReadings(Path(folder))
    if command == "write":
        write(Path(folder), readings)
    for store in stores:
        read(Path(store), readings)


def ids(shape: Sequence[int], dtype: Any, seed: int = 0) -> Any:
    """Return ids in runs of a few voxels, of all bits that a data type has; some voxels are 0."""
    random, top = np.random.default_rng(seed), np.iinfo(dtype).max
    names = random.integers(top // 2, top, 97, dtype=dtype, endpoint=True)
    names[0] = 0
    picked = names[random.integers(0, len(names), [-(-size // 3) for size in shape])]
    for axis in range(len(shape)):
        picked = np.repeat(picked, 3, axis)
    return np.ascontiguousarray(picked[tuple(map(slice, shape))])
