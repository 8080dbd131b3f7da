"""Check the size in a picture's header before its pixels are decoded, for which decoders allocate what it says."""

from __future__ import annotations

import math

import simplejpeg

__all__ = ["check_picture_size"]

PNG_MAGIC, PNG_SIZE = b"\x89PNG\r\n\x1a\n", slice(16, 24)
JXL_MAGIC, JXL_BOX = b"\xff\x0a", b"jxlc"
# Bits of the sides of a JPEG XL picture, of which two bits choose; ratios of width to height, of which three choose.
JXL_BITS = (9, 13, 18, 30)
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
JXL_HEADER = 10


def check_picture_size(content: bytes, encoding: str, shape: tuple[int, int, int, int]) -> None:
    """Raise ValueError if a jpeg, png or jxl chunk has another number of pixels than a chunk has voxels.

    Parameters
    ----------
    content : bytes
        The chunk.
    encoding : str
        Any encoding; others are not looked at.
    shape : tuple of 4 int
        Voxels along x, y, z, and channels.
    """
    if encoding == "jpeg":
        sides = simplejpeg.decode_jpeg_header(content)[:2]
    elif encoding == "png" and content.startswith(PNG_MAGIC):
        size = content[PNG_SIZE]
        sides = int.from_bytes(size[:4], "big"), int.from_bytes(size[4:], "big")
    elif encoding == "jxl" and (at := _start_of_jxl(content)) is not None:
        sides = _jxl_sides(content[at : at + JXL_HEADER])
    else:
        return
    if math.prod(sides) != math.prod(shape[:3]):
        raise ValueError(f"it has {sides[0]} x {sides[1]} pixels, not the {math.prod(shape[:3])} of {shape[:3]} voxels")


def _start_of_jxl(content: bytes) -> int | None:
    """Return the offset of a JPEG XL codestream, which may be in a box of a container."""
    start = 0 if content.startswith(JXL_MAGIC) else content.find(JXL_BOX) + len(JXL_BOX)
    return start + len(JXL_MAGIC) if content[start:].startswith(JXL_MAGIC) else None


def _jxl_sides(header: bytes) -> tuple[int, int]:
    """Return height and width: fields of a codestream's header, ISO/IEC 18181-1, least significant bits first."""
    bits = int.from_bytes(header, "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)
    height = 8 * (take(5) + 1) if small else take(JXL_BITS[take(2)]) + 1
    ratio = take(3)
    if ratio:
        numerator, denominator = JXL_RATIOS[ratio - 1]
        return height, height * numerator // denominator
    return height, 8 * (take(5) + 1) if small else take(JXL_BITS[take(2)]) + 1
