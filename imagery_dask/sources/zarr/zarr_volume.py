"""Volumes of zarr v2, zarr v3 and N5: a multiscale group or one array, as mips with offsets in nanometers."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.errors import AccessRefusedError, InvalidInfoError, SourceNotFoundError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.labels import are_ids
from imagery_dask.model.layer import Layer, Mip
from imagery_dask.sources.requests.transport import Blob, Request, Transport
from imagery_dask.sources.volumes.addresses import ZarrAddress
from imagery_dask.sources.volumes.chunk_grid import Chunk
from imagery_dask.sources.volumes.encoded_block import Block
from imagery_dask.sources.volumes.stored_volume import Fetched, StoredVolume
from imagery_dask.sources.zarr.array_format import MALFORMED, ArrayFormat, parse_array, unusable
from imagery_dask.sources.zarr.multiscales import (
    Axes,
    LevelPlace,
    axes_named,
    default_axes,
    levels_of_n5,
    levels_of_ome,
    placed,
)
from imagery_dask.sources.zarr.nodes import DESCRIBING, Node, read_nodes, read_root
from imagery_dask.sources.zarr.shard_files import ShardFiles
from imagery_dask.sources.zarr.stored_chunks import compressor_of, seen_damage
from imagery_dask.sources.zarr.webknossos import AXES, PROPERTIES, WebknossosLayer, find_layer, layers_of_dataset

__all__ = ["ZarrVolume", "find_layers"]

# Bytes of an encoded chunk, for each byte of its voxels and in addition.
ENCODED_AT_MOST, HEADERS_AT_MOST = 2, 2**17
MOST_LEVELS = 64
LABELS = "labels"
# Their group; None if there is none, an error if it is not known.
Labels = Node | AccessRefusedError | None


@dataclass(frozen=True)
class _Level:
    """An array that is a mip, or the part of it that is in a box, from a whole chunk on."""

    prefix: str
    array: ArrayFormat
    axes: Axes
    described: JsonObject
    box: tuple[Vec3[int], Vec3[int]] | None = None

    @property
    def shape(self) -> Vec3[int]:
        """Voxels of the array along x, y, z."""
        return self.along(self.array.shape)

    @property
    def chunk(self) -> Vec3[int]:
        """Voxels of a chunk along x, y, z."""
        return self.along(self.array.chunk)

    @cached_property
    def first_cell(self) -> Vec3[int]:
        """Position of the first chunk that is read, in the grid of the array."""
        start = self.box[0].maximum(0) if self.box else Vec3(0, 0, 0)
        return start // self.chunk if start.all_lt(self.stop) else Vec3(0, 0, 0)

    @property
    def stop(self) -> Vec3[int]:
        """One past the last voxel that is read, in the array."""
        stop = self.box[1].minimum(self.shape) if self.box else self.shape
        return stop if Vec3(0, 0, 0).all_lt(stop) else self.shape

    @property
    def compressor(self) -> str:
        """Compressor of chunks that are nothing but their compressed voxels, z, y, x in C order; "" of others."""
        codec, dtype = self.array.codec, self.array.dtype
        is_plain = self.axes.names == ("z", "y", "x") and codec.order is None and not codec.of_voxels
        is_native = codec.dtype.newbyteorder("<") == codec.dtype and dtype.kind != "b"
        return compressor_of(self.described["array"]) if is_plain and is_native and not codec.has_header else ""

    def along(self, sizes: tuple[int, ...]) -> Vec3[int]:
        """Return sizes in the array's order of axes as those along x, y, z."""
        return Vec3.of(1 if (at := self.axes.of(axis)) is None else sizes[at] for axis in ("x", "y", "z"))

    def position(self, chunk: Chunk) -> tuple[int, ...]:
        """Return the position of a chunk in the grid of the array, in its order of axes."""
        x, y, z = self.first_cell
        cells = {"x": x + chunk.x.cell, "y": y + chunk.y.cell, "z": z + chunk.z.cell, "c": chunk.channel.cell}
        return tuple(cells.get(name, 0) for name in self.axes.names)


