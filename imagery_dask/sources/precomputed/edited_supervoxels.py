"""Chunks with supervoxels that were split, from the store in which a chunked graph keeps them.

The store is a precomputed volume with an info of its own. Its chunks take the place of those of the volume that the
graph was made from; chunks that it does not have are as they are there.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Collection, Iterator, Sequence

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import InvalidInfoError, SourceError
from imagery_dask.geometry.grid import bounds_key
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.layer import Layer
from imagery_dask.model.supervoxel_store import SupervoxelStore
from imagery_dask.model.volume_info import check_info
from imagery_dask.sources.files.failures import brief
from imagery_dask.sources.precomputed.codecs import SEGMENTATION_BLOCK
from imagery_dask.sources.precomputed.ocdbt_files import OcdbtFiles, OcdbtStore
from imagery_dask.sources.precomputed.shards import ShardedChunks
from imagery_dask.sources.requests.transport import Blob, Request
from imagery_dask.sources.volumes.chunk_grid import Chunk

__all__ = ["EditedChunks", "EditedSupervoxels"]

INFO = "info"
BLOCK = "compressed_segmentation_block_size"


class EditedSupervoxels:
    """The edited supervoxels of a graph, at any moment. Safe to use from many threads.

    Parameters
    ----------
    store : SupervoxelStore
        Where they are.
    layer : Layer
        The volume that the graph was made from.
    scales : list of dict
        ``scales`` of the volume's info.
    data_path : str
        Cloud path of the volume.
    largest : sequence of int
        Size that no stored chunk of a mip exceeds, in bytes.

    Attributes
    ----------
    refusals : dict of int to str
        Why a mip cannot be read, for those of which the store has no chunks, or in another form.

    Raises
    ------
    InvalidInfoError
        If tensorstore is not installed, or the store holds something else than the supervoxels of the volume.
    SourceError, AccessRefusedError
        If the store does not exist, or cannot be read.
    """

    def __init__(
        self, store: SupervoxelStore, layer: Layer, scales: Sequence[JsonObject], data_path: str, largest: Sequence[int]
    ) -> None:
        self._store = OcdbtStore(layer.path, store, data_path)
        self._layer, self._largest = layer, largest
        info = self._read_info()
        own = {tuple(scale["resolution"]): scale for scale in info["scales"]}
        self.scales: dict[int, JsonObject] = {}
        self.refusals: dict[int, str] = {}
        for level, scale in enumerate(scales):
            edited = own.get(tuple(scale["resolution"]))
            reason = "no scale has this resolution" if edited is None else _difference(edited, scale)
            if (info["data_type"], info["num_channels"]) != (layer.dtype, layer.channels):
                reason = f"voxels are {info['num_channels']} times {info['data_type']}"
            if edited is None or reason:
                self.refusals[level] = (
                    f"supervoxels are split, and of the OCDBT store with the pieces, {self._store.place!r}, {reason}"
                )
            else:
                self.scales[level] = edited
        if not self.scales:
            raise InvalidInfoError(f"{layer.path!r} cannot be read: mip 0: {self.refusals[0]}.")

    def at(self, moment: int | None) -> EditedChunks:
        """Return the edited chunks at a moment, in seconds since 1970; None for the present."""
        return EditedChunks(self._store.at(moment), self.scales, self._layer, self._largest)

    def changed(self, mip: int, first: int, second: int) -> Callable[[Chunk], bool]:
        """Return a function that is True for chunks of a mip that were written between two moments."""
        keys, files = self._store.changed_keys(first, second), self.at(None)
        return lambda chunk: files.key(mip, chunk) in keys

    def _read_info(self) -> JsonObject:
        place, blob = self._store.place, self._store.at(None).get(Request(INFO))
        if blob is None or blob.damage:
            raise SourceError(
                f"{self._layer.path!r} cannot be read: its supervoxels are split, and the OCDBT store with the pieces, "
                f"{place!r}, has no info of a volume. Ask those who run the server."
            )
        try:
            return check_info(place, json.loads(bytes(blob.content)))
        except (ValueError, RecursionError) as error:
            raise InvalidInfoError(f"The info in the OCDBT store {place!r} is invalid: {brief(error)}") from error


class EditedChunks:
    """The edited chunks at one moment.

    Parameters
    ----------
    files : OcdbtFiles
        Files of the store at that moment.
    scales : dict of int to dict
        The store's scale of each mip.
    layer, largest
        As of `EditedSupervoxels`.
    """

    def __init__(self, files: OcdbtFiles, scales: dict[int, JsonObject], layer: Layer, largest: Sequence[int]) -> None:
        self._files, self._scales, self._layer, self._largest = files, scales, layer, largest
        self._shards = {mip: self._sharded(mip) for mip, scale in scales.items() if scale.get("sharding")}

    def get_many(self, mip: int, chunks: Collection[Chunk]) -> Iterator[tuple[Chunk, Blob | None]]:
        """Yield chunks as stored; None for those that the store does not have."""
        if mip in self._shards:
            by_cell = {_cell(chunk): chunk for chunk in chunks}
            yield from ((by_cell[cell], blob) for cell, blob in self._shards[mip].get_many(list(by_cell)))
            return
        requests = (Request(self.key(mip, chunk), most=self._largest[mip]) for chunk in chunks)
        for chunk, (_, blob) in zip(chunks, self._files.get_many(requests), strict=True):
            yield chunk, blob

    def get_again(self, mip: int, chunk: Chunk) -> Blob | None:
        """Fetch a chunk that did not decode."""
        if mip in self._shards:
            return self._shards[mip].get_again(_cell(chunk))
        return self._files.get(Request(self.key(mip, chunk), fresh=True, most=self._largest[mip]))

    def key(self, mip: int, chunk: Chunk) -> str:
        """Return the name of the file in the store that has a chunk."""
        if mip in self._shards:
            return self._shards[mip].file_of(_cell(chunk))
        return posixpath.join(self._scales[mip]["key"], bounds_key(chunk.start, chunk.stop))

    def _sharded(self, mip: int) -> ShardedChunks:
        level, scale = self._layer.mips[mip], self._scales[mip]
        cells = level.grid.shape.ceil_div(level.chunk_shape)
        return ShardedChunks(self._files, scale["key"], scale["sharding"], cells, self._largest[mip])


def _difference(edited: JsonObject, scale: JsonObject) -> str:
    """Return how chunks of the store differ from those whose place they take; "" if they do not."""
    for name in ("size", "voxel_offset", "chunk_sizes", "encoding", BLOCK):
        one, other = (of.get(name) or SEGMENTATION_BLOCK if name == BLOCK else of[name] for of in (edited, scale))
        if name == "chunk_sizes":  # of which the first are used
            one, other = one[0], other[0]
        if list(one) != list(other):
            return f"{name} is {one}, not {other} as in the volume"
    return ""


def _cell(chunk: Chunk) -> Vec3[int]:
    return Vec3(chunk.x.cell, chunk.y.cell, chunk.z.cell)
