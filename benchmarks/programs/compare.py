"""What programs wrote, compared level by level with what the last of them, the floor where there is one, wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def outputs(outs: dict[str, str], form: str) -> dict[str, Any]:
    """Return the share of voxels that differ, and by how much at most, for each level of each program."""
    read = {"zarr": _zarr, "precomputed": _precomputed, "png": _png}[form]
    *_, last = outs
    unlike = {}
    for name, out in outs.items():
        pairs = zip(read(Path(out)), read(Path(outs[last])), strict=True)
        unlike[name] = [_difference(*pair) for pair in pairs]
        if not unlike[name]:
            raise ValueError(f"{name} wrote nothing")
    return {"figures": unlike}


def _difference(first: Any, second: Any) -> tuple[float, int]:
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {first.shape}, {second.shape}")
    unlike = first != second
    if not unlike.any():
        return 0.0, 0
    a, b = first[unlike], second[unlike]
    return float(unlike.mean()), int((np.maximum(a, b) - np.minimum(a, b)).max())


def _zarr(out: Path) -> Iterator[Any]:
    import zarr

    found = [file.parent for file in out.rglob("zarr.json") if json.loads(file.read_text())["node_type"] == "array"]
    for folder in sorted(found):
        yield np.asarray(zarr.open_array(folder, mode="r")[:])


def _precomputed(out: Path) -> Iterator[Any]:
    from cloudvolume import CloudVolume

    for mip in range(len(json.loads((out / "info").read_text())["scales"])):
        yield np.asarray(CloudVolume(f"file://{out}", mip=mip, progress=False)[:])


def _png(out: Path) -> Iterator[Any]:
    """Yield the first channel of each picture."""
    from PIL import Image

    for file in sorted(out.rglob("*.png")):
        with Image.open(file) as picture:
            yield np.asarray(picture.getchannel(0))
