"""Where the parts of a store are that is written, and the lease on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from imagery_dask.model.moments import Moment, resolve_moment
from imagery_dask.records.lease import Lease
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.buckets import clear_errors, parse_bucket_url
from imagery_dask.storage.targets import StoreTarget
from imagery_dask.versions.recorded import ENDING
from imagery_dask.versions.tables.table_files import TableFile
from imagery_dask.versions.version_store import ROOTS, SUPERVOXELS, StoreFacts, read_facts

__all__ = ["DRAFT", "VOLUME", "StorePlaces", "moment_of"]

VOLUME = "volume.zarr"
# What was asked for, while a store is made.
DRAFT = "creating.json"


class StorePlaces:
    """The parts of a store by their places. Nothing is read before it is asked for.

    Parameters
    ----------
    url : str or path
        Local folder or URL of a bucket.

    Raises
    ------
    ValueError, TypeError
        It is neither.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = StoreTarget(url).url
        if parse_bucket_url(self.url).scheme not in ("file", "s3", "gs"):
            raise ValueError(f"A version store is a local folder or in a bucket (s3://, gs://); got {url!r}.")

    @property
    def files(self) -> Files:
        """Files of the store."""
        return Files.at(self.url)

    @property
    def facts(self) -> StoreFacts:
        """What the store is of; FileNotFoundError if there is none that is complete."""
        return read_facts(self.url)

    @property
    def volume(self) -> str:
        """The zarr store with supervoxels."""
        return f"{self.url}/{VOLUME}"

    @property
    def supervoxels(self) -> TableFile:
        """Table of supervoxels."""
        return TableFile(self.files, SUPERVOXELS)

    def roots(self, name: str) -> TableFile:
        """Return the table of a version, which need not exist."""
        return TableFile(self.files, f"{ROOTS}/{name}{ENDING}")

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold the lease of the store while it is changed; at the end, remove what killed processes left half-written.

        Raises
        ------
        TargetBusyError
            Another process holds it.
        """
        files = self.files
        with clear_errors(self.url), Lease(files, self.url) as lease:
            yield lease
            for folder in ("", ROOTS):
                files.remove_partial(folder)


def moment_of(version: int | None, timestamp: Moment) -> tuple[int | None, int | None]:
    """Return version and timestamp as they were given, in whole seconds; one of them is None.

    Raises
    ------
    ValueError
        Both are given.
    """
    if version is not None and timestamp is not None:
        raise ValueError(f"Give version or timestamp, not both; got {version=!r}, {timestamp=!r}.")
    return version, None if timestamp is None else resolve_moment(timestamp)
