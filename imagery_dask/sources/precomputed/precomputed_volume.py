"""Precomputed volumes: their info, the files of their chunks, and the ids in encoded chunks.

``CloudVolume.download`` does not report which chunks were missing, and treats a refused request as a missing chunk.
"""

from __future__ import annotations

import copy
import json
import math
import posixpath
from collections.abc import Collection, Generator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from imagery_dask import kernels
from imagery_dask.annotations import Array, JsonObject
from imagery_dask.errors import InvalidInfoError, SourceError, SourceNotFoundError
from imagery_dask.geometry.grid import XYZ, VoxelGrid, bounds_key
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.chunkedgraph import GRAPHENE, ChunkedGraph
from imagery_dask.model.layer import Layer, Mip
from imagery_dask.model.supervoxel_store import SupervoxelStore
from imagery_dask.model.volume_info import check_info
from imagery_dask.sources.files.failures import brief
from imagery_dask.sources.graph.graph_server import read_graph_info
from imagery_dask.sources.precomputed.codecs import SEGMENTATION_BLOCK, decode, encoded_damage, missing_package
from imagery_dask.sources.precomputed.label_tables import LabelTables
from imagery_dask.sources.requests.transport import Blob, Request, Transport
from imagery_dask.sources.volumes.addresses import named_by_info
from imagery_dask.sources.volumes.chunk_grid import Chunk, crossed
from imagery_dask.sources.volumes.stored_volume import Fetched, Relabel, StoredVolume
from imagery_dask.urls import resolved_name, server_of, without_secrets

if TYPE_CHECKING:
    from imagery_dask.sources.precomputed.edited_supervoxels import EditedChunks, EditedSupervoxels
    from imagery_dask.sources.precomputed.shards import ShardedChunks

__all__ = ["PrecomputedVolume"]

REDIRECTS = 10
LARGEST_INFO = 2**26
GRAPH_PATH = "/table/"
MOMENTS_KEPT = 16
LARGEST_PROPERTIES = 2**30
# Bytes of an encoded chunk, for each byte of its voxels and in addition. In compressed_segmentation with blocks of one
# voxel, a label of 4 bytes takes 12; compression of incompressible data adds a little.
ENCODED_AT_MOST = 4
HEADERS_AT_MOST = 2**17
# Bytes of a stored chunk, for each byte of its voxels, that are hardly exceeded; of other encodings 1.
ENCODED_TO = {"jpeg": 0.5, "jxl": 0.5, "compressed_segmentation": 0.25, "compresso": 0.25, "crackle": 0.25}


