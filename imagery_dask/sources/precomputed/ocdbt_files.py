"""Files in an OCDBT store, read by tensorstore as they were at a moment; and which of them differ between two moments.

tensorstore is an optional package, and is imported when a graph names such a store. It finds credentials by itself: for
``gs://`` those of ``GOOGLE_APPLICATION_CREDENTIALS``, gcloud or the machine, for ``s3://`` those of AWS's environment
variables, profiles or the machine. It has neither CAVE's tokens nor CloudVolume's secrets.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from imagery_dask.errors import AccessRefusedError, InvalidInfoError, SourceError
from imagery_dask.model.supervoxel_store import StoreLayer, SupervoxelStore
from imagery_dask.sources.files.failures import brief
from imagery_dask.sources.requests.counts import count_request
from imagery_dask.sources.requests.credentials import own_s3_server
from imagery_dask.sources.requests.transport import Blob, Request, http_url
from imagery_dask.sources.volumes.addresses import named_by_info
from imagery_dask.urls import location_of, resolved_name, without_secrets

__all__ = ["OcdbtFiles", "OcdbtStore"]

READABLE = ("gs", "s3", "http", "https", "file")
MANIFEST = "manifest.ocdbt"
INFO = "info"
# tensorstore's own limits are the number of cores, and 32 requests or files at a time, each with its own threads.
THREADS, FILES_IN_FLIGHT, REQUESTS_IN_FLIGHT, RETRIES = 2, 8, 32, 5
NODE_CACHE_BYTES = 64 * 2**20
# A read that takes longer has failed, whatever is repeated within.
LONGEST_READ_S = 300.0
REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")

# A node of a version's tree: the beginning of the keys below it, and where it is.
# A value: its key, and where or what it is.
Node = tuple[bytes, str]
Value = tuple[bytes, str | bytes]


class OcdbtStore:
    """An open store. Safe to use from many threads.

    Parameters
    ----------
    path : str
        Path of the graph whose info names the store.
    store : SupervoxelStore
        Where its files are.
    data_path : str
        Cloud path of the volume that the graph was made from.

    Raises
    ------
    InvalidInfoError
        If tensorstore is not installed, or the store is where it cannot read.
    SourceError, AccessRefusedError
        If there is no store, it cannot be read, or the info names what only the user may name.
    """

    def __init__(self, path: str, store: SupervoxelStore, data_path: str) -> None:
        self._version = store.version
        places = [_place(path, store.field, layer, data_path) for layer in store.layers]
        of_manifest = [place for layer, place in zip(store.layers, places, strict=True) if layer.exact == MANIFEST]
        self.place = without_secrets(of_manifest[0].removesuffix(MANIFEST) if of_manifest else places[-1])
        self._tensorstore = _tensorstore(path, store.field, self.place, data_path)
        self._spec = _spec(store.layers, places)
        self._base = self._result(self._tensorstore.KvStore.open(self._spec, context=_context(os.getpid())), "")
        # Without a manifest, tensorstore opens an empty store.
        if self._result(self._base.read(MANIFEST), MANIFEST).state != "value":
            raise SourceError(
                f"{path!r} cannot be read: its supervoxels are split, and there is no OCDBT store with the pieces at "
                f"{self.place!r}, which {store.field} of its info names (no {MANIFEST}). Ask those who run the server."
            )

    def at(self, moment: int | None) -> OcdbtFiles:
        """Return the files as they were at a moment, in seconds since 1970; those of the latest version for None."""
        version = self._version
        if version is None and moment is not None:
            version = f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"
        spec = {"driver": "ocdbt", "base": self._spec, **({} if version is None else {"version": version})}
        try:
            files = self._tensorstore.KvStore.open(spec, context=_context(os.getpid())).result(LONGEST_READ_S)
            files.read(INFO).result(LONGEST_READ_S)  # the first read looks for the version
        except Exception as error:  # of tensorstore, which raises ValueError for most
            is_older = self._version is None and "commit_time<=" in str(error) and str(error).startswith("NOT_FOUND")
            if not is_older:
                raise self._failed(MANIFEST, error) from None
            files = None
        return OcdbtFiles(self, files)

    def changed_keys(self, first: int, second: int) -> set[str]:
        """Return the files that differ between two moments; parts of the tree that both share are not read.

        Raises
        ------
        SourceError
            If the store cannot be read, or its manifest does not list its versions.
        """
        if self._version is not None:
            return set()
        trees = [self._tree_at(first), self._tree_at(second)]
        values: list[set[Value]] = [set(), set()]
        while any(trees):
            for node in trees[0].keys() & trees[1].keys():
                del trees[0][node], trees[1][node]
            highest = max((height for tree in trees for height in tree.values()), default=0)
            for tree, found in zip(trees, values, strict=True):
                self._descend(tree, highest, found)
        return {key.decode() for key, _ in values[0] ^ values[1]}

    def _tree_at(self, moment: int) -> dict[Node, int]:
        """Return the root of the tree at a moment, with its height; nothing if the store did not exist or was empty."""
        manifest = self._dump(None)
        if "versions" not in manifest:
            raise SourceError(
                f"The manifest of the OCDBT store {self.place!r} lists no versions that could be compared."
            )
        entries = [*manifest["version_tree_nodes"], *manifest["versions"]]
        while (entry := _last_at(entries, moment)) is not None and "root" not in entry:
            entries = self._dump(entry["location"])["entries"]
        location = None if entry is None else entry["root"].get("location")
        return {} if entry is None or location is None else {(b"", location): entry["root_height"]}

    def _descend(self, tree: dict[Node, int], height: int, values: set[Value]) -> None:
        """Replace the nodes of a height by the nodes below them, or add their values."""
        for prefix, location in [node for node, own in tree.items() if own == height]:
            del tree[prefix, location]
            for entry in self._dump(location)["entries"]:
                if "location" in entry:
                    tree[prefix + entry["subtree_common_prefix"], entry["location"]] = height - 1
                else:
                    values.add((prefix + entry["key"], entry.get("indirect_value") or entry["inline_value"]))

    def _dump(self, location: str | None) -> Any:
        """Return the manifest, or a node of the tree of versions or of a version's tree."""
        future = self._tensorstore.ocdbt.dump(self._base, location, context=_context(os.getpid()))
        return self._result(future, location or MANIFEST)

    def _failed(self, key: str, error: Exception) -> SourceError:
        reason = str(error).partition(" [source locations")[0]
        name = f"{key!r} of the OCDBT store {self.place!r}"
        if reason.startswith(REFUSED):
            return AccessRefusedError(
                f"Access was refused to {name} ({brief(reason)}). Check the credentials that tensorstore finds: "
                "GOOGLE_APPLICATION_CREDENTIALS or gcloud's for gs://, AWS's environment or profile for s3://. "
                "CloudVolume's secrets and CAVE's tokens are not used."
            )
        return SourceError(f"Reading {name} failed: {brief(reason)}")

    def _result(self, future: Any, key: str) -> Any:
        try:
            return future.result(LONGEST_READ_S)
        except Exception as error:  # of tensorstore, which raises ValueError for most
            raise self._failed(key, error) from None


