"""One mip of a precomputed volume, as its chunks: encoded by CloudVolume's codecs, written whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from cloudvolume import chunks as codecs
from numpy.typing import NDArray

from imagery_dask.export.files import Compression, Files
from imagery_dask.grid import XYZ
from imagery_dask.plan import Region
from imagery_dask.sources import channels_last

__all__ = ["SEGMENTATION_BLOCK", "PrecomputedLevel"]

SEGMENTATION_BLOCK = (8, 8, 8)
PUTS_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class PrecomputedLevel:
    """One mip of a volume.

    Parameters
    ----------
    files : Files
        Folder of the volume.
    key : str
        Folder of the mip in it.
    start, stop : tuple of 3 int
        Absolute voxels of the mip.
    chunk : tuple of 3 int
        Storage chunk.
    encoding, dtype, channels
        Of the chunks.
    compress : {"gzip", "br"} or None
        Further compression.
    quality : int or None
        Of pictures.
    """

    files: Files
    key: str
    start: XYZ
    stop: XYZ
    chunk: XYZ
    encoding: str
    dtype: str
    channels: int
    compress: Compression | None
    quality: int | None

    def write(self, region: Region, voxels: NDArray[Any]) -> None:
        """Write voxels x, y, z(, c) to a region of whole chunks."""
        if voxels.dtype.kind == "i" and self.dtype.startswith("u") and int(voxels.min(initial=0)) < 0:
            raise OverflowError(
                f"Id {int(voxels.min())} is negative: a precomputed volume of {self.dtype} cannot hold it."
            )
        voxels = voxels.view(self.dtype) if voxels.dtype != self.dtype else voxels
        voxels = voxels.reshape((*voxels.shape[:3], -1), order="F")
        parts = [(self._name(part), voxels[_within(region, part)]) for part in self._chunks(region)]
        if self.files.folder is not None:
            for name, part in parts:
                self._put(name, part)
            return
        with ThreadPoolExecutor(PUTS_IN_FLIGHT) as threads:
            list(threads.map(self._put, *zip(*parts, strict=True)))

    def read(self, region: Region) -> NDArray[Any]:
        """Voxels of a region as x, y, z(, c)."""
        out: NDArray[Any] | None = None
        shape = tuple(part.stop - part.start for part in region)
        for part in self._chunks(region):
            voxels = self._get(part)
            if out is None:
                out = np.empty((*shape, voxels.shape[3]), self.dtype, order="F")
            inside = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(part, region, strict=True))
            common = (inside[0], inside[1], inside[2])
            out[_within(region, common)] = voxels[_within(part, common)]
        assert out is not None  # no region is empty
        return out if out.shape[3] > 1 else out[..., 0]

    def _put(self, name: str, voxels: NDArray[Any]) -> None:
        params = {} if self.quality is None else {"level": self.quality}
        content = codecs.encode(np.asfortranarray(voxels), self.encoding, SEGMENTATION_BLOCK, params)
        if self.files.folder is not None:
            # Without its parents: a task that outlives its export would make again what that has removed.
            (self.files.folder / self.key).mkdir(exist_ok=True)
        self.files.put(name, content, "application/octet-stream", self.compress)

    def _get(self, part: Region) -> NDArray[Any]:
        content = self.files.get(self._name(part))
        if content is None:
            raise FileNotFoundError(f"{self.files.url}/{self._name(part)} was written, and is not there any more.")
        shape = tuple(axis.stop - axis.start for axis in part)
        decoded = codecs.decode(
            content, self.encoding, (*shape, self.channels), np.dtype(self.dtype), SEGMENTATION_BLOCK
        )
        return channels_last(np.asarray(decoded), (*shape, self.channels), self.encoding)

    def _chunks(self, region: Region) -> Iterator[Region]:
        """Chunks that a region crosses, as regions of the level; at its end they are cut."""
        spans = [
            [
                slice(first, min(first + size, stop - start))
                for first in range(part.start // size * size, part.stop, size)
            ]
            for part, size, start, stop in zip(region, self.chunk, self.start, self.stop, strict=True)
        ]
        for z, y, x in itertools.product(spans[2], spans[1], spans[0]):
            yield (x, y, z)

    def _name(self, part: Region) -> str:
        spans = (f"{axis.start + start}-{axis.stop + start}" for axis, start in zip(part, self.start, strict=True))
        return f"{self.key}/{'_'.join(spans)}"


def _within(region: Region, part: Region) -> tuple[slice, ...]:
    return tuple(slice(p.start - r.start, p.stop - r.start) for p, r in zip(part, region, strict=True))
