"""How many chunks of a level are storage chunks of its source, which are copied as they are."""

from __future__ import annotations

from imagery_dask.export.core.inputs import Volume
from imagery_dask.geometry.vec import Vec3

__all__ = ["chunks_in_common", "share_copied"]


def chunks_in_common(volume: Volume, chunk: Vec3[int]) -> tuple[int, int]:
    """Return how many chunks of a level are chunks of its source, and how many it has; both have one shape of chunks.

    The first voxel of the cutout begins a chunk of the source.
    """
    assert volume.source is not None
    own, stored = volume.source.cutout.target, volume.source.cutout.mip.grid
    common, total = 1, 1
    for start, stop, first, end, size in zip(own.start, own.stop, stored.start, stored.stop, chunk, strict=True):
        edges = [(at, min(at + size, stop)) for at in range(start, stop, size)]
        common *= sum(at >= first and to == min(at + size, end) for at, to in edges)
        total *= len(edges)
    return common, total


def share_copied(name: str, common: int, total: int) -> str:
    """Return the note of a plan and a report on copied chunks."""
    return (
        f"{name}: {common / total:.0%} of the chunks that are read ({common:,} of {total:,}) are copied as they are "
        "stored, others are encoded again."
    )