class OcdbtFiles:
    """Files of a store at one moment, read by name as those of a `Transport`.

    Parameters
    ----------
    store : OcdbtStore
        The store.
    files : tensorstore.KvStore or None
        The store at a version; None before its first.
    """

    def __init__(self, store: OcdbtStore, files: Any) -> None:
        self._store, self._files = store, files

    def get(self, request: Request) -> Blob | None:
        """Fetch one file or byte range; None if it does not exist.

        Raises
        ------
        AccessRefusedError, SourceError
            If the store refuses access, is damaged, or the read fails for another reason.
        """
        return self._finished(request, self._started(request))

    def get_many(self, wanted: Iterable[Request]) -> Iterator[tuple[Request, Blob | None]]:
        """Yield the results of many requests in their order, of which several are in flight."""
        started: deque[tuple[Request, Any]] = deque()
        for request in wanted:
            started.append((request, self._started(request)))
            if len(started) > REQUESTS_IN_FLIGHT:
                yield started[0][0], self._finished(*started.popleft())
        while started:
            yield started[0][0], self._finished(*started.popleft())

    def _started(self, request: Request) -> Any:
        if self._files is None:
            return None
        count_request(repeated=request.fresh)
        part = None if request.start is None else slice(request.start, request.stop)
        return self._files.read(request.key, byte_range=part)

    def _finished(self, request: Request, future: Any) -> Blob | None:
        if future is None:
            return None
        answer = self._store._result(future, request.key)
        if answer.state == "missing":
            return None
        content, damage = answer.value, ""
        if not content and request.start != request.stop:
            # tensorstore reads a value whose file is gone as one without bytes.
            damage = f"{request.key} has no bytes in the OCDBT store {self._store.place}"
        elif request.start is None and len(content) > request.most:
            damage = f"it has more than {request.most} bytes, more than it can have"
        return Blob(content, damage=damage)


