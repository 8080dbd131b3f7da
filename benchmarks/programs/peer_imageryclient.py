"""The released imageryclient."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from imageryclient import ImageryClient, composite_overlay

from benchmarks.child import timed

MASKED = (512, 256, 2)


def cutout(source: str, kind: str, start: list[int], stop: list[int]) -> Any:
    """Read a box."""
    path = f"precomputed://{source}"
    if kind == "labels":
        client = ImageryClient(segmentation_source=path, imagery=False, resolution="segmentation")
        return client.segmentation_cutout([start, stop])
    return ImageryClient(image_source=path, segmentation=False, resolution="image").image_cutout([start, stop])


def png(source: str, kind: str, start: list[int], stop: list[int], out: str) -> None:
    """Write the slices of a region, which are RGB."""
    Path(out).mkdir()
    client = ImageryClient(image_source=f"precomputed://{source}", segmentation=False, resolution="image")
    client.save_imagery(f"{out}/p", [start, stop])


def _dynamic(source: str, moment: int, token: str) -> ImageryClient:
    return ImageryClient(
        segmentation_source=source, imagery=False, auth_token=token, resolution="segmentation",
        timestamp=datetime.fromtimestamp(moment, UTC),
    )  # fmt: skip


def objects(source: str, start: list[int], stop: list[int], block: list[int], moment: int, token: str, **_: Any) -> Any:
    """Return the root ids of the region, block by block."""
    client = _dynamic(source, moment, token)
    out = np.empty(np.subtract(stop, start), np.int64, order="F")
    for at in itertools.product(*(range(0, n, size) for n, size in zip(out.shape, block, strict=True))):
        corner = np.add(start, at)
        box = tuple(slice(a, a + n) for a, n in zip(at, block, strict=True))
        out[box] = client.segmentation_cutout([corner.tolist(), (corner + block).tolist()])
    return out


def _masks(source: str, start: list[int], stop: list[int], moment: int, token: str) -> dict[int, Any]:
    box = [start, np.minimum(np.add(start, MASKED), stop).tolist()]
    return dict(_dynamic(source, moment, token).split_segmentation_cutout(box))


def sizes(source: str, start: list[int], stop: list[int], block: list[int], moment: int, token: str) -> Any:
    """Return the root ids of a box with their numbers of voxels, from masks."""
    counted = {int(root): int(mask.sum()) for root, mask in _masks(source, start, stop, moment, token).items()}
    return np.array(sorted(counted.items()), np.uint64)


def masks(source: str, start: list[int], stop: list[int], block: list[int], moment: int, token: str) -> Any:
    """Return the masks of a box."""
    made = _masks(source, start, stop, moment, token)
    return np.array([np.count_nonzero(made[root]) for root in sorted(made)])


def files(source: str, start: list[int], stop: list[int], block: list[int], moment: int, token: str, out: str) -> None:
    """Write the masks of a box as pictures."""
    Path(out).mkdir()
    box = [start, np.minimum(np.add(start, MASKED), stop).tolist()]
    _dynamic(source, moment, token).save_segmentation_masks(f"{out}/p", box)


def overlay(source: str, page: str, style: dict[str, Any]) -> dict[str, Any]:
    """Draw the objects of a page."""
    with np.load(page) as file:
        labels, image = file["labels"], file["image"]
    return timed(lambda: composite_overlay(labels, imagery=image, **style))
