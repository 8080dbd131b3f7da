"""Find the stores that a dask graph reads."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import cloudpickle
import numpy as np
from zarr.storage import FsspecStore, LocalStore, ObjectStore

__all__ = ["stores_read"]

# How arrays of these packages are asked for their URL.
PACKAGES = {
    "zarr": lambda array: _url_of(array.store),
    "cloudvolume": lambda volume: volume.cloudpath,
    "tensorstore": lambda array: array.kvstore.url,
}


def stores_read(graph: object) -> set[str]:
    """Return the URLs of zarr arrays, CloudVolumes and TensorStores that a graph holds, however deep in its tasks.

    Parameters
    ----------
    graph : object
        The graph of a dask collection. What cannot be pickled is not searched.
    """
    finder = _Finder()
    with suppress(Exception):  # of any object's own pickling
        finder.dump(graph)
    return finder.urls


class _Finder(cloudpickle.CloudPickler):
    """A pickler that writes nothing and looks at each object it meets."""

    def __init__(self) -> None:
        super().__init__(_Nowhere())
        self.urls: set[str] = set()

    def persistent_id(self, obj: Any) -> str | None:
        """Return an id for objects that are not to be searched: their voxels would be pickled."""
        if isinstance(obj, np.ndarray) and obj.dtype != object:
            return "voxels"
        url = PACKAGES.get(type(obj).__module__.partition(".")[0])
        if url is not None:
            with suppress(Exception):  # another object of the package
                self.urls.add(str(url(obj)))
                return "array"
        return None


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, content: bytes) -> int:
        return len(content)


def _url_of(store: Any) -> str:
    """Return the URL of a zarr store."""
    if isinstance(store, LocalStore):
        return str(store.root)
    if isinstance(store, FsspecStore):
        files = getattr(store.fs, "sync_fs", store.fs)
        protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
        return f"{protocol}://{store.path.strip('/')}"
    if isinstance(store, ObjectStore):
        bucket = store.store
        scheme = {"S3Store": "s3", "GCSStore": "gs"}[type(bucket).__name__]
        return f"{scheme}://{bucket.config['bucket']}/{bucket.prefix or ''}"
    raise TypeError(f"{store!r} has no URL")
