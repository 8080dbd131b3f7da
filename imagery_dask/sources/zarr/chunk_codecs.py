"""Decode the chunks of zarr and N5 arrays, by the codecs of numcodecs and imagecodecs.

Formats: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/,
https://github.com/saalfeldlab/n5#file-system-specification, and LZ4BlockOutputStream of lz4-java for N5's lz4.
"""

from __future__ import annotations

import lzma
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import google_crc32c
import numpy as np
from xxhash import xxh32_intdigest

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.sources.files.compression import ZLIB, decompress, joined_streams, too_large

__all__ = [
    "ChunkCodec",
    "UnknownCodecError",
    "codec_of_n5",
    "codec_of_v2",
    "codec_of_v3",
    "codecs_of_chunks",
    "configuration_of",
    "name_of",
    "without_checksum",
]

Shape = tuple[int, ...]
Buffer = Any  # bytes, memoryview or an array of bytes
# What turns stored bytes into those before a codec, of which there are at most so many; and the same of voxels.
Step = Callable[[Buffer, int], Any]
VoxelStep = Callable[[Array], Any]
# Bytes before a codec, for each byte of voxels and in addition: filters may store 8 bytes for one.
DECODED_AT_MOST, HEADERS_AT_MOST = 16, 2**16
CRC_BYTES = 4
# Codecs of zarr v3 that make bytes of voxels.
TO_BYTES = ("bytes", "numcodecs.pcodec", "numcodecs.zfpy")
# Codecs of zarr v3 that change voxels, not bytes, and have a decoder in numcodecs.
OF_VOXELS = ("delta", "fixedscaleoffset", "bitround", "packbits", "astype", "quantize")
N5_HEADER, N5_LENGTH = struct.Struct(">HH"), struct.Struct(">I")
N5_DEFAULT, N5_VARLENGTH = 0, 1
# Fields of compressions of N5 that numcodecs needs.
N5_OPTIONS = {"blosc": ("cname", "clevel", "shuffle", "blocksize"), "lzma": ("format", "check", "filters")}
LZ4_BLOCK, LZ4_MAGIC = struct.Struct("<8sBiiI"), b"LZ4Block"
LZ4_RAW, LZ4_COMPRESSED, LZ4_METHOD = 0x10, 0x20, 0xF0
# lz4-java keeps 28 bits of its checksum (XXH32); writers without one put 0.
LZ4_SEED, LZ4_CHECKED = 0x9747B28C, 0x0FFFFFFF


class UnknownCodecError(ValueError):
    """A codec has no decoder here.

    Parameters
    ----------
    name : str
        The codec.
    remedy : str
        What would decode it.
    """

    def __init__(self, name: object, remedy: str = "Read the array with a program that has it.") -> None:
        super().__init__(f"its codec {name!r} has no decoder in this process. {remedy}")


@dataclass(frozen=True)
class ChunkCodec:
    """How a chunk is stored.

    Parameters
    ----------
    name : str
        Names of its codecs, for people.
    dtype : numpy.dtype
        Data type as stored, with its byte order.
    steps : sequence of callable
        Decoders of bytes, the last codec first.
    order : tuple of int, optional
        Axes of the array in the order in which they are stored, the slowest first; by default that of the array.
    of_voxels : sequence of callable
        Decoders of voxels, the last codec first.
    has_header : bool
        Whether a header says the chunk's shape, as in N5.
    """

    name: str
    dtype: np.dtype[Any]
    steps: Sequence[Step] = ()
    order: Shape | None = None
    of_voxels: Sequence[VoxelStep] = ()
    has_header: bool = False

    def decode(self, content: Buffer, shape: Shape) -> Array:
        """Return the voxels of a chunk, in the order of the array's axes and the byte order of this machine.

        Parameters
        ----------
        content : bytes
            The chunk as stored.
        shape : tuple of int
            Its shape. A chunk of N5 may be smaller: the rest of it was not written.

        Raises
        ------
        ValueError, RuntimeError
            If it is damaged; codecs may raise errors of their own.
        """
        if self.has_header:
            content, shape = _without_header(content, shape)
        most = DECODED_AT_MOST * math.prod(shape) * self.dtype.itemsize + HEADERS_AT_MOST
        for step in self.steps:
            content = step(content, most)
        # As bytes: a filter stores another data type, and each takes them for its own.
        flat = np.frombuffer(content, np.uint8)
        for decoded in self.of_voxels:
            flat = np.ascontiguousarray(decoded(flat)).reshape(-1)
        flat = flat.view(self.dtype)
        if flat.size != math.prod(shape):
            raise ValueError(f"it has {flat.size} voxels, and chunks have {math.prod(shape)}")
        order = range(len(shape)) if self.order is None else self.order
        stored = flat.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
        return np.asarray(stored, dtype=self.dtype.newbyteorder("="))