class ZarrVolume(StoredVolume):
    """An open multiscale image of OME-Zarr or N5, or one array.

    Parameters
    ----------
    path : str
        As `normalize_path` returns it: ``zarr://``, ``zarr2://``, ``zarr3://`` or ``n5://`` and a cloud path.
    root : Node, optional
        The group or array, if it was read before.

    Attributes
    ----------
    dataset_layer : WebknossosLayer or None
        What its dataset says of it, if it is a layer of webknossos or a magnification of one.

    Raises
    ------
    SourceNotFoundError, AccessRefusedError, InvalidInfoError
        If there is nothing, access is refused, or it is no volume of voxels that can be decoded.
    """

    def __init__(self, path: str, root: Node | None = None) -> None:
        super().__init__(path)
        self._address = ZarrAddress.parse(path)
        self.data_path = self._address.location
        self._transport = Transport(self.data_path)
        self._levels: list[_Level] = []
        self._shards: dict[int, ShardFiles] = {}
        self._metadata = self._read_metadata(root)
        self._open(*self._metadata)

    # ------------------------------------------------------------------ metadata

    def is_current(self) -> bool:
        """Read the metadata again, and return True if it has not changed."""
        return self._read_metadata() == self._metadata

    def data_has_metadata(self) -> bool:
        """Return True if the metadata is there now."""
        return self._transport.get(Request(self.metadata_name)) is not None

    def described(self, levels: Collection[int]) -> JsonObject:
        """Return what the metadata says of some mips."""
        own = self._levels
        return {
            "volume": self._node.attributes,
            "levels": [own[level].described if level < len(own) else None for level in sorted(set(levels))],
        }

    def layers_within(self) -> dict[str, bool]:
        """Return the paths of the labels of an image, and that they are segmentations."""
        return _paths(self.path, _layers_in(self._transport, self._node, self._labels))

    def _read_metadata(self, root: Node | None = None) -> tuple[Node, list[Node], WebknossosLayer | None, Labels]:
        """Read the metadata of the group or array, of all levels, of the dataset that it may be in, and of labels."""
        allowed = self._address.formats
        node = root or read_root(self._transport, allowed)
        if node is None:
            looked = ", ".join(name for name, format_ in DESCRIBING.items() if format_ in allowed)
            raise SourceNotFoundError(
                f"There is no {'N5' if allowed == ('n5',) else 'zarr'} volume at {self.path!r}: it has none of "
                f"{looked}. Check the path; it must be the folder of a multiscale image or of an array."
            )
        layer = self._webknossos(node)
        if node.array is not None:
            return node, [node], layer, None
        names = [place.path for place in layer.places] if layer else self._names(node)
        labels, found = self._read_within(node, names)
        absent = [name for name, level in zip(names, found, strict=True) if level is None or level.array is None]
        if absent and node.format == "n5" and not node.attributes.get("multiscales"):
            found = found[: names.index(absent[0])]  # s0, s1, ... as far as they go
        elif absent:
            raise self._refused(f"it names the level {absent[0]!r}, where there is no array")
        if not found:
            layers = list(_layers_in(self._transport, node, labels))
            hint = f". It has {', '.join(layers)}: give {layers[0]} in it" if layers else ""
            raise self._refused(
                "it is a group without multiscale metadata (OME-Zarr, or s0, s1, ... of N5); give the path of an array "
                f"in it{hint}"
            )
        return node, [level for level in found if level is not None], layer, labels

    def _read_within(self, node: Node, names: list[str]) -> tuple[Labels, list[Node | None]]:
        """Read the group of labels, and the arrays that are levels, together."""
        levels, formats = [f"{name}/" for name in names], (node.format,)
        if node.format == "n5":
            return None, read_nodes(self._transport, levels, formats, node.name)
        try:
            labels, *found = read_nodes(self._transport, [f"{LABELS}/", *levels], formats, node.name)
        except AccessRefusedError as error:  # of labels, unless levels are refused too
            return error, read_nodes(self._transport, levels, formats, node.name)
        return labels, found

    def _webknossos(self, node: Node) -> WebknossosLayer | None:
        """Return what webknossos says of a layer or a magnification; None of anything else."""
        given = self._address
        if given.resolution_nm or given.voxel_offset or given.axes or not _may_be_webknossos(node):
            return None
        try:
            return find_layer(self.data_path, node.name, node.array is not None)
        except (ValueError, *MALFORMED) as error:
            raise self._refused(f"the {PROPERTIES} of its dataset has no usable {error}") from error

    def _names(self, node: Node) -> list[str]:
        """Return the names of the arrays that are the levels of a group."""
        multiscales = _ome(node).get("multiscales")
        if isinstance(multiscales, list) and multiscales:
            try:
                return [str(dataset["path"]).strip("/") for dataset in multiscales[0]["datasets"]]
            except MALFORMED as error:
                raise self._refused(unusable(error)) from error
        return [f"s{number}" for number in range(MOST_LEVELS)] if node.format == "n5" else []

    def _open(self, node: Node, nodes: list[Node], layer: WebknossosLayer | None, labels: Labels) -> None:
        """Set what follows from the metadata."""
        self._node, self._labels, self.dataset_layer = node, labels, layer
        self.metadata_name = node.name
        self.modified = node.modified
        arrays = [self._parsed(level) for level in nodes]
        try:
            places = list(layer.places) if layer else self._places(node, nodes)
        except MALFORMED as error:
            raise self._refused(unusable(error)) from error
        except ValueError as error:
            raise self._refused(error) from error
        prefixes = [""] if node.array is not None else [f"{place.path}/" for place in places]
        boxes = layer.boxes if layer else [None] * len(places)
        for level, array, place, prefix, box in zip(nodes, arrays, places, prefixes, boxes, strict=True):
            axes = self._axes(array, place)
            described = {"array": level.array, "nm": [str(n) for n in (*place.scale_nm, *place.translation_nm)]}
            self._levels.append(_Level(prefix, array, axes, described, box))
        first = self._levels[0]
        channels = {self._channels(level) for level in self._levels}
        dtypes = {level.array.dtype.name for level in self._levels}
        if len(channels) != 1 or len(dtypes) != 1:
            raise self._refused(f"its levels have the data types {sorted(dtypes)} and {sorted(channels)} channels")
        given = self._address
        try:
            found = placed(places, given.resolution_nm, given.voxel_offset)
            mips = [
                self._mip(number, level, *place)
                for number, (level, place) in enumerate(zip(self._levels, found, strict=True))
            ]
        except (ValueError, ArithmeticError) as error:
            raise self._refused(error) from error
        if mips[0].refusal:
            raise self._refused(
                f"its first level cannot be placed: {mips[0].refusal}. Say where its first voxel is, in voxels, at the "
                "end of its path, as in #voxel_offset=0,0,0"
            )
        dtype = first.array.dtype
        told = layer.is_segmentation if layer else "image-label" in _ome(node) or are_ids(dtype)
        is_segmentation = dtype.kind in "iu" and channels == {1} and told
        kind = "segmentation" if is_segmentation else "image"
        self.layer = Layer(self.path, kind, dtype.name, channels.pop(), tuple(mips))
        self._largest = [
            ENCODED_AT_MOST * math.prod(level.array.chunk) * dtype.itemsize + HEADERS_AT_MOST for level in self._levels
        ]

    def _places(self, node: Node, nodes: list[Node]) -> list[LevelPlace]:
        if node.array is None and node.format != "n5":
            return levels_of_ome(_ome(node))
        if node.format == "n5" or "transform" in node.attributes or "pixelResolution" in node.attributes:
            names = [""] if node.array is not None else self._names(node)[: len(nodes)]
            return levels_of_n5(node.attributes, {name: own.attributes for name, own in zip(names, nodes, strict=True)})
        return levels_of_n5({}, {"": {}})

    def _parsed(self, node: Node) -> ArrayFormat:
        assert node.array is not None
        try:
            return parse_array(node.format, node.array, node.attributes)
        except ValueError as error:
            raise self._refused(error) from error

    def _axes(self, array: ArrayFormat, place: LevelPlace) -> Axes:
        """Return the axes of a level, of which those that are no space and no channels have one voxel."""
        ndim = len(array.shape)
        try:
            if self._address.axes is not None:
                axes = axes_named(self._address.axes)
            elif place.axes is not None:
                axes = place.axes
            elif array.names is not None and {"x", "y"} <= {name.lower() for name in array.names}:
                axes = axes_named(array.names)
            else:
                axes = default_axes(ndim, array.format == "n5")
            if len(axes.names) != ndim:
                raise ValueError(f"its axes {', '.join(axes.names)} are not those of an array of {ndim} axes")
            for name, size in zip(axes.names, array.shape, strict=True):
                if name not in ("x", "y", "z", "c") and size != 1:
                    raise ValueError(
                        f"its axis {name!r} has {size} positions, and a volume has x, y, z and channels. Export one "
                        "position of it, and open that"
                    )
        except ValueError as error:
            raise self._refused(error) from error
        return axes

    def _channels(self, level: _Level) -> int:
        at = level.axes.of("c")
        return 1 if at is None else level.array.shape[at]

    def _mip(self, number: int, level: _Level, resolution_nm: Vec3[float], start: Vec3[int] | str) -> Mip:
        array, refusal = level.array, start if isinstance(start, str) else ""
        at, first = level.axes.of("c"), level.first_cell * level.chunk
        of_shard = None if array.shard is None else math.prod(array.shard.shape) // math.prod(array.chunk)
        start = first if isinstance(start, str) else start + first
        grid = VoxelGrid(start, level.stop - first, resolution_nm)
        channels = None if at is None else array.chunk[at]
        key, encoding = level.prefix.strip("/"), array.codec.name
        return Mip(number, key, grid, level.chunk, encoding, of_shard, channels, refusal, level.compressor)

    def _refused(self, reason: object) -> InvalidInfoError:
        return InvalidInfoError(f"{self.path!r} cannot be read: {str(reason).rstrip('.')}.")

    # ------------------------------------------------------------------ chunks

    def _stored(self, mip: int, chunks: Collection[Chunk]) -> Generator[Fetched, None, None]:
        level = self._levels[mip]
        if level.array.shard is not None:
            by_cell = {chunk.cell: chunk for chunk in chunks}
            positions = {cell: level.position(chunk) for cell, chunk in by_cell.items()}
            for cell, blob in self._sharded(mip).get_many(positions):
                yield by_cell[cell], blob
            return
        by_key = {self._key(mip, chunk): chunk for chunk in chunks}
        requests = [Request(key, most=self._largest[mip], beside=self.metadata_name) for key in by_key]
        for request, blob in self._transport.get_many(requests):
            yield by_key[request.key], blob

    def _stored_again(self, mip: int, chunk: Chunk) -> Blob | None:
        level = self._levels[mip]
        if level.array.shard is None:
            request = Request(self._key(mip, chunk), None, None, True, self._largest[mip], self.metadata_name)
            return self._transport.get(request)
        ((_, blob),) = self._sharded(mip).get_many({chunk.cell: level.position(chunk)}, fresh=True)
        return blob

    def _decode(self, mip: int, chunk: Chunk, blob: Blob) -> Array:
        level = self._levels[mip]
        array = level.array
        voxels = array.codec.decode(blob.decompressed(self._largest[mip]), array.chunk)
        if voxels.dtype != array.dtype:
            raise ValueError(f"it decodes to {voxels.dtype}, not to {array.dtype}")
        wanted = [at for name in ("x", "y", "z", "c") if (at := level.axes.of(name)) is not None]
        others = tuple(at for at in range(voxels.ndim) if at not in wanted)
        first: tuple[Any, ...] = (*(slice(None) for _ in wanted), *(0 for _ in others))
        voxels = voxels.transpose(*wanted, *others)[first]
        for number, name in enumerate(("x", "y", "z", "c")):
            if level.axes.of(name) is None:
                voxels = np.expand_dims(voxels, number)
        return self._whole(voxels, chunk, array.fill)[tuple(slice(size) for size in chunk.shape)]

    def _encoded(self, mip: int, chunk: Chunk, blob: Blob) -> Block:
        content = bytes(blob.decompressed(self._largest[mip]))
        damage = self._damage(mip, chunk, content)
        if not damage:
            return super()._encoded(mip, chunk, Blob(content))
        # Decoders also take chunks that `seen_damage` does not know and other programs may not read. The voxels of such
        # a chunk are encoded again.
        try:
            return self._decode(mip, chunk, Blob(content))
        except Exception as error:  # of any decoder
            raise ValueError(damage) from error

    def _damage(self, mip: int, chunk: Chunk, content: bytes) -> str | None:
        del chunk
        array, compressor = self._levels[mip].array, self.layer.mips[mip].compressor
        return seen_damage(content, compressor, math.prod(array.chunk) * array.dtype.itemsize) if compressor else None

    def _whole(self, voxels: Array, chunk: Chunk, fill: Any) -> Array:
        """Return a chunk with the fill value where a block of N5 ends before it."""
        if all(own >= size for own, size in zip(voxels.shape, chunk.shape, strict=True)):
            return voxels
        whole = np.full(chunk.shape, fill, voxels.dtype, order="F")
        part = tuple(slice(min(own, size)) for own, size in zip(voxels.shape, chunk.shape, strict=True))
        whole[part] = voxels[part]
        return whole

    def _key(self, mip: int, chunk: Chunk) -> str:
        level = self._levels[mip]
        position = level.position(chunk)
        if level.array.shard is None:
            return level.prefix + level.array.key_of(position)
        return f"{self._sharded(mip).file_of(position)}, chunk {', '.join(map(str, position))}"

    def _stamp(self, mip: int, chunk: Chunk) -> tuple[object, ...] | None:
        if self._transport.is_remote:
            return ()
        level = self._levels[mip]
        if level.array.shard is None:
            return self._transport.stamp(self._key(mip, chunk))
        return self._transport.stamp(self._sharded(mip).file_of(level.position(chunk)))

    def file_shape(self, mip: int) -> Vec3[int]:
        """Return the voxels of a chunk's file, or of a shard, along x, y, z."""
        level = self._levels[mip]
        shard = level.array.shard
        if shard is None:
            return super().file_shape(mip)
        return level.along(shard.shape)

    def _file_box(self, mip: int, chunk: VoxelGrid) -> VoxelGrid:
        level, grid, shape = self._levels[mip], self.layer.mips[mip].grid, self.file_shape(mip)
        first = grid.start - level.first_cell * level.chunk  # of the array
        start = (chunk.start - first) // shape * shape + first
        return VoxelGrid.between(start, start + shape, grid.resolution_nm).intersection(grid)

    def _absent(self, mip: int) -> int | float | None:
        return self._levels[mip].array.fill

    def _sharded(self, mip: int) -> ShardFiles:
        with self._lock:
            if mip not in self._shards:
                level = self._levels[mip]
                of_mip = level.array, level.prefix, self._largest[mip]
                self._shards[mip] = ShardFiles(self._transport, *of_mip, self.metadata_name)
            return self._shards[mip]