class PrecomputedVolume(StoredVolume):
    """An open layer of Neuroglancer's precomputed format, flat or below a chunked graph.

    Parameters
    ----------
    path : str
        CloudVolume path of a precomputed layer, or of a dynamic segmentation (``graphene://``), of which supervoxels
        are read.

    Raises
    ------
    SourceNotFoundError, AccessRefusedError, SourceError
        If the volume does not exist, access is refused, or it is not an image or segmentation.
    """

    metadata_name = "info"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._transport, self.info, graph = self._read_info()
        self.layer = Layer.from_info(path, self.info, graph)
        _check_decodable(self.layer)
        self._shards: dict[int, ShardedChunks] = {}
        self._largest = [_largest(self.layer, mip) for mip in self.layer.mips]
        self.data_path = self._transport.cloudpath
        self._edits: EditedSupervoxels | None = None
        self._edited: EditedChunks | None = None
        self._moments: dict[int, PrecomputedVolume] = {}
        store = None if graph is None else SupervoxelStore.from_info(path, self.info)
        if store is not None:
            self._open_edits(store)

    def _open_edits(self, store: SupervoxelStore) -> None:
        """Open the store with the supervoxels that were split; mips that it does not have are not read."""
        from imagery_dask.sources.precomputed.edited_supervoxels import EditedSupervoxels

        self._edits = EditedSupervoxels(store, self.layer, self.info["scales"], self.data_path, self._largest)
        self._edited = self._edits.at(None)
        refusals = self._edits.refusals
        mips = (
            mip if mip.is_placeholder else replace(mip, refusal=refusals.get(mip.level, "")) for mip in self.layer.mips
        )
        self.layer = replace(self.layer, mips=tuple(mips))

    def at(self, moment: int | None) -> PrecomputedVolume:
        """Return the volume with the supervoxels as the splits up to a moment left them."""
        if self._edits is None or moment is None:
            return self
        with self._lock:
            if moment not in self._moments:
                volume = copy.copy(self)
                volume._edited = self._edits.at(moment)
                volume._kept_as = (self._kept_as, moment)
                self._moments[moment] = volume
            volume = self._moments[moment] = self._moments.pop(moment)  # the most recently used is the last
            while len(self._moments) > MOMENTS_KEPT:
                del self._moments[next(iter(self._moments))]
            return volume

    def changed_chunks(self, mip: int, box: VoxelGrid, first: int, second: int) -> list[VoxelGrid]:
        """Return the storage chunks that a box crosses in which splits of supervoxels may have changed voxels."""
        if self._edits is None:
            return []
        level = self.layer.mip(mip)
        is_changed = self._edits.changed(mip, first, second)
        chunks = (chunk for chunk in crossed(box, level, self.layer.channels) if is_changed(chunk))
        return [VoxelGrid.between(chunk.start, chunk.stop, level.grid.resolution_nm) for chunk in chunks]

    def forget_chunks(self) -> None:
        """Read every chunk again that is in the cache."""
        super().forget_chunks()
        with self._lock:
            self._moments.clear()

    def data_has_metadata(self) -> bool:
        """Return True if the folder with the chunks has an info now."""
        return self._transport.get(Request("info")) is not None

    def is_current(self) -> bool:
        """Read the info again, and return True if it has not changed."""
        return self._read_info()[1] == self.info

    def _read_info(self) -> tuple[Transport, JsonObject, ChunkedGraph | None]:
        """Read and check the info from its graph server or its folder."""
        path = self.path
        if not path.startswith(GRAPHENE):
            transport, info, self.modified = _read_flat_info(path)
            return transport, check_info(path, info), None
        graph, info = read_graph_info(path)
        checked = check_info(path, info, is_graph=True)
        return Transport(named_by_info(path, "data_dir", info.get("data_dir"))), checked, graph

    def described(self, levels: Collection[int]) -> JsonObject:
        """Return what the info says of some mips."""
        scales = self.info.get("scales") or []
        described = {key: self.info.get(key) for key in ("data_type", "num_channels", "type", "data_dir")}
        if self._edits is not None:
            described["graph"] = self.info["graph"]
        described["scales"] = [scales[level] if level < len(scales) else None for level in sorted(set(levels))]
        return described

    def segment_properties(self) -> tuple[str, bytes] | None:
        """Return the folder and content of the segment properties that the info names, or None."""
        folder = resolved_name(str(self.info.get("segment_properties") or "").strip("/"))
        request = Request(f"{folder}/info", most=LARGEST_PROPERTIES)
        blob = self._transport.get(request) if folder else None
        return None if blob is None else (folder, bytes(blob.decompressed(LARGEST_PROPERTIES)))

    def _stamp(self, mip: int, chunk: Chunk) -> tuple[object, ...] | None:
        if self._transport.is_remote:
            return ()
        return None if self.layer.mips[mip].is_sharded else self._transport.stamp(self._key(mip, chunk))

    def _relabel_stored(self, mip: int, fetched: list[Fetched], relabel: Relabel) -> list[Fetched] | None:
        tables = [None if blob is None else self._label_tables(mip, chunk, blob) for chunk, blob in fetched]
        if any(table is None and blob is not None for table, (_, blob) in zip(tables, fetched, strict=True)):
            return None
        labels = [np.zeros(0, np.uint64) if table is None else table.labels() for table in tables]
        ids = kernels.unique_ids(np.concatenate([np.zeros(1, np.uint64), *labels]))
        new = relabel(ids)
        return [
            (chunk, None if table is None else Blob(table.replaced(kernels.remap(old, ids, new))))
            for (chunk, _), table, old in zip(fetched, tables, labels, strict=True)
        ]

    def _label_tables(self, mip: int, chunk: Chunk, blob: Blob) -> LabelTables | None:
        level = self.layer.mips[mip]
        block_size = self._block_size(mip)
        encoded = level.encoding == "compressed_segmentation" and self.layer.channels == 1
        # A chunk that the box cuts has labels outside the box, which need no lookup.
        if not encoded or self.layer.dtype != "uint64" or block_size is None or chunk.is_cut:
            return None
        try:
            content = bytes(blob.decompressed(self._largest[mip]))
        except Exception:  # of any decoder; decoding the voxels raises it again with the name of the chunk
            return None
        return LabelTables.parse(content, Vec3.of(chunk.shape[:3]), block_size)

    def _stored(self, mip: int, chunks: Collection[Chunk]) -> Generator[Fetched, None, None]:
        if self._edited is not None:
            others = []
            for chunk, blob in self._edited.get_many(mip, chunks):
                if blob is None:
                    others.append(chunk)
                else:
                    yield chunk, blob
            chunks = others
        yield from self._stored_in_folder(mip, chunks)

    def _stored_in_folder(self, mip: int, chunks: Collection[Chunk]) -> Generator[Fetched, None, None]:
        if self.layer.mips[mip].is_sharded:
            by_cell = {_cell(chunk): chunk for chunk in chunks}
            for cell, blob in self._sharded(mip).get_many(list(by_cell)):
                yield by_cell[cell], blob
            return
        by_key = {self._key(mip, chunk): chunk for chunk in chunks}
        requests = [Request(key, most=self._largest[mip], beside=self.metadata_name) for key in by_key]
        for request, blob in self._transport.get_many(requests):
            yield by_key[request.key], blob

    def file_shape(self, mip: int) -> Vec3[int]:
        """Return the voxels of a chunk's file, or of the chunks that a shard holds together, along x, y, z."""
        level = self.layer.mips[mip]
        if not level.is_sharded:
            return level.chunk_shape
        from imagery_dask.sources.precomputed.shards import neighbours

        cells = level.grid.shape.ceil_div(level.chunk_shape)
        return neighbours(self.info["scales"][mip]["sharding"], cells) * level.chunk_shape

    def _block_size(self, mip: int) -> XYZ | None:
        block_size = self.info["scales"][mip].get("compressed_segmentation_block_size")
        return None if block_size is None else tuple(block_size)

    def _sharded(self, mip: int) -> ShardedChunks:
        from imagery_dask.sources.precomputed.shards import ShardedChunks

        with self._lock:
            if mip not in self._shards:
                level = self.layer.mips[mip]
                cells = level.grid.shape.ceil_div(level.chunk_shape)
                sharding = self.info["scales"][mip]["sharding"]
                expected = _expected(self.layer, level) if self._transport.is_remote else math.inf
                self._shards[mip] = ShardedChunks(
                    self._transport, level.key, sharding, cells, self._largest[mip], expected
                )
            return self._shards[mip]

    def _key(self, mip: int, chunk: Chunk) -> str:
        return posixpath.join(self.layer.mips[mip].key, bounds_key(chunk.start, chunk.stop))

    def _stored_again(self, mip: int, chunk: Chunk) -> Blob | None:
        edited = None if self._edited is None else self._edited.get_again(mip, chunk)
        if edited is not None:
            return edited
        level = self.layer.mips[mip]
        if not level.is_sharded:
            request = Request(self._key(mip, chunk), None, None, True, self._largest[mip], self.metadata_name)
            return self._transport.get(request)
        return self._sharded(mip).get_again(_cell(chunk))

    def _decode(self, mip: int, chunk: Chunk, blob: Blob) -> Array:
        encoding, block_size = self.layer.mips[mip].encoding, self._block_size(mip) or SEGMENTATION_BLOCK
        return decode(blob.decompressed(self._largest[mip]), encoding, chunk.shape, self.layer.dtype, block_size)

    def _damage(self, mip: int, chunk: Chunk, content: bytes) -> str | None:
        encoding, block_size = self.layer.mips[mip].encoding, self._block_size(mip) or SEGMENTATION_BLOCK
        return encoded_damage(content, encoding, chunk.shape, self.layer.dtype, block_size)


