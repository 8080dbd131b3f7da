"""Options that all writers of volumes with levels have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.export.core.writer_arguments import option
from imagery_dask.geometry.grid import XYZ
from imagery_dask.geometry.pyramid import Levels, checked_levels
from imagery_dask.validate import triple, whole_triple

__all__ = ["VolumeOptions"]


@dataclass(frozen=True, kw_only=True)
class VolumeOptions:
    """Chunks, levels and position of the volumes that are written; see `imagery_dask.to_zarr`.

    Raises
    ------
    ValueError, TypeError
        An option is not valid, whatever the data.
    """

    chunks: Sequence[int] | None = option(
        None, "Chunks of the output.  [default: 128,128,128; 64,64,64 for 32 and 64 bit voxels]", syntax="shape"
    )
    levels: Levels = option(
        1, "Levels of the pyramid; auto: down to 512 voxels; source: the mips of the source.", syntax="levels"
    )
    resolution_nm: Sequence[float] | None = None
    translation_nm: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.chunks is not None:
            self._set("chunks", whole_triple("chunks", self.chunks))
        self._set("levels", checked_levels(self.levels))
        if self.resolution_nm is not None:
            triple("resolution_nm", self.resolution_nm, positive=True)
            self._set("resolution_nm", tuple(np.asarray(self.resolution_nm, dtype=object).ravel()))
        if self.translation_nm is not None:
            triple("translation_nm", self.translation_nm)
            self._set("translation_nm", tuple(np.asarray(self.translation_nm, dtype=object).ravel()))

    @classmethod
    def from_json(cls, options: JsonObject) -> Self:
        """Return the options that a plan's JSON holds."""
        return cls(**options)

    @property
    def chunk(self) -> XYZ | None:
        """Chunk shape x, y, z, or None for the default of the data type."""
        return cast(XYZ | None, self.chunks)

    def _set(self, name: str, value: object) -> None:
        """Set a field to its normal form, while the value is made."""
        object.__setattr__(self, name, value)
