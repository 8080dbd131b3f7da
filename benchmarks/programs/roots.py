"""Root ids of a dynamic segmentation, looked up by this package; and the kernels that replace supervoxels by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import timed
from imagery_dask import ImageryClient, kernels

XYZ = list[int]
# Two slices of a part of the region: the released client holds 8 bytes for each voxel of each mask.
MASKED = (512, 256, 2)


def _client(source: str, token: str) -> ImageryClient:
    return ImageryClient(segmentation_source=source, imagery=False, auth_token=token)


def objects(source: str, start: XYZ, stop: XYZ, block: XYZ, moment: int, token: str, threads: int = 8) -> Any:
    """Return the root ids of the region."""
    array = _client(source, token).segmentation_cutout([start, stop], timestamp=moment)
    return array.compute(scheduler="threads", num_workers=threads)


def listed(source: str, start: XYZ, stop: XYZ, block: XYZ, moment: int, token: str, roots: int) -> Any:
    """Return where some of the objects are: every fourth, 1,000 at most."""
    client = _client(source, token)
    first = client.segmentation_cutout([start, np.add(start, block)], timestamp=moment).compute()
    chosen = np.unique(first[first != 0])[::4][:roots].tolist()
    return client.segmentation_cutout([start, stop], root_ids=chosen, timestamp=moment).compute(scheduler="threads")


def _masked(start: XYZ, stop: XYZ) -> list[Any]:
    return [start, np.minimum(np.add(start, MASKED), stop).tolist()]


def sizes(source: str, start: XYZ, stop: XYZ, block: XYZ, moment: int, token: str) -> Any:
    """Return the root ids of a box with their numbers of voxels."""
    counted = _client(source, token).unique_roots(_masked(start, stop), timestamp=moment)
    return np.array(sorted(counted.items()), np.uint64)


def masks(source: str, start: XYZ, stop: XYZ, block: XYZ, moment: int, token: str) -> Any:
    """Return the masks of a box as an array in the order of their ids."""
    made = _client(source, token).split_segmentation_cutout(_masked(start, stop), timestamp=moment).compute()
    return np.array([np.count_nonzero(made[root]) for root in sorted(made)])


def files(source: str, start: XYZ, stop: XYZ, block: XYZ, moment: int, token: str, out: str) -> None:
    """Write the masks of a box as pictures."""
    Path(out).mkdir()
    _client(source, token).save_segmentation_masks(f"{out}/p", _masked(start, stop), timestamp=moment)


def remap(source: str, count: int, side: int) -> dict[str, Any]:
    """Find the distinct ids of a block, and replace them by others."""
    rng = np.random.default_rng(count)
    cells = rng.permutation(count).astype(np.uint64) * np.uint64(3) + np.uint64(2**60)
    block = np.asfortranarray(np.kron(rng.choice(cells, (side // 4, side // 4, 16)), np.ones((4, 4, 4), np.uint64)))

    def replace() -> None:
        ids = kernels.unique_ids(block)
        kernels.remap(block, ids, ids // np.uint64(8))

    times = timed(replace)
    return times | {"figures": {"MB/s of CPU time": block.nbytes / 1e6 / times["cpu_s"]}}