def codec_of_v2(metadata: JsonObject, dtype: np.dtype[Any]) -> ChunkCodec:
    """Return the codec of an array of zarr v2 (``.zarray``)."""
    filters = [_filter(config, dtype) for config in metadata.get("filters") or ()]
    compressor = metadata.get("compressor")
    steps = [] if compressor is None else [_decoder(compressor)]
    ndim = len(metadata["shape"])
    order = tuple(reversed(range(ndim))) if metadata.get("order", "C") == "F" else None
    names = [config["id"] for config in (*(metadata.get("filters") or ()), *([compressor] if compressor else ()))]
    return ChunkCodec(_named(names), dtype, steps, order, filters[::-1])


def codec_of_v3(codecs: Sequence[Any], dtype: np.dtype[Any], ndim: int) -> ChunkCodec:
    """Return the codec of chunks of zarr v3, for the ``codecs`` of an array or of its shards."""
    order: Shape | None = None
    steps: list[Step] = []
    of_voxels: list[VoxelStep] = []
    names = []
    for codec in codecs:
        name, configuration = name_of(codec), configuration_of(codec)
        plain = name.removeprefix("numcodecs.")
        if name == "transpose":
            order = _composed(order, _order(configuration.get("order"), ndim))
        elif name == "bytes":
            big = configuration.get("endian", "little") == "big"
            dtype = dtype.newbyteorder(">" if big else "<") if dtype.itemsize > 1 else dtype
        elif name == "crc32c":
            steps.append(lambda content, most: without_checksum(content))
        elif name in ("blosc", "zstd", "gzip"):
            steps.append(_decoder({"id": name}))  # decoding depends on no parameter
            names.append(name)
        elif name.startswith("numcodecs."):
            config = {"id": plain} | configuration
            if plain in OF_VOXELS:
                of_voxels.append(_filter(config, dtype))
            else:
                steps.append(_decoder(config))
            names.append(plain)
        else:
            raise UnknownCodecError(name)
    if not any(name_of(codec) in TO_BYTES for codec in codecs):
        raise ValueError(
            f"its field 'codecs' is {list(codecs)!r}, without the codec 'bytes', which zarr v3 asks for. Write the "
            "metadata again with it"
        )
    if of_voxels and dtype.byteorder == ">":
        raise ValueError("it has filters of big-endian voxels, which zarr-python does not read as it wrote them")
    return ChunkCodec(_named(names), dtype, steps[::-1], order, of_voxels[::-1])


