"""Whether the storage chunks of a source become chunks of a volume as they are stored, without decoding them.

A picture that is decoded and encoded again loses detail a second time, and both cost far more than copying.
"""

from __future__ import annotations

from dataclasses import dataclass

from imagery_dask.export.core.inputs import Volume
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources import open_volume
from imagery_dask.sources.precomputed.codecs import SEGMENTATION_BLOCK
from imagery_dask.sources.precomputed.precomputed_volume import PrecomputedVolume
from imagery_dask.sources.volumes.addresses import is_zarr

__all__ = ["ChunkForm", "form_of_source", "why_not_copied"]


@dataclass(frozen=True)
class ChunkForm:
    """How chunks are stored.

    Parameters
    ----------
    encoding, dtype, channels
        Encoding, data type and number of channels.
    chunk : tuple of 3 int
        Chunk shape.
    """

    encoding: str
    dtype: str
    channels: int
    chunk: Vec3[int]


def form_of_source(volume: Volume) -> ChunkForm | None:
    """Return how the chunks of a volume's source are stored; None if it is not a cutout of a precomputed volume."""
    if volume.source is None or is_zarr(volume.source.cutout.path):
        return None
    cutout = volume.source.cutout
    return ChunkForm(cutout.mip.encoding, cutout.stored_dtype, cutout.channels, cutout.mip.chunk_shape)


def why_not_copied(volume: Volume, form: ChunkForm) -> str:
    """Return why no chunk of a volume can be copied into chunks of a form; "" if they can."""
    own = form_of_source(volume)
    if own is None or volume.source is None:
        return "it is not a cutout of a precomputed volume"
    cutout = volume.source.cutout
    if cutout.target.resolution_nm != cutout.mip.grid.resolution_nm or cutout.downsampled:
        return "its voxels are resampled"
    if (cutout.labels is not None and not cutout.labels.keeps_ids) or volume.relabel:
        return "its ids are looked up, selected or numbered"
    for name in ("encoding", "dtype", "channels", "chunk"):
        if getattr(own, name) != getattr(form, name):
            return f"its {name} is {getattr(own, name)} in the source and {getattr(form, name)} in the copy"
    moved = (cutout.target.start - cutout.mip.grid.start) % form.chunk
    if any(moved):
        return f"its first voxel is {tuple(moved)} voxels behind the beginning of a chunk"
    if form.encoding == "compressed_segmentation":
        source = open_volume(cutout.path)
        assert isinstance(source, PrecomputedVolume)
        block = source.info["scales"][cutout.mip.level].get("compressed_segmentation_block_size")
        if tuple(block or SEGMENTATION_BLOCK) != SEGMENTATION_BLOCK:
            return f"its blocks of compressed_segmentation have {tuple(block)} voxels, not {SEGMENTATION_BLOCK}"
    return ""
