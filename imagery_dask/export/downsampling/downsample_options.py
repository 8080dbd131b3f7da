"""Options of `imagery_dask.downsample`: levels, and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from imagery_dask.export.core.writer_arguments import option
from imagery_dask.export.precomputed.precomputed_options import IMAGE_ENCODINGS, LABEL_ENCODINGS
from imagery_dask.export.zarr.compressors import Compressor
from imagery_dask.geometry.pyramid import checked_levels
from imagery_dask.model.labels import Kind
from imagery_dask.validate import choice, whole_triple

__all__ = ["DownsampleOptions"]

OF_ZARR = ("shards", "codec")
OF_PRECOMPUTED = ("encoding", "compress", "quality", "sharding")


@dataclass(frozen=True, kw_only=True)
class DownsampleOptions:
    """Options of `imagery_dask.downsample` that say what is written.

    Raises
    ------
    ValueError, TypeError
        An option is not valid, whatever the volume.
    """

    levels: int | Literal["auto"] = option(
        "auto",
        "Levels of the volume in the end, the existing ones included; auto: down to 512 voxels.",
        syntax="levels",
        choices=("auto",),
    )
    kind: Kind | None = option(
        None,
        "What voxels are: intensities, which levels average, or ids.  [default: as the volume says; ids, if they are "
        "integers of 32 bits or more]",
        choices=get_args(Kind),
    )
    chunks: Sequence[int] | None = option(
        None, "Chunks of the new levels.  [default: those of the coarsest level]", syntax="shape"
    )
    shards: Sequence[int] | Literal["auto"] | None = option(
        "auto",
        "Of zarr v3: a shape in voxels, auto (32 MiB, where the coarsest level has shards), none.",
        syntax="shape",
        choices=("auto", "none"),
    )
    codec: str | None = option(
        None,
        "Of zarr: compression of chunks, with a level if it is not 1 (zstd:3).  [default: that of the coarsest level]",
        syntax="codec",
    )
    encoding: str | None = option(
        None,
        "Of precomputed volumes: encoding of chunks.  [default: that of the coarsest level]",
        choices=tuple(dict.fromkeys((*IMAGE_ENCODINGS, *LABEL_ENCODINGS))),
    )
    compress: Literal["auto", "gzip", "br"] | None = option(
        "auto", "Of precomputed volumes: further compression of chunks; auto is gzip in buckets, none on a disk."
    )
    quality: int | None = option(None, "Of jpeg and jxl; compression of png.", minimum=0, maximum=100)
    sharding: Mapping[str, Any] | Literal["auto"] | None = option(
        "auto",
        "Of precomputed volumes: join chunks of new levels to shards, as of imagery-dask export precomputed.",
        syntax="sharding",
    )

    def __post_init__(self) -> None:
        levels = checked_levels(self.levels)
        if levels == "source":
            raise ValueError("levels must be 'auto' or a whole number: new levels are made from existing ones.")
        object.__setattr__(self, "levels", levels)
        choice("kind", self.kind, (*get_args(Kind), None))
        choice("compress", self.compress, ("auto", "gzip", "br", None))
        if self.chunks is not None:
            object.__setattr__(self, "chunks", whole_triple("chunks", self.chunks))
        if self.shards is not None and not isinstance(self.shards, str):
            object.__setattr__(self, "shards", whole_triple("shards", self.shards))
        elif self.shards is not None:
            choice("shards", self.shards, ("auto",))
        if self.codec not in (None, "auto"):
            Compressor.parse(str(self.codec))

    def refuse_others(self, is_zarr: bool) -> None:
        """Raise ValueError for an option of the other format."""
        for name in OF_PRECOMPUTED if is_zarr else OF_ZARR:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                here, there = ("OME-Zarr", "precomputed volumes") if is_zarr else ("precomputed", "OME-Zarr")
                raise ValueError(f"{name}={value!r} is an option of {there}, and the volume is {here}. Leave it out.")
