"""Seconds of overlays with thousands of objects, and of composite_overlay compared with imageryclient.

python benchmarks/bench_overlays.py
"""

from __future__ import annotations

from functools import partial

import imageryclient
import numpy as np
from common import arguments, in_turn, ratio
from numpy.typing import NDArray
from scipy.spatial import cKDTree

import imagery_dask
from imagery_dask.render.overlays import overlay_page

FIRST_ID = 864691135000000000
STYLES = {
    "filled": {},
    "outlines within": {"outline": True, "side": "in", "merge_outline": False},
    "outlines around": {"outline": True, "merge_outline": False},
    "outlines around, merged": {"outline": True},
}


def cells(size: int, count: int, gap: float = 0) -> NDArray[np.uint64]:
    """Return a page of ids: cells around random points, a fifth of them of large objects, with gaps of 0."""
    rng = np.random.default_rng(count)
    ids = FIRST_ID + rng.permutation(count).astype(np.uint64)
    ids[: count // 5] = ids[rng.integers(0, max(1, count // 50), count // 5)]
    points = np.stack(np.mgrid[: size // 4, : size // 4], axis=-1).reshape(-1, 2) * 4 + 2
    distance, nearest = cKDTree(rng.random((count, 2)) * size).query(points, k=2)
    page = np.where(distance[:, 1] - distance[:, 0] < gap, np.uint64(0), ids[nearest[:, 0]])
    return page.reshape(size // 4, size // 4).repeat(4, axis=0).repeat(4, axis=1)


def grey(size: int) -> NDArray[np.uint8]:
    """Return a page of imagery."""
    return np.random.default_rng(1).integers(0, 256, (size, size), dtype=np.uint8)


if __name__ == "__main__":
    options = arguments(__doc__)
    image = grey(4096)
    print("\n### overlay_page, 4096 x 4096 over imagery, width 10: seconds\n")
    print("| cells | " + " | ".join(STYLES) + " |\n|---|" + "---|" * len(STYLES))
    for count, gap in ((1000, 0), (5000, 0), (5000, 8), (50000, 0)):
        labels = cells(4096, count, gap)
        runs = {name: partial(overlay_page, labels, image, **style) for name, style in STYLES.items()}
        seconds = in_turn(options.repeats, **runs)
        label = f"{count:,}{' with gaps' if gap else ''}"
        print(f"| {label} | " + " | ".join(f"{min(seconds[name]):.2f}" for name in STYLES) + " |", flush=True)

    print("\n### composite_overlay of an array of 100 ids, 1024 x 1024 over imagery\n")
    print("| style | ours, s | times the release |\n|---|---|---|")
    labels, image = cells(1024, 100, 8), grey(1024)
    for name, style in STYLES.items():
        seconds = in_turn(
            options.repeats,
            ours=partial(imagery_dask.composite_overlay, labels, imagery=image, **style),
            released=partial(imageryclient.composite_overlay, labels, imagery=image, **style),
        )
        times = ratio(seconds["released"], seconds["ours"])
        print(f"| {name} | {min(seconds['ours']):.3f} | {times:.0f} |", flush=True)
