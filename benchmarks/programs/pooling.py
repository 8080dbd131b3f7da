"""Downsampling of blocks in memory, without exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tinybrain

from imagery_dask import kernels
from imagery_dask.testing.volume import synthesize

TIMES = 20
XYZ = tuple[int, int, int]


def ours(source: str, dtype: str, step: list[int], labels: bool, order: Any, side: int) -> dict[str, Any]:
    """Downsample by this package."""
    x, y, z = step
    block = _block(dtype, labels, order, side)
    return _timed(lambda: kernels.downsample(block, (x, y, z), labels))


def alone(source: str, dtype: str, step: list[int], labels: bool, order: Any, side: int) -> dict[str, Any]:
    """Downsample by tinybrain alone, which has it in Fortran order."""
    pool = tinybrain.downsample_segmentation if labels else tinybrain.downsample_with_averaging
    block = _block(dtype, labels, order, side)
    return _timed(lambda: pool(np.asfortranarray(block), tuple(step), num_mips=1)[0])


def _block(dtype: str, labels: bool, order: Any, side: int) -> Any:
    voxels = synthesize((side, side, 64))[labels]
    return np.array(voxels, dtype, order=order)


def _timed(run: Callable[[], Any]) -> dict[str, Any]:
    """Return the result, and the median time of a call."""
    seconds = []
    for _ in range(TIMES):
        started = time.thread_time()
        result = run()
        seconds.append(time.thread_time() - started)
    median = sorted(seconds)[TIMES // 2]
    return {"value": result, "wall_s": median, "cpu_s": median, "figures": {"ms": 1e3 * median}}
