"""A version as a zarr store that is only read: chunks are mapped from supervoxels to ids when they are asked for.

zarr-python, and what reads with it (xarray, dask, napari, PyTorch), open it as they open a copy of the version. The
metadata are those of the stored volume, with the ids' arrays without shards and compression; files of imagery are
passed on as they are.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.lazy import described
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import whole_layer
from imagery_dask.model.labels import LabelRule
from imagery_dask.model.layer import Layer
from imagery_dask.storage.store_files import KEY
from imagery_dask.storage.zarr_stores import open_store

__all__ = ["VersionZarr"]

METADATA = "zarr.json"
CHUNK = re.compile(r"(\d+)/c/(\d+)/(\d+)/(\d+)")
LABELS = "labels/segmentation/"
# Chunks are in C order with axes z, y, x.
CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}]


class VersionZarr(Store):
    """A version of a store, as a zarr store that computes its chunks. Picklable.

    Parameters
    ----------
    volume : str
        URL of the stored volume.
    has_image : bool
        Whether the volume has imagery, beside which the ids are labels.
    layer : Layer
        The supervoxels.
    rule : LabelRule
        What they are mapped to.
    """

    def __init__(self, volume: str, has_image: bool, layer: Layer, rule: LabelRule) -> None:
        super().__init__(read_only=True)
        self._is_open = True
        self.volume, self.has_image, self.layer, self.rule = volume, has_image, layer, rule
        self._prefix = LABELS if has_image else ""
        self._base = open_store(volume.removeprefix("file://"))
        self._levels = [CutoutArray(whole_layer(layer, mip.level, labels=rule)) for mip in layer.mips]

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.volume, self.has_image, self.layer, self.rule)

    def __eq__(self, value: object) -> bool:
        return isinstance(value, VersionZarr) and self.__reduce__()[1] == value.__reduce__()[1]

    def __hash__(self) -> int:
        return hash((self.volume, repr(self.rule), self.rule.query and self.rule.query.stored))

    def __str__(self) -> str:
        return f"imagery_dask-version://{self.volume}"

    def __repr__(self) -> str:
        return f"VersionZarr({self.volume!r})"

    def with_read_only(self, read_only: bool = False) -> Store:
        """Return the store itself; it cannot be written.

        Raises
        ------
        ValueError
            If it is to be written.
        """
        if not read_only:
            raise ValueError("A version is only read; VersionStore.materialize writes a copy.")
        return self

    @property
    def supports_writes(self) -> bool:
        """False."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """False."""
        return False

    @property
    def supports_listing(self) -> bool:
        """True."""
        return True

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file, or a part of it; None if there is no such file."""
        prototype = prototype or default_buffer_prototype()
        if not key.startswith(self._prefix):
            return await self._base.get(key, prototype, byte_range)
        content = await self._own(key.removeprefix(self._prefix))
        return None if content is None else prototype.buffer.from_bytes(_part(content, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return True if there is a file; chunks without ids have none."""
        return await self.get(key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Raise, since a version is only read."""
        del key, value
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Raise, since a version is only read."""
        del key
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield the names of all files: of chunks of ids, also those that may have none."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of files that begin with a prefix."""
        if self.has_image:
            async for key in self._base.list_prefix(prefix):
                if not key.startswith(self._prefix):
                    yield key
        for key in self._own_keys():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of files and folders in a folder."""
        folder = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        seen = set()
        async for key in self.list_prefix(folder):
            name = key[len(folder) :].partition("/")[0]
            if name not in seen:
                seen.add(name)
                yield name

    def _own_keys(self) -> Iterator[str]:
        yield f"{self._prefix}{METADATA}"
        for number, mip in enumerate(self.layer.mips):
            yield f"{self._prefix}{number}/{METADATA}"
            x, y, z = mip.grid.shape.ceil_div(mip.chunk_shape)
            yield from (f"{self._prefix}{number}/c/{k}/{j}/{i}" for k, j, i in product(range(z), range(y), range(x)))

    async def _own(self, key: str) -> bytes | None:
        """Return a file of the ids, by its name in their group."""
        if key == METADATA or key.endswith(f"/{METADATA}"):
            stored = await self._base.get(self._prefix + key, default_buffer_prototype())
            return None if stored is None else json.dumps(self._described(json.loads(stored.to_bytes()))).encode()
        match = CHUNK.fullmatch(key)
        if match is None:
            return None
        level, z, y, x = (int(number) for number in match.groups())
        # In a thread, as zarr's event loop serves all reads of the process.
        return await asyncio.to_thread(self._chunk, level, Vec3(x, y, z))

    def _described(self, node: JsonObject) -> JsonObject:
        """Return the metadata of a group or array of the volume as those of the version."""
        if node.get("node_type") == "array":
            chunk = self.layer.mips[0].chunk_shape
            for codec in node["codecs"]:
                if codec["name"] == "sharding_indexed":
                    chunk = Vec3.of(reversed(codec["configuration"]["chunk_shape"]))
            grid = {"name": "regular", "configuration": {"chunk_shape": list(reversed(chunk))}}
            dtype = self._levels[0].dtype
            return node | {"chunk_grid": grid, "codecs": CODECS, "data_type": dtype.name, "storage_transformers": []}
        attributes: dict[str, Any] = dict(node.get("attributes", {}))
        if KEY in attributes:
            attributes[KEY] = attributes[KEY] | described(self._levels[0].cutout)
        return node | {"attributes": attributes}

    def _chunk(self, level: int, cell: Vec3[int]) -> bytes | None:
        """Return the encoded voxels of a chunk; None if there is none, or all its voxels are 0."""
        if level >= len(self._levels):
            return None
        mip = self.layer.mips[level]
        if not cell.all_lt(mip.grid.shape.ceil_div(mip.chunk_shape)):
            return None
        start = cell * mip.chunk_shape
        shape = mip.chunk_shape.minimum(mip.grid.shape - start)
        voxels = self._levels[level].read(VoxelGrid(mip.grid.start + start, shape, mip.grid.resolution_nm))[..., 0]
        if not voxels.any():
            return None
        if shape != mip.chunk_shape:
            voxels = _padded(voxels, mip.chunk_shape)
        return np.ascontiguousarray(voxels.T).tobytes()


def _padded(voxels: Array, shape: Vec3[int]) -> Array:
    """Return a chunk that the end of the volume cuts in its full shape."""
    whole = np.zeros(shape, voxels.dtype, order="F")
    whole[tuple(slice(size) for size in voxels.shape)] = voxels
    return whole


def _part(content: bytes, byte_range: ByteRequest | None) -> bytes:
    if isinstance(byte_range, RangeByteRequest):
        return content[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return content[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return content[-byte_range.suffix :] if byte_range.suffix else b""
    return content