def _last_at(entries: list[Any], moment: int) -> Any:
    """Return the last of ascending versions, or groups of them, that begin at a moment or before; None if none does."""
    return next((entry for entry in reversed(entries) if entry["commit_time"] <= moment * 10**9), None)


def _place(path: str, field: str, layer: StoreLayer, data_path: str) -> str:
    """Return the URL of the files of a layer, which an info names."""
    url = layer.url
    if "://" not in url and not url.startswith(("/", "~")):
        name = resolved_name(url)
        url = f"{location_of(data_path).rstrip('/')}/{name}" if not name.startswith("..") else url
    found = location_of(named_by_info(path, field, url))
    scheme, _, rest = found.partition("://")
    if scheme not in READABLE or rest.startswith(("http://", "https://")) or "?" in found:
        raise InvalidInfoError(
            f"{path!r} cannot be read: its supervoxels are split, and the pieces are in an OCDBT store at "
            f"{without_secrets(found)!r} ({field} of its info), where tensorstore cannot read. It reads "
            f"{', '.join(f'{one}://' for one in READABLE)}, without tokens in the URL."
        )
    return found if layer.exact else f"{found}/"


def _spec(layers: Iterable[StoreLayer], places: Iterable[str]) -> dict[str, object]:
    """Return the files of a store, in the form in which tensorstore takes them."""
    parts = []
    for layer, place in zip(layers, places, strict=True):
        part = {"base": _folder(place), "exact": layer.exact, "prefix": layer.prefix}
        parts.append({name: value for name, value in part.items() if value is not None})
    return {"driver": "kvstack", "layers": parts}


def _folder(place: str) -> object:
    """Return the URL, or the specification, of what tensorstore reads at a place."""
    public = http_url(place)  # of buckets for which there are no credentials, too
    server = own_s3_server() if public is None and place.startswith("s3://") else None
    if server is None:
        return public or place
    # tensorstore does not know of the variables that name another server than Amazon's.
    bucket, _, path = place.removeprefix("s3://").partition("/")
    return {"driver": "s3", "bucket": bucket, "path": path, "endpoint": server[0].rstrip("/"), "aws_region": server[1]}


def _tensorstore(path: str, field: str, place: str, data_path: str) -> Any:
    """Return the package tensorstore.

    Raises
    ------
    InvalidInfoError
        If it is not installed.
    """
    try:
        import tensorstore
    except ImportError as error:
        raise InvalidInfoError(
            f"{path!r} cannot be read: its supervoxels are split, and the pieces are in the OCDBT store {place!r} "
            f"({field} of its info), for which this process has no reader ({brief(error)}). Install it, also for "
            f'workers: pip install "imagery_dask[ocdbt]". The volume {without_secrets(data_path)!r} alone has the '
            "supervoxels as they were before any was split."
        ) from error
    return tensorstore


@lru_cache(maxsize=1)
def _context(process: int) -> Any:
    """Return this process's limits of threads, requests and memory; neither survives a fork."""
    del process
    import tensorstore

    remote: dict[str, object] = {}
    for protocol in ("gcs", "s3", "http"):
        remote[f"{protocol}_request_concurrency"] = {"limit": REQUESTS_IN_FLIGHT}
        remote[f"{protocol}_request_retries"] = {"max_retries": RETRIES}
    return tensorstore.Context(
        {
            "cache_pool": {"total_bytes_limit": NODE_CACHE_BYTES},
            "data_copy_concurrency": {"limit": THREADS},
            "file_io_concurrency": {"limit": FILES_IN_FLIGHT},
            **remote,
        }
    )
