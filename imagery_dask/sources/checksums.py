"""Checksums that object stores send with a file, computed from its bytes as stored, before decompression."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

import google_crc32c

__all__ = ["checksum_damage", "stored_checksum"]


def checksum_damage(content: bytes, kind: str | None, expected: str | None) -> str:
    """Return a description of a checksum mismatch; "" if the bytes agree with their checksum or there is none.

    Parameters
    ----------
    content : bytes
        Bytes of the whole file, as stored.
    kind : {"crc32c", "md5"} or None
        Algorithm; others are not checked.
    expected : str or None
        Checksum in base64.
    """
    if not expected or kind not in ("crc32c", "md5"):
        return ""
    if kind == "crc32c":
        digest = google_crc32c.value(content).to_bytes(4, "big")
    else:
        digest = hashlib.md5(content, usedforsecurity=False).digest()
    actual = base64.b64encode(digest).decode()
    if actual.rstrip("=") == expected.rstrip("="):
        return ""
    return f"its {kind} is {actual}, but the server sent {expected}"


def stored_checksum(headers: Mapping[str, str]) -> str | None:
    """Return the CRC32C that Google sends for an object (``x-goog-hash``), if the body is the object as stored.

    None if the server decompresses the object while sending it, since the checksum is that of the compressed object.
    """
    stored = headers.get("x-goog-stored-content-encoding", "identity")
    if stored != (headers.get("Content-Encoding") or "identity"):
        return None
    for part in headers.get("x-goog-hash", "").split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "crc32c":
            return value
    return None