def _cell(chunk: Chunk) -> Vec3[int]:
    return Vec3(chunk.x.cell, chunk.y.cell, chunk.z.cell)


def _read_flat_info(path: str) -> tuple[Transport, object, str | None]:
    """Read a folder's info, following redirects as CloudVolume does, and when it was modified."""
    server = server_of(path)
    for _ in range(REDIRECTS):
        transport = Transport(path, login=server_of(path) == server)
        hint = _graph_hint(path)
        try:
            blob = transport.get(Request("info", most=LARGEST_INFO))
        except SourceError as error:
            if not hint:
                raise
            raise type(error)(f"{error}{hint}") from error.__cause__
        if blob is None:
            raise SourceNotFoundError(
                f"There is no precomputed volume at {path!r}: it has no info file. Check the path; it must be the "
                "folder that holds 'info', for example precomputed://gs://bucket/layer or file:///data/layer."
                f"{hint}"
            )
        try:
            info = json.loads(bytes(blob.decompressed(LARGEST_INFO)))
        except (ValueError, RecursionError) as error:
            raise InvalidInfoError(f"The info file of {path!r} is not JSON: {brief(error)}") from error
        target = info.get("redirect") if isinstance(info, dict) else None
        following = named_by_info(path, "redirect", target) if target and target != path else path
        if following == path:
            return transport, info, blob.modified
        path = following
    raise SourceError(f"The info of {path!r} redirects more than {REDIRECTS} times.")