def codec_of_n5(attributes: JsonObject, dtype: np.dtype[Any]) -> ChunkCodec:
    """Return the codec of an N5 dataset (``attributes.json``); its first axis varies fastest."""
    compression = attributes.get("compression") or {"type": attributes.get("compressionType", "raw")}
    name = str(compression.get("type") if isinstance(compression, Mapping) else compression)
    if name == "raw":
        steps: list[Step] = []
    elif name == "lz4" and "acceleration" not in compression:  # which zarr-python writes, with its own lz4
        steps = [_decode_lz4_blocks]
    elif name == "jpeg":
        import imagecodecs

        steps = [lambda content, most: np.ascontiguousarray(imagecodecs.jpeg_decode(bytes(content))).reshape(-1)]
    else:
        ids = {"gzip": "zlib" if compression.get("useZlib") else "gzip", "bzip2": "bz2", "xz": "lzma"}
        known = ids.get(name, name)
        if known not in ("gzip", "zlib", "bz2", "lz4", "lzma", "blosc", "zstd"):
            raise UnknownCodecError(name)
        kept = {key: compression[key] for key in N5_OPTIONS.get(name, ()) if key in compression}
        steps = [_decoder({"id": known} | kept)]
    order = tuple(reversed(range(len(attributes["dimensions"]))))
    return ChunkCodec(name, dtype.newbyteorder(">"), steps, order, has_header=True)


def without_checksum(content: Buffer) -> Buffer:
    """Return bytes without the CRC32C at their end.

    Raises
    ------
    ValueError
        If they differ from it.
    """
    view = memoryview(content).cast("B")
    checked, stored = view[:-CRC_BYTES], int.from_bytes(view[-CRC_BYTES:], "little")
    actual = google_crc32c.value(bytes(checked))
    if len(view) < CRC_BYTES or actual != stored:
        raise ValueError(f"its crc32c is {actual:08x}, and {stored:08x} is stored with it")
    return checked


def name_of(codec: Any) -> str:
    """Return the name of a codec of v3, which may be given without configuration."""
    return str(codec.get("name") if isinstance(codec, Mapping) else codec)


def configuration_of(codec: Any) -> JsonObject:
    """Return the configuration of a codec of v3."""
    return dict(codec.get("configuration") or {}) if isinstance(codec, Mapping) else {}


def codecs_of_chunks(metadata: JsonObject) -> list[Any]:
    """Return the codecs of the chunks of an array of zarr v3; of those in its shards, if it has them."""
    codecs = list(metadata.get("codecs") or ())
    if len(codecs) == 1 and name_of(codecs[0]) == "sharding_indexed":
        return list(configuration_of(codecs[0])["codecs"])
    return codecs


def _named(names: Sequence[str]) -> str:
    return "+".join(names) or "raw"


def _decoder(config: Mapping[str, Any]) -> Step:
    """Return the decoder of a codec of bytes, given as numcodecs has it."""
    codec = _numcodec(config)
    match str(config["id"]):
        case "blosc":
            return _decode_blosc
        case "gzip" | "bz2" as name:
            return lambda content, most: decompress(bytes(content), name, most)
        case "zlib":
            return lambda content, most: joined_streams(bytes(content), most, lambda: zlib.decompressobj(ZLIB))
        case "lzma":
            new = partial(lzma.LZMADecompressor, codec.format, None, codec.filters)
            return lambda content, most: joined_streams(bytes(content), most, new)
        case "zstd":
            return partial(_decode_zstd, codec.decode)
        case "lz4":
            return partial(_decode_lz4, codec.decode)
    return lambda content, most: codec.decode(content)


def _numcodec(config: Mapping[str, Any]) -> Any:
    import numcodecs

    name = str(config.get("id"))
    try:
        if name.startswith("imagecodecs_"):
            from imagecodecs.numcodecs import register_codecs

            register_codecs(verbose=False)
        return numcodecs.get_codec(dict(config))
    except Exception as error:
        remedy = f"numcodecs says: {error}. If a package has it, install it, also for workers."
        raise UnknownCodecError(name, remedy) from error


def _decode_blosc(content: Buffer, most: int) -> Any:
    """Decode by c-blosc2, which needs 0.6 to 0.8 of the time of c-blosc, and does not read past a truncated chunk."""
    import imagecodecs

    _check_size(int.from_bytes(memoryview(content).cast("B")[4:8], "little"), most)
    return imagecodecs.blosc2_decode(content, numthreads=1)


