"""Errors that callers can catch, each saying what failed, with which values, and the remedy."""

from __future__ import annotations

from typing import Any

__all__ = [
    "AccessRefusedError",
    "BlockFailedError",
    "ClusterLostError",
    "CorruptChunkError",
    "ImageryDaskError",
    "MissingChunkError",
    "OutdatedRootsError",
    "ServerError",
    "SourceError",
    "SourceNotFoundError",
    "TargetBusyError",
    "TargetFullError",
    "TooManyMissingError",
    "VersionMismatchError",
]


class ImageryDaskError(Exception):
    """Base class of the errors that are particular to this package."""


class SourceError(ImageryDaskError):
    """A volume could not be opened or read."""

    # Whether asking again would be answered the same.
    lasting = False


class SourceNotFoundError(SourceError, FileNotFoundError):
    """There is no precomputed volume at the given path."""


class AccessRefusedError(SourceError, PermissionError):
    """The storage refused access (HTTP 401 or 403, or its equivalent); never treated as missing data."""


class ServerError(SourceError):
    """A CAVE server did not answer, or answered with an error that did not pass."""


class OutdatedRootsError(ImageryDaskError, ValueError):
    """Root ids that were not roots at the cutout's timestamp; the message names their successors."""


class MissingChunkError(SourceError):
    """A storage chunk inside the volume does not exist and ``missing="error"`` was asked for."""


class CorruptChunkError(SourceError):
    """A storage chunk exists but does not decode."""


class TargetBusyError(ImageryDaskError, FileExistsError):
    """Another process is writing to the target.

    Parameters
    ----------
    message : str
        The target, and the process.
    purpose : str, optional
        What the other process holds its lease for (`imagery_dask.records.lease.Purpose`).
    """

    def __init__(self, message: str, purpose: str | None = None) -> None:
        super().__init__(message)
        self.purpose = purpose


class TargetFullError(ImageryDaskError, OSError):
    """No space is left where an export writes; the same call goes on when there is."""


class ClusterLostError(ImageryDaskError, ConnectionError):
    """The scheduler of the cluster is gone; the same call goes on with another one."""


class VersionMismatchError(ImageryDaskError, RuntimeError):
    """Workers of the cluster run other versions of packages than the process that sends them blocks."""


class TooManyMissingError(ImageryDaskError):
    """More storage chunks of the source do not exist than ``max_missing`` allows."""


class BlockFailedError(ImageryDaskError):
    """One or more blocks of an export failed; the others were written.

    Parameters
    ----------
    message : str
        What failed.
    report : RunReport
        The report of the whole run, with the failed blocks and their reasons.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.report)
