"""Exceptions of this package; each message says what failed, with which values, and the remedy."""

from __future__ import annotations

from typing import Any

from imagery_dask.urls import redacted

__all__ = [
    "AccessRefusedError",
    "BlockFailedError",
    "ClusterLostError",
    "CorruptChunkError",
    "ImageryDaskError",
    "InvalidInfoError",
    "MissingChunkError",
    "OutdatedRootsError",
    "ServerError",
    "SourceError",
    "SourceGoneError",
    "SourceNotFoundError",
    "TargetBusyError",
    "TargetFullError",
    "TooLargeError",
    "TooManyMissingError",
    "VersionMismatchError",
]


# HTTP statuses of servers and stores that refuse access; they become `AccessRefusedError`.
REFUSED_STATUS = (401, 403)


class ImageryDaskError(Exception):
    """Base class of this package's exceptions. URLs in their messages have no passwords and tokens."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


class SourceError(ImageryDaskError):
    """A volume could not be opened or read."""

    # True where a retry would fail in the same way.
    lasting = False


class SourceNotFoundError(SourceError, FileNotFoundError):
    """No precomputed volume exists at the given path."""


class InvalidInfoError(SourceError, ValueError):
    """The info of a volume is invalid, is of something else, or asks for what cannot be read."""

    lasting = True


class SourceGoneError(SourceNotFoundError):
    """A volume that was being read is no longer there: its info file is gone, and so may be its chunks."""


class AccessRefusedError(SourceError, PermissionError):
    """The storage refused access (HTTP 401, 403 or equivalent).

    Never treated as missing data, unless the server answers so for files that do not exist, too.
    """


class ServerError(SourceError):
    """A CAVE server did not answer, or still returned an error after all retries."""


class OutdatedRootsError(ImageryDaskError, ValueError):
    """Some root ids were not valid at the cutout's timestamp; the message names their successors."""


class MissingChunkError(SourceError):
    """A storage chunk does not exist, or may not (see `AccessRefusedError`), and the client has ``missing="error"``."""


class CorruptChunkError(SourceError):
    """A storage chunk exists but cannot be decoded."""


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
    """The target of an export has no space left; free some and run the same call again to resume."""


class ClusterLostError(ImageryDaskError, ConnectionError):
    """The scheduler of the cluster is gone; run the same call with another cluster to resume."""


class VersionMismatchError(ImageryDaskError, RuntimeError):
    """The workers of the cluster have other package versions than the process that submits the blocks."""


class TooLargeError(ImageryDaskError, ValueError):
    """More of a layer or cutout would be computed at once than ``max_bytes`` allows; the message has the remedies."""


class TooManyMissingError(ImageryDaskError):
    """More storage chunks of the source are missing than ``max_missing`` allows."""


class BlockFailedError(ImageryDaskError):
    """One or more blocks of an export failed; the others were written.

    Parameters
    ----------
    message : str
        What failed.
    report : RunReport
        Report of the whole run, with the failed blocks and their reasons.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.report)
