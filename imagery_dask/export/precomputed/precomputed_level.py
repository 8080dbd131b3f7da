"""Read and write the chunks of one mip of a precomputed volume, with CloudVolume's codecs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import compressed_segmentation
import numpy as np

from imagery_dask.annotations import Array
from imagery_dask.geometry.grid import (
    XYZ,
    Region,
    bounds_key,
    parts_of,
    region_between,
    region_within,
    start_of,
    stop_of,
    tiles_of,
)
from imagery_dask.geometry.vec import Vec3
from imagery_dask.kernels import digest_of, digest_of_bytes, join_digests
from imagery_dask.sources.precomputed.codecs import SEGMENTATION_BLOCK, decode
from imagery_dask.sources.volumes.encoded_block import Block, EncodedBlock, voxels_of
from imagery_dask.storage.atomic_files import Compression, Files, Put

__all__ = ["PrecomputedLevel"]

PUTS_IN_FLIGHT = 8
# CloudVolume's default.
PNG_LEVEL = 9


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
        First and last (exclusive) voxel of the mip.
    chunk : tuple of 3 int
        Chunk shape.
    encoding, dtype, channels
        Encoding, data type and number of channels of the chunks.
    compress : {"gzip", "br"} or None
        Further compression of chunks.
    quality : int or None
        Quality of pictures.
    copied : bool
        Whether chunks of the source are written as they are stored there. Hashes are of files then, as of pictures.
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
    copied: bool = field(default=False, kw_only=True)

    def write(self, region: Region, voxels: Array) -> bytes:
        """Write voxels x, y, z(, c) to a region of whole chunks; return their hash, or that of the files."""
        return self._write(region, [(region, voxels)])[0]

    def write_parts(self, region: Region, parts: Iterable[tuple[Region, Block]]) -> bytes:
        """Write a region, given in parts of whole chunks, and return the hash of their hashes."""
        return join_digests(self._write(region, parts))

    def _write(self, region: Region, parts: Iterable[tuple[Region, Block]]) -> list[bytes]:
        """Write a region, given in parts, and return the hash of each of them."""
        del region
        if self.files.folder is not None:
            self._make_folder()
            with self.files.together() as put:
                return [
                    self._digest(voxels, [self._put(put, *chunk) for chunk in self._cut(part, voxels)])
                    for part, voxels in parts
                ]
        with ThreadPoolExecutor(PUTS_IN_FLIGHT) as threads:
            sent = [
                (voxels, [threads.submit(self._put, self.files.put, *chunk) for chunk in self._cut(part, voxels)])
                for part, voxels in parts
            ]
            return [self._digest(voxels, [chunk.result() for chunk in chunks]) for voxels, chunks in sent]

    def digest_of_parts(self, region: Region, parts: Iterable[tuple[Region, Block]]) -> bytes:
        """Return the hash that `write_parts` returns, without writing."""
        del region
        return join_digests([self.digest_of(part, block) for part, block in parts])

    def digest_of(self, region: Region, voxels: Block) -> bytes:
        """Return the hash that `write` returns, without writing."""
        chunks = self._cut(region, voxels) if self.hashes_files else []
        return self._digest(voxels, [digest_of_bytes(self._encoded(part)) for _, part in chunks])

    def digest(self, region: Region, part: Vec3[int] | None = None) -> bytes:
        """Return the hash of the chunks that are stored in a region, comparable to that of `write` or `write_parts`."""
        if part is not None:
            return join_digests([self.digest(one) for one in parts_of(region, part)])
        if self.hashes_files:
            return join_digests([digest_of_bytes(content) for _, content in self._contents(region)])
        return digest_of(self.read(region))

    @property
    def lossy(self) -> bool:
        """Return True if voxels that are read back may differ from those written."""
        return self.encoding == "jpeg" or (self.encoding == "jxl" and self.quality != 100)

    @property
    def hashes_files(self) -> bool:
        """Return True if hashes are of encoded chunks, not of voxels."""
        return self.lossy or self.copied

    def read(self, region: Region) -> Array:
        """Return the voxels of a region as x, y, z(, c)."""
        start, stop = start_of(region), stop_of(region)
        out: Array = np.empty((*(stop - start), self.channels), self.dtype, order="F")
        for part, content in self._contents(region):
            voxels = self._decoded(part, content)
            common = region_between(start.maximum(start_of(part)), stop.minimum(stop_of(part)))
            out[region_within(common, region)] = voxels[region_within(common, part)]
        return out if out.shape[3] > 1 else out[..., 0]

    def _make_folder(self) -> None:
        """Make the folder of the mip on a disk."""
        if self.files.folder is not None:
            # Without parents, so that a task that outlives its export does not restore a folder that was removed.
            (self.files.folder / self.key).mkdir(exist_ok=True)

    def _cut(self, region: Region, voxels: Block) -> list[tuple[Region, Block]]:
        """Return the chunks of a region, and their voxels."""
        if isinstance(voxels, EncodedBlock):
            if list(self._chunks(region)) == [region]:
                return [(region, voxels)]
            voxels = voxels_of(voxels)
        if voxels.dtype.kind == "i" and self.dtype.startswith("u") and int(voxels.min(initial=0)) < 0:
            raise OverflowError(
                f"Id {int(voxels.min())} is negative: a precomputed volume of {self.dtype} cannot hold it. Pass "
                "kind='image' if these are intensities."
            )
        voxels = voxels.view(self.dtype) if voxels.dtype != self.dtype else voxels
        voxels = voxels.reshape((*voxels.shape[:3], -1), order="F")
        chunks = list(self._chunks(region))
        if any(c.start < r.start or c.stop > r.stop for part in chunks for c, r in zip(part, region, strict=True)):
            raise ValueError(f"{region} does not cover whole chunks of {self.chunk}.")
        return [(part, voxels[region_within(part, region)]) for part in chunks]

    def _encoded(self, voxels: Block) -> bytes:
        if isinstance(voxels, EncodedBlock):
            return voxels.content
        if self.encoding == "raw":
            return voxels.tobytes("F")
        try:
            if self.encoding == "compressed_segmentation":
                return _segmentation(voxels[..., 0])
            if self.encoding == "png" and voxels.dtype.itemsize > 1:
                return _deep_png(voxels, self.quality)
            # CloudVolume takes seconds to import.
            from cloudvolume import chunks as codecs

            params = {} if self.quality is None else {"level": self.quality}
            return bytes(codecs.encode(np.asfortranarray(voxels), self.encoding, SEGMENTATION_BLOCK, params))
        except OverflowError:  # offsets of compressed_segmentation have 24 bits
            raise OverflowError(
                f"A chunk of {' x '.join(map(str, voxels.shape[:3]))} voxels has more different ids than "
                f"{self.encoding} can hold. Choose smaller chunks (--chunks), or another encoding."
            ) from None

    def _put(self, put: Put, part: Region, voxels: Block) -> bytes:
        """Write a chunk; return the hash of its bytes if these are hashed."""
        content = self._encoded(voxels)
        put(self._name(part), content, "application/octet-stream", self.compress)
        return digest_of_bytes(content) if self.hashes_files else b""

    def _digest(self, voxels: Block, of_contents: list[bytes]) -> bytes:
        return join_digests(of_contents) if self.hashes_files else digest_of(voxels_of(voxels))

    def _decoded(self, part: Region, content: bytes) -> Array:
        x, y, z = (axis.stop - axis.start for axis in part)
        try:
            return decode(content, self.encoding, (x, y, z, self.channels), self.dtype, SEGMENTATION_BLOCK)
        except ValueError as error:
            raise ValueError(f"{self.files.url}/{self._name(part)} does not decode: {error}") from error

    def _contents(self, region: Region) -> Iterator[tuple[Region, bytes]]:
        """Yield the chunks that overlap a region, and their bytes as they were encoded."""
        for part in self._chunks(region):
            content = self.files.get(self._name(part))
            if content is None:
                raise FileNotFoundError(f"{self.files.url}/{self._name(part)} was written, but is missing now.")
            yield part, content

    def _chunks(self, region: Region) -> Iterator[Region]:
        """Yield the chunks that overlap a region, as regions of the level, clipped to it."""

        def cut(length: int, part: slice, size: int) -> list[slice]:
            firsts = range(part.start // size * size, part.stop, size)
            return [slice(first, min(first + size, length)) for first in firsts]

        return tiles_of((Vec3.of(self.stop) - self.start).map(cut, region, self.chunk))

    def _name(self, part: Region) -> str:
        return f"{self.key}/{bounds_key(start_of(part) + self.start, stop_of(part) + self.start)}"


def _deep_png(voxels: Array, level: int | None) -> bytes:
    """Return voxels x, y, z, c of 16 bits as PNG: y times z rows of x pixels, as CloudVolume does for 8 bits."""
    import imagecodecs

    # pyspng 1.1, with which CloudVolume encodes, writes two and four channels of 16 bits only.
    rows = np.moveaxis(voxels.T, 0, -1).reshape(-1, voxels.shape[0], voxels.shape[3])
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(rows), level=PNG_LEVEL if level is None else level))


def _segmentation(labels: Array) -> bytes:
    """Return labels x, y, z in compressed_segmentation."""
    first = labels[0, 0, 0]
    # Comparing takes a twentieth of the time of encoding, and most chunks differ at their corners.
    if first == labels[-1, -1, -1] and (labels == first).all():
        return _uniform(labels.shape, labels.dtype, int(first))
    whole = np.require(labels, requirements=["F", "W"])
    return bytes(compressed_segmentation.compress(whole, block_size=SEGMENTATION_BLOCK, order="F"))


@lru_cache(maxsize=64)
def _uniform(shape: tuple[int, ...], dtype: np.dtype[Any], label: int) -> bytes:
    """Return a chunk of one label: of background there are many."""
    labels = np.full(shape, label, dtype, order="F")
    return bytes(compressed_segmentation.compress(labels, block_size=SEGMENTATION_BLOCK, order="F"))
