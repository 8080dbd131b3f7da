"""Options of copies of versions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from imagery_dask.export.core.writer_arguments import option
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.geometry.pyramid import Levels
from imagery_dask.sources import open_volume

if TYPE_CHECKING:
    from imagery_dask.versions.opened_versions import VersionStore

__all__ = ["CopyOptions"]


@dataclass(frozen=True, kw_only=True)
class CopyOptions(ZarrOptions):
    """Options of a copy: those of OME-Zarr, with a pyramid unless the caller says otherwise."""

    levels: Levels = option(
        "auto", "Levels of the pyramid: a number, or auto, until no axis is longer than 512 voxels.", syntax="levels",
        choices=("auto",),
    )  # fmt: skip

    def like(self, store: VersionStore) -> ZarrOptions:
        """Return these options; without chunks, with the chunks and shards of a store."""
        layer = store.layer()
        chunk, shard = layer.mips[0].chunk_shape, open_volume(layer.path).file_shape(0)
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        if self.chunks is None:
            given["chunks"] = tuple(chunk)
            if isinstance(self.shards, str) and shard != chunk and self.zarr_format == 3:
                given["shards"] = tuple(shard)
        return ZarrOptions(**given)
