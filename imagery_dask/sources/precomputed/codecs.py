"""Decode chunks, as CloudVolume does.

Importing CloudVolume loads the clients of all object stores, which takes a second of CPU time. The common codecs are
called directly, so that local volumes are read without that; CloudVolume decodes the others.

Format of compressed_segmentation:
https://github.com/google/neuroglancer/tree/master/src/sliceview/compressed_segmentation
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from importlib import import_module

import compressed_segmentation
import numpy as np
import pyspng
import simplejpeg
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.geometry.grid import XYZ
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.precomputed.encodings.picture_sizes import check_picture_size

__all__ = ["SEGMENTATION_BLOCK", "decode", "encoded_damage", "missing_package", "segmentation_damage"]

# Block size of compressed_segmentation: of an info that has none, and of volumes that are written here.
SEGMENTATION_BLOCK = (8, 8, 8)
INTERLEAVED = ("jpeg", "png")
PICTURES = ("jpeg", "png", "jxl")
# Bits of a channel, and kind of color (https://www.w3.org/TR/png/#11IHDR).
PNG_HEADER = struct.Struct(">24xBB")
PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
# What ends a file of a picture, within its last bytes.
ENDS, END_BYTES = {"jpeg": b"\xff\xd9", "png": b"IEND"}, 64
# Packages of encodings that this package does not install.
OPTIONAL_PACKAGES = {"fpzip": "fpzip", "kempressed": "fpzip", "zfpc": "zfpc"}
# Encodings that are checked before, or in place of, their own decoders.
CHECKED = ("compresso", "crackle")
# Fields of block headers in compressed_segmentation.
ENCODED_BITS = (0, 1, 2, 4, 8, 16, 32)
IS_ENCODED = np.isin(np.arange(256), ENCODED_BITS)
OFFSET_BITS = 24


def decode(
    content: bytes | memoryview, encoding: str, shape: tuple[int, int, int, int], dtype: str, block_size: XYZ
) -> Array:
    """Return the voxels of a chunk as (x, y, z, channel).

    Parameters
    ----------
    content : bytes or memoryview
        The chunk, without the transport's compression. Voxels of raw chunks are in its memory.
    encoding : str
        Encoding as in the info.
    shape : tuple of 4 int
        Voxels along x, y, z, and channels.
    dtype : str
        Data type of the voxels.
    block_size : tuple of 3 int
        Block size of compressed_segmentation.

    Raises
    ------
    ValueError, RuntimeError
        The chunk is damaged; codecs may raise errors of their own.
    """
    if not content:
        raise ValueError("it is empty")
    if encoding == "raw":
        return _channels_last(np.frombuffer(content, dtype), shape, encoding)
    content = bytes(content)  # which their decoders ask for
    if encoding == "compressed_segmentation":
        damage = segmentation_damage(content, shape, block_size, np.dtype(dtype).itemsize)
        if damage:
            raise ValueError(damage)
    voxels: Array
    if encoding in PICTURES:
        check_picture_size(content, encoding, shape)
    if encoding == "jpeg":
        voxels = simplejpeg.decode_jpeg(content, colorspace="RGB" if shape[3] > 1 else "GRAY").ravel()
    elif encoding == "png":
        voxels = _decode_png(content, shape, dtype)
    elif encoding in CHECKED:
        voxels = _decode_checked(content, encoding, shape, dtype)
    elif encoding == "compressed_segmentation":
        voxels = compressed_segmentation.decompress(content, shape, np.dtype(dtype), block_size, order="F")
    else:
        from cloudvolume import chunks

        voxels = np.asarray(chunks.decode(content, encoding, shape, np.dtype(dtype), block_size))
    if voxels.dtype != np.dtype(dtype):  # a damaged header of jxl
        raise ValueError(f"it decodes to {voxels.dtype}, not to {dtype}")
    return _channels_last(voxels, shape, encoding)


def encoded_damage(
    content: bytes, encoding: str, shape: tuple[int, int, int, int], dtype: str, block_size: XYZ
) -> str | None:
    """Return the damage that is seen in a chunk without decoding it: "" if there is none, None if that cannot be said.

    Parameters are those of `decode`.
    """
    if not content:
        return "it is empty"
    itemsize = np.dtype(dtype).itemsize
    if encoding == "raw":
        wanted = math.prod(shape) * itemsize
        return "" if len(content) == wanted else f"it has {len(content)} bytes, not {wanted}"
    if encoding == "compressed_segmentation":
        return segmentation_damage(content, shape, block_size, itemsize)
    if encoding not in ENDS:
        return None
    try:
        check_picture_size(content, encoding, shape)
    except ValueError as error:
        return str(error)
    return "" if ENDS[encoding] in content[-END_BYTES:] else "its end is missing"


def missing_package(encoding: str) -> str | None:
    """Return the package that this process lacks, or cannot import, to decode an encoding; None if it has it."""
    package = OPTIONAL_PACKAGES.get(encoding)
    if package is not None:
        try:
            import_module(package)
        except ImportError:  # also of what the package needs
            return package
    return None


def _decode_png(content: bytes, shape: tuple[int, int, int, int], dtype: str) -> Array:
    if len(content) < PNG_HEADER.size:
        raise ValueError("it is no PNG")
    bits, color = PNG_HEADER.unpack_from(content)
    if bits == 8:
        voxels = pyspng.load(content)
    else:
        import imagecodecs

        # pyspng 1.1 makes two channels of one, and four of three, if they have 16 bits.
        voxels = imagecodecs.png_decode(content)
    if voxels.dtype.itemsize > np.dtype(dtype).itemsize:
        raise ValueError(f"it has {bits} bits per voxel, more than {dtype}")
    if PNG_CHANNELS.get(color, shape[3]) != shape[3]:
        raise ValueError(f"it has {PNG_CHANNELS[color]} channels, not {shape[3]}")
    return np.asarray(voxels.ravel().astype(dtype, copy=False))


def _decode_checked(content: bytes, encoding: str, shape: tuple[int, int, int, int], dtype: str) -> Array:
    """Decode an encoding whose own decoder trusts the chunk; imported late, since few volumes have one."""
    if shape[3] != 1:
        raise ValueError(f"{encoding} has one channel, not {shape[3]}")
    if encoding == "compresso":
        from imagery_dask.sources.precomputed.encodings.compresso_chunks import decode_compresso

        return decode_compresso(content, shape[:3], dtype)
    from imagery_dask.sources.precomputed.encodings.crackle_chunks import decode_crackle

    return decode_crackle(content, shape[:3], dtype)


def _channels_last(voxels: Array, shape: tuple[int, int, int, int], encoding: str) -> Array:
    """Return what a decoder returned as (x, y, z, channel).

    JPEG and PNG interleave the channels of a pixel; CloudVolume 12.15 arranges them as if each channel were contiguous.
    """
    if shape[3] == 1 or encoding not in INTERLEAVED:
        return voxels.reshape(shape, order="F")
    flat = voxels.ravel(order="F")
    return np.moveaxis(flat.reshape((shape[3], *shape[:3]), order="F"), 0, 3)


def segmentation_damage(content: bytes, shape: tuple[int, int, int, int], block_size: XYZ, itemsize: int) -> str:
    """Return the reason why a chunk in compressed_segmentation cannot be decoded, or "" if it can.

    The decoder (compressed-segmentation 2.3) does not check the offsets in a chunk. In a truncated or damaged chunk it
    reads beyond the buffer, which gives wrong labels or a crash. Where possible, only the headers of the chunk's blocks
    are checked.

    Parameters
    ----------
    content : bytes
        The chunk, without the transport's compression.
    shape : tuple of int
        Voxels of the chunk along x, y, z, and channels.
    block_size : tuple of int
        Voxels of the encoding's blocks along x, y, z.
    itemsize : {4, 8}
        Bytes of a label.
    """
    if len(content) % 4:
        return f"its size of {len(content)} bytes is not a multiple of 4"
    words: NDArray[np.uint32] = np.frombuffer(content, "<u4")
    extents, needed = _extents(shape[:3], block_size)
    channels = shape[3]
    if len(words) < channels:
        return f"it is truncated ({len(content)} bytes)"
    for base in words[:channels].tolist():
        damage = _channel_damage(words, base, extents, needed, block_size, itemsize // 4)
        if damage:
            return damage
    return ""


def _channel_damage(
    words: NDArray[np.uint32],
    base: int,
    extents: NDArray[np.int64],
    needed: NDArray[np.int64],
    block_size: XYZ,
    entry: int,
) -> str:
    if base + 2 * len(extents) > len(words):
        return "the headers of its blocks are beyond its end"
    headers = words[base : base + 2 * len(extents)].reshape(-1, 2).astype(np.int64)
    bits, tables, values = headers[:, 0] >> OFFSET_BITS, headers[:, 0] % (1 << OFFSET_BITS) + base, headers[:, 1] + base
    if not IS_ENCODED[bits].all():
        return "a block has an invalid number of bits"
    # Tables and values follow the headers of all blocks; a header that is zeroed points to the first of them.
    first = base + 2 * len(extents)
    if (tables < first).any() or ((bits > 0) & (values < first)).any():
        return "the header of a block points to headers"
    used = -(-needed * bits // 32)
    if ((bits > 0) & (values + used > len(words))).any():
        return "the values of a block are beyond its end"
    # Unpack only the indices of blocks in which the largest possible index would be beyond the end.
    for block in np.flatnonzero(tables + (entry << bits) > len(words)):
        start = int(values[block])
        largest = _largest_index(words[start : start + int(used[block])], int(bits[block]), extents[block], block_size)
        if tables[block] + entry * (largest + 1) > len(words):
            return "the table of a block is beyond its end"
    return ""


@lru_cache(maxsize=64)
def _extents(shape: tuple[int, ...], block_size: XYZ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the voxels along x, y, z of each block, x fastest, and the values of each up to its last voxel.

    The chunk may cut the last blocks.
    """
    along = Vec3.of(shape).map(lambda n, size: np.minimum(size, n - np.arange(0, n, size)), block_size)
    z, y, x = (part.ravel().astype(np.int64) for part in np.meshgrid(*along.zyx, indexing="ij"))
    return np.stack([x, y, z], axis=1), x + block_size[0] * (y - 1 + block_size[1] * (z - 1))


def _largest_index(values: NDArray[np.uint32], bits: int, extent: NDArray[np.int64], block_size: XYZ) -> int:
    """Return the largest index of a block into its table."""
    if bits == 0:
        return 0
    unpacked = (values[:, None].astype(np.int64) >> np.arange(0, 32, bits)) & ((1 << bits) - 1)
    x, y, z = (np.arange(n) for n in extent)
    at = x + block_size[0] * (y[:, None] + block_size[1] * z[:, None, None])
    return int(unpacked.ravel()[at].max())
