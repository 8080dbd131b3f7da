"""One array of a zarr store, as a level of a pyramid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from imagery_dask.export.zarr.block_array import BlockArray, open_array
from imagery_dask.geometry.block_plan import Region
from imagery_dask.storage.digests import digest_of

__all__ = ["ZarrLevel"]


@dataclass(frozen=True, slots=True)
class ZarrLevel:
    """One array of a store.

    Parameters
    ----------
    store, path : str
        Where the array is.
    zarr_format : int
        2 or 3.
    run : str
        Names the run: a store that is overwritten is another store, although its path is the same.
    """

    store: str
    path: str
    zarr_format: Literal[2, 3]
    run: str

    def write(self, region: Region, voxels: NDArray[Any]) -> bytes:
        """Write voxels x, y, z(, c) to a region of whole chunks; their hash."""
        array = self._array()
        array.write_block(self._selection(region, array.shape), voxels.T)
        return digest_of(voxels)

    def digest_of(self, region: Region, voxels: NDArray[Any]) -> bytes:
        """Hash of voxels."""
        del region
        return digest_of(voxels)

    def digest(self, region: Region) -> bytes:
        """Hash of the voxels that are stored in a region."""
        return digest_of(self.read(region))

    def read(self, region: Region) -> NDArray[Any]:
        """Voxels of a region as x, y, z(, c)."""
        array = self._array()
        return array.read(self._selection(region, array.shape)).T

    def _array(self) -> BlockArray:
        return open_array(self.store, self.path, run=self.run, zarr_format=self.zarr_format)

    @staticmethod
    def _selection(region: Region, shape: tuple[int, ...]) -> tuple[slice, ...]:
        return (*(slice(0, length) for length in shape[:-3]), *reversed(region))
