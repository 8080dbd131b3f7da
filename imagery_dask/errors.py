"""Errors that callers can catch, each saying what failed, with which values, and the remedy."""

from __future__ import annotations

__all__ = [
    "AccessRefusedError",
    "BlockFailedError",
    "CorruptChunkError",
    "ImageryDaskError",
    "MissingChunkError",
    "MissingChunksWarning",
    "SourceError",
    "SourceNotFoundError",
]


class ImageryDaskError(Exception):
    """Base class of the errors that are particular to this package."""


class SourceError(ImageryDaskError):
    """A volume could not be opened or read."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """There is no precomputed volume at the given path."""


class AccessRefusedError(SourceError, PermissionError):
    """The storage refused access (HTTP 401 or 403, or its equivalent); never treated as missing data."""


class MissingChunkError(SourceError):
    """A storage chunk inside the volume does not exist and ``missing="error"`` was asked for."""


class CorruptChunkError(SourceError):
    """A storage chunk exists but does not decode."""


class BlockFailedError(ImageryDaskError):
    """One or more blocks of an export failed; the others were written."""


class MissingChunksWarning(UserWarning):
    """Storage chunks that the volume should have were filled with 0."""
