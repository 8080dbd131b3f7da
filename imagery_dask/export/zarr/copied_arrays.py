"""Whether chunks of a zarr source become chunks of an array as they are stored, instead of being encoded again.

The codec, its parameters, the grid of chunks, the axes and the data type have to agree. All of that is said by the
cutout itself, so that it is the same in a plan and where its source is gone.
"""

from __future__ import annotations

from imagery_dask.export.core.inputs import Volume
from imagery_dask.export.multiscale.level_layout import LevelLayout
from imagery_dask.export.zarr.compressors import Compressor
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.model.labels import LabelRule
from imagery_dask.sources.zarr.stored_chunks import RAW

__all__ = ["compressor_of_source", "is_copied"]

AS_STORED = (None, LabelRule())


def compressor_of_source(volume: Volume, layout: LevelLayout, options: ZarrOptions) -> Compressor | None:
    """Return the compressor of a volume's source, if chunks may be copied with it, and no codec is asked for."""
    if options.codec != "auto" or volume.source is None:
        return None
    compressor = Compressor.named(volume.source.cutout.mip.compressor)
    return compressor if compressor and is_copied(volume, layout, options, compressor) else None


def is_copied(volume: Volume, layout: LevelLayout, options: ZarrOptions, compressor: Compressor | None) -> bool:
    """Return True if chunks of a volume's source may be chunks of a level as they are."""
    if volume.source is None or volume.relabel or options.axes is not None:
        return False
    cutout = volume.source.cutout
    is_as_stored = cutout.target.resolution_nm == cutout.mip.grid.resolution_nm and not cutout.downsampled
    if not is_as_stored or cutout.labels not in AS_STORED or cutout.channels != 1:
        return False
    if cutout.stored_dtype != str(volume.stored_dtype) or cutout.mip.chunk_shape != layout.chunk:
        return False
    if any((cutout.target.start - cutout.mip.grid.start) % layout.chunk):
        return False
    return cutout.mip.compressor == (RAW if compressor is None else compressor.text)