def _graph_hint(path: str) -> str:
    """Return the right spelling of a path that looks like one of a graph server, which asks for a token."""
    url = path.removeprefix("precomputed://").removeprefix("middleauth+")
    looks_like_graph = url.startswith(("http://", "https://")) and GRAPH_PATH in url
    return f" A dynamic segmentation is given as {GRAPHENE}{without_secrets(url)}." if looks_like_graph else ""


def _check_decodable(layer: Layer) -> None:
    """Raise if this process lacks the decoder of a level."""
    for mip in layer.mips:
        package = None if mip.is_placeholder else missing_package(mip.encoding)
        if package is not None:
            raise InvalidInfoError(
                f"{layer.path!r} cannot be read: scales[{mip.level}].encoding of its info is {mip.encoding!r}, and "
                f"this process has no decoder for it. Install it, also for workers: pip install {package}"
            )


def _largest(layer: Layer, mip: Mip) -> int:
    """Return a size that no file of a chunk exceeds, compressed or not."""
    return ENCODED_AT_MOST * _voxel_bytes(layer, mip) + HEADERS_AT_MOST


def _expected(layer: Layer, mip: Mip) -> float:
    """Return a size that most stored chunks do not exceed."""
    return _voxel_bytes(layer, mip) * ENCODED_TO.get(mip.encoding, 1.0)


def _voxel_bytes(layer: Layer, mip: Mip) -> int:
    """Return the bytes of the voxels of a chunk."""
    voxels = mip.chunk_shape.minimum(mip.grid.shape).prod() * layer.channels
    return voxels * np.dtype(layer.dtype).itemsize
