"""Options of OME-Zarr stores: chunks, shards, levels, codec, version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from imagery_dask.export.core.writer_arguments import option
from imagery_dask.export.multiscale.level_layout import VolumeOptions
from imagery_dask.export.zarr.compressors import Compressor
from imagery_dask.geometry.grid import XYZ
from imagery_dask.serialization import NEWER
from imagery_dask.validate import choice, whole_triple

__all__ = ["Axes", "OmeVersion", "ZarrOptions"]

OmeVersion = Literal["0.5", "0.4"]
# In the order of the specification: time, channels, space. Chunks in x, y, z are slower to encode.
Axes = Literal["zyx", "czyx", "tzyx", "tczyx", "xyz", "cxyz", "txyz", "tcxyz"]


@dataclass(frozen=True, kw_only=True)
class ZarrOptions(VolumeOptions):
    """Options of `imagery_dask.to_zarr` that say what is written.

    Raises
    ------
    ValueError, TypeError
        An option is not valid, whatever the data.
    """

    shards: Sequence[int] | Literal["auto"] | None = option(
        "auto",
        "Chunks that make one file: a shape in voxels, auto (32 MiB where there are many chunks), none.",
        syntax="shape",
        choices=("auto", "none"),
    )
    codec: str = option(
        "auto",
        "Compression of chunks, with a level if it is not 1 (zstd:3); auto is that of a zarr source whose chunks are "
        "copied, else zstd for ids and masks, blosc-zstd for imagery.",
        syntax="codec",
    )
    ome_version: OmeVersion = option("0.5", "0.5 is zarr v3; 0.4, for older readers, zarr v2.")
    axes: Axes | None = option(
        None, "Axes of the arrays, of which t and c may have one position.  [default: zyx; czyx with channels]", NEWER
    )

    def __post_init__(self) -> None:
        VolumeOptions.__post_init__(self)
        if self.codec != "auto":
            Compressor.parse(self.codec)
        choice("ome_version", self.ome_version, get_args(OmeVersion))
        choice("axes", self.axes, (*get_args(Axes), None))
        if self.shards is None or (isinstance(self.shards, str) and self.shards == "auto"):
            return
        if self.zarr_format == 2:
            raise ValueError(
                "OME-Zarr 0.4 (zarr v2) has no shards; pass shards=None (--shards none), or ome_version='0.5'."
            )
        self._set("shards", whole_triple("shards", self.shards))

    @property
    def shard(self) -> XYZ | Literal["auto"] | None:
        """Shard shape x, y, z, "auto", or None where every chunk is an object; zarr v2 has no shards."""
        return None if self.zarr_format == 2 else cast(XYZ | Literal["auto"] | None, self.shards)

    def axes_of(self, channels: bool) -> str:
        """Return the axes of the arrays of a volume, with or without channels.

        Raises
        ------
        ValueError
            The volume has channels, and `axes` has none.
        """
        axes = self.axes or ("czyx" if channels else "zyx")
        if channels and "c" not in axes:
            raise ValueError(
                f"axes={axes!r} has no c, and there are several channels. Choose czyx, tczyx, cxyz or tcxyz."
            )
        return axes

    def compressor(self, labels: bool) -> Compressor | None:
        """Return the codec of ids (and masks), or of imagery, whose chunks are not copied; None for none.

        blosc's byte shuffle makes ids three to four times larger: equal ids of 8 bytes become eight runs of bytes.
        """
        return Compressor.parse(self.codec if self.codec != "auto" else "zstd" if labels else "blosc-zstd")

    @property
    def zarr_format(self) -> Literal[2, 3]:
        """Zarr format: 2 for OME-Zarr 0.4, 3 for 0.5."""
        return 2 if self.ome_version == "0.4" else 3
