"""Chunks of zarr as they are stored: how they are compressed, as text to compare, and damage that they show undecoded.

Formats: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst and RFC 8878 (zstd), as most programs write
them: anything else is called damage here, of which only decoding tells whether it is. So it is with several frames of
zstd, the format of c-blosc2, and bytes behind the end of a chunk.

Neither format has a checksum of its own: of 600 flipped bits, decoders noticed 63% in ids (zstd) and 4% in imagery
(blosc with zstd), and gave other voxels for the rest. Codecs with a checksum, which gzip has and zstd may have, are
decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.sources.zarr.chunk_codecs import codecs_of_chunks, configuration_of, name_of

__all__ = ["RAW", "SHUFFLES", "compressor_of", "named_compressor", "seen_damage", "shuffle_named"]

RAW = "raw"
# How blosc orders bytes before it compresses them. Zarr v2 stores the number.
SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
BLOSC_FIELDS = ("cname", "clevel", "shuffle", "blocksize")
# Version of the format, version of the codec, flags, bytes of a voxel; bytes of voxels, of a block, of the chunk.
BLOSC_HEADER = struct.Struct("<BBBBiii")
BLOSC_LENGTH = struct.Struct("<i")
BLOSC_VERSION, BLOSC_MEMCPYED = 2, 2
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Bytes of a frame's content size and dictionary id, by their flags.
ZSTD_SIZE_BYTES, ZSTD_ID_BYTES = (0, 2, 4, 8), (0, 1, 2, 4)
ZSTD_BLOCK_HEADER, ZSTD_RLE, ZSTD_RESERVED = 3, 1, 3


def compressor_of(metadata: JsonObject) -> str:
    """Return the compressor of an array of zarr, as `named_compressor` does; "" if it has other codecs than that.

    The order of axes and of bytes is not looked at.
    """
    if metadata.get("zarr_format") == 2:
        config = metadata.get("compressor")
        return "" if metadata.get("filters") else named_compressor(config["id"], config) if config else RAW
    first, *rest = codecs_of_chunks(metadata) or [""]
    if name_of(first) != "bytes" or len(rest) > 1:
        return ""
    return named_compressor(name_of(rest[0]), configuration_of(rest[0])) if rest else RAW


def named_compressor(name: str, configuration: Mapping[str, Any]) -> str:
    """Return a compressor and its parameters, which are named as in zarr v2 or v3, as text.

    Examples
    --------
    >>> named_compressor("blosc", {"cname": "zstd", "clevel": 1, "shuffle": 2, "blocksize": 0})
    'blosc zstd 1 bitshuffle 0'
    >>> named_compressor("zstd", {"level": 3})
    'zstd 3'
    """
    if name != "blosc":
        checksum = " checksum" if configuration.get("checksum") else ""
        return f"{name} {configuration.get('level')}{checksum}"
    fields = {**configuration, "shuffle": shuffle_named(configuration.get("shuffle"))}
    return " ".join((name, *(str(getattr(value := fields.get(field), "value", value)) for field in BLOSC_FIELDS)))


def shuffle_named(shuffle: Any) -> Any:
    """Return the name of a shuffle that is given as a number; anything else as it is.

    Examples
    --------
    >>> shuffle_named(2), shuffle_named("shuffle"), shuffle_named(-1)
    ('bitshuffle', 'shuffle', -1)
    """
    return SHUFFLES[shuffle] if isinstance(shuffle, int) and 0 <= shuffle < len(SHUFFLES) else shuffle


def seen_damage(content: bytes, compressor: str, size: int) -> str | None:
    """Return the damage that is seen in a chunk without decoding it: "" if there is none, None if decoding has to tell.

    A chunk with damage may decode all the same, if it is stored in a way that is not looked at here.

    Parameters
    ----------
    content : bytes
        The chunk as stored.
    compressor : str
        As `compressor_of` returns it.
    size : int
        Bytes of its voxels.
    """
    if compressor == RAW:
        return "" if len(content) == size else f"it has {len(content)} bytes, not {size}"
    codec, *options = compressor.split()
    look = {"blosc": _damage_of_blosc, "zstd": _damage_of_zstd}.get(codec)
    if look is None or "checksum" in options:
        return None
    try:
        return look(content, size)
    except (struct.error, IndexError):
        return f"it ends after {len(content)} bytes"


def _damage_of_blosc(content: bytes, size: int) -> str:
    """Follow the lengths of the compressed streams of each block, which lie in any order."""
    version, _, flags, _, voxel_bytes, block_bytes, stored_bytes = BLOSC_HEADER.unpack_from(content)
    if version != BLOSC_VERSION:
        return f"its format of blosc is {version}, not {BLOSC_VERSION}"
    if voxel_bytes != size or stored_bytes != len(content):
        return f"its header says {voxel_bytes} bytes in {stored_bytes}, but it has {size} in {len(content)}"
    head = BLOSC_HEADER.size
    if flags & BLOSC_MEMCPYED:
        return "" if stored_bytes == size + head else f"it has {stored_bytes - head} bytes, not {size}"
    if block_bytes <= 0:
        return f"its header says blocks of {block_bytes} bytes"
    count = -(-size // block_bytes)
    starts = sorted(struct.unpack_from(f"<{count}i", content, head))
    if starts[0] != head + BLOSC_LENGTH.size * count:
        return f"its first block begins at byte {starts[0]}"
    for at, end in zip(starts, [*starts[1:], stored_bytes], strict=True):
        while at < end:
            (length,) = BLOSC_LENGTH.unpack_from(content, at)
            if length <= 0:
                return f"one of its streams has {length} bytes"
            at += BLOSC_LENGTH.size + length
        if at != end:
            return f"one of its blocks ends at byte {at}, and the next one begins at {end}"
    return ""


def _damage_of_zstd(content: bytes, size: int) -> str | None:
    """Follow the headers of the blocks of a frame."""
    if content[:4] != ZSTD_MAGIC:
        return "it does not begin with the magic number of zstd"
    flags = content[4]
    is_single = flags >> 5 & 1
    size_bytes = ZSTD_SIZE_BYTES[flags >> 6] or is_single
    at = 5 + (not is_single) + ZSTD_ID_BYTES[flags & 3]
    if size_bytes:
        told = int.from_bytes(content[at : at + size_bytes], "little") + (256 if size_bytes == 2 else 0)
        if told != size:
            return f"its header says {told} bytes, not {size}"
    if flags & 4:  # a checksum, which decoding compares
        return None
    at, is_last = at + size_bytes, 0
    while not is_last:
        header = int.from_bytes(content[at : at + ZSTD_BLOCK_HEADER], "little")
        if at + ZSTD_BLOCK_HEADER > len(content):
            return f"it ends after {len(content)} bytes"
        is_last, kind, length = header & 1, header >> 1 & 3, header >> 3
        if kind == ZSTD_RESERVED:
            return f"its block at byte {at} is of an unknown kind"
        at += ZSTD_BLOCK_HEADER + (1 if kind == ZSTD_RLE else length)
    return "" if at == len(content) else f"its frame ends at byte {at}, and it has {len(content)} bytes"
