"""Checksums that object stores send with a file: of its bytes as stored, before any decompression."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

import google_crc32c

__all__ = ["checksum_damage", "stored_checksum"]


def checksum_damage(content: bytes, kind: str | None, expected: str | None) -> str:
    """Describe how the bytes of a whole file differ from their checksum; "" if they agree or there is none.

    Parameters
    ----------
    content : bytes
        As stored.
    kind : {"crc32c", "md5"} or None
        Another kind is not checked.
    expected : str or None
        In base64.
    """
    if not expected or kind not in ("crc32c", "md5"):
        return ""
    if kind == "crc32c":
        digest = google_crc32c.value(content).to_bytes(4, "big")
    else:
        digest = hashlib.md5(content, usedforsecurity=False).digest()
    found = base64.b64encode(digest).decode()
    if found.rstrip("=") == expected.rstrip("="):
        return ""
    return f"its {kind} is {found}, and {expected} was promised"


def stored_checksum(headers: Mapping[str, str]) -> str | None:
    """Return the CRC32C of an object that Google sends (``x-goog-hash``), if the answer is the object as stored.

    A compressed object that the server decompresses on the way has the checksum of what is stored.
    """
    stored = headers.get("x-goog-stored-content-encoding", "identity")
    if stored != (headers.get("Content-Encoding") or "identity"):
        return None
    for part in headers.get("x-goog-hash", "").split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "crc32c":
            return value
    return None