def _decode_zstd(decode: Callable[[Buffer, Any], Any], content: Buffer, most: int) -> Any:
    import zstandard

    size = zstandard.frame_content_size(content)
    _check_size(size, most)
    if size > 0:
        with suppress(ValueError):  # of further frames, for which there is no room
            return decode(content, np.empty(size, np.uint8))
    # The first frame does not say its size, or is none of voxels.
    with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as stream:
        whole = stream.read(most + 1)
    _check_size(len(whole), most)
    return whole


def _decode_lz4(decode: Callable[[Buffer], Any], content: Buffer, most: int) -> Any:
    """Decode a chunk that begins with its size, as numcodecs writes it."""
    _check_size(int.from_bytes(memoryview(content).cast("B")[:4], "little"), most)
    return decode(content)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise too_large(most)


def _filter(config: Mapping[str, Any], dtype: np.dtype[Any]) -> VoxelStep:
    """Return the decoder of a codec of voxels; raise if it makes floats of integers that floats do not hold."""
    name, float_bytes = str(config.get("id")), 0
    if name == "fixedscaleoffset":
        float_bytes = 8
    elif name == "astype" and (stored := np.dtype(config["encode_dtype"])).kind == "f":
        float_bytes = stored.itemsize
    if float_bytes and dtype.kind in "iu" and dtype.itemsize >= float_bytes:
        raise ValueError(
            f"its filter {name!r} makes floats of {dtype.name}, and floats change ids above 2**53 (in 4 bytes, above "
            "2**24). Write the array again without this filter, from data that never had it"
        )
    codec = _numcodec(config)
    return lambda voxels: codec.decode(voxels)


def _order(order: Any, ndim: int) -> Shape:
    if order in ("C", "F"):  # of drafts
        return tuple(range(ndim)) if order == "C" else tuple(reversed(range(ndim)))
    if sorted(order) != list(range(ndim)):
        raise ValueError(f"its codec 'transpose' has the order {order!r}, and the array has {ndim} axes")
    return tuple(order)


def _composed(first: Shape | None, second: Shape) -> Shape:
    return second if first is None else tuple(first[axis] for axis in second)


def _without_header(content: Buffer, most: Shape) -> tuple[memoryview, Shape]:
    """Return the voxels of a block of N5 and its shape."""
    view = memoryview(content).cast("B")
    mode, ndim = N5_HEADER.unpack_from(view)
    if mode not in (N5_DEFAULT, N5_VARLENGTH) or ndim != len(most):
        raise ValueError(f"its header has mode {mode} and {ndim} axes")
    at = N5_HEADER.size
    shape = tuple(N5_LENGTH.unpack_from(view, at + 4 * axis)[0] for axis in range(ndim))
    if any(own > along for own, along in zip(shape, most, strict=True)):
        raise ValueError(f"its header has the shape {shape}, and blocks have {most}")
    return view[at + 4 * (ndim + (mode == N5_VARLENGTH)) :], shape


def _decode_lz4_blocks(content: Buffer, most: int) -> bytes:
    import imagecodecs

    view, at, parts = memoryview(content).cast("B"), 0, []
    room = most
    while at < len(view):
        magic, token, size, decoded, checksum = LZ4_BLOCK.unpack_from(view, at)
        at += LZ4_BLOCK.size
        method = token & LZ4_METHOD
        if magic != LZ4_MAGIC or size < 0 or at + size > len(view) or method not in (LZ4_RAW, LZ4_COMPRESSED):
            raise ValueError("it has a damaged block of lz4")
        room -= decoded
        if room < 0:
            raise too_large(most)
        part = bytes(view[at : at + size])
        part = part if method == LZ4_RAW else bytes(imagecodecs.lz4_decode(part, out=decoded))
        if len(part) != decoded or (checksum and (xxh32_intdigest(part, LZ4_SEED) ^ checksum) & LZ4_CHECKED):
            raise ValueError("it has a block of lz4 that differs from its checksum")
        parts.append(part)
        at += size
    return b"".join(parts)