def find_layers(path: str) -> dict[str, bool]:
    """Return the paths of the volumes in a group that is none itself, and whether they are segmentations."""
    address = ZarrAddress.parse(path)
    transport = Transport(address.location)
    (node,) = read_nodes(transport, [""], address.formats)
    if node is None or node.array is not None or node.format == "n5":
        return {}
    (labels,) = read_nodes(transport, [f"{LABELS}/"], (node.format,), node.name)
    return _paths(path, _layers_in(transport, node, labels))


def _paths(path: str, layers: dict[str, bool]) -> dict[str, bool]:
    """Return layers by their paths, which begin as that of their group."""
    location = ZarrAddress.parse(path).location
    return {f"{path.partition('://')[0]}://{location}/{name}": told for name, told in layers.items()}


def _layers_in(transport: Transport, node: Node, labels: Labels) -> dict[str, bool]:
    """Return the names of the labels of an image, or of the layers of a dataset."""
    if isinstance(labels, AccessRefusedError):
        raise labels
    names = None if labels is None else _ome(labels).get("labels")
    if isinstance(names, list):
        return {f"{LABELS}/{name}": True for name in names}
    if node.array is not None or node.format == "n5" or "multiscales" in _ome(node):
        return {}
    return layers_of_dataset(transport.cloudpath, node.name)


def _may_be_webknossos(node: Node) -> bool:
    """Return True for an array or image with the axes of webknossos, and a group that says nothing of its levels."""
    if node.format == "n5":
        return False
    try:
        if node.array is not None:
            names = node.array.get("dimension_names") or AXES[: len(node.array["shape"])]
        elif not (multiscales := _ome(node).get("multiscales")):
            return True
        else:
            names = [axis["name"] for axis in multiscales[0]["axes"]]
    except MALFORMED:
        return False
    return tuple(names) == AXES


def _ome(node: Node) -> JsonObject:
    """Return the attributes of OME-Zarr: at the top, or since 0.5 under "ome"."""
    ome = node.attributes.get("ome")
    return ome if isinstance(ome, dict) else node.attributes
