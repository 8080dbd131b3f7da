"""Append records of a run from many processes on many machines, and read them.

Every process writes its own files, so that no locks are needed. On a disk, a record is appended to a file. Objects in
a bucket cannot be appended to: a process writes its last few thousand records again, together with the new one.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.config import config
from imagery_dask.records.receipts import receipts_in
from imagery_dask.storage.buckets import parse_bucket_url
from imagery_dask.storage.files import Files, records_folder

__all__ = ["Kind", "NoRecords", "Records", "records_of"]

Kind = Literal["receipts", "ledger", "failed"]
SUFFIX = {"receipts": "bin", "ledger": "jsonl", "failed": "jsonl"}
# A segment of receipts has 380 kB at most, a hundredth of a block; a million receipts are 250 segments.
GETS_IN_FLIGHT = 16

_lock = threading.Lock()
_segments: dict[tuple[str, str, str, int], tuple[str, list[bytes]]] = {}
_names: dict[int, str] = {}


def records_of(url: str) -> Files | None:
    """Return the records folder of a target; None if its storage cannot write files atomically or list them."""
    if parse_bucket_url(url).scheme not in ("file", "s3", "gs", "memory"):
        return None
    return records_folder(url)


@dataclass(frozen=True, slots=True)
class Records:
    """Records of a run. Small and picklable, since it is sent with every task.

    Parameters
    ----------
    files : Files
        The records folder of the target.
    run : str
        Name of the run.
    """

    files: Files
    run: str

    @property
    def kept(self) -> bool:
        """Return True if records are kept."""
        return True

    def append(self, kind: Kind, content: bytes) -> None:
        """Append a record; other processes see it when this returns."""
        if SUFFIX[kind] == "jsonl":
            content = b"\n" + content  # so that a line truncated by a full disk does not damage the next one
        process = os.getpid()  # a forked process writes its own files
        with _lock:
            name = _names.setdefault(process, f"{socket.gethostname()}-{process}-{uuid4().hex[:8]}")
            path = f"{self.run}/{kind}-{name}"
            if self.files.folder is not None:
                _append(self.files.folder / f"{path}.{SUFFIX[kind]}", content)
                return
            key = (self.files.url, self.run, kind, process)
            segment, held = _segments.get(key, ("", []))
            if not held or len(held) >= config.get("records.segment_records"):
                segment, held = uuid4().hex[:8], []
            held.append(content)
            _segments[key] = (segment, held)
            self.files.put(f"{path}-{segment}.{SUFFIX[kind]}", b"".join(held), "application/octet-stream")

    def has(self, kind: Kind) -> bool:
        """Return True if there is any record of a kind."""
        return any(True for _ in self.files.names(f"{self.run}/{kind}-"))

    def contents(self, kind: Kind) -> list[bytes]:
        """Return the contents of all files of a kind."""
        names = sorted(self.files.names(f"{self.run}/{kind}-"))
        with ThreadPoolExecutor(GETS_IN_FLIGHT) as threads:
            return [content for content in threads.map(self.files.get, names) if content is not None]

    def receipts(self) -> Array:
        """Return the last receipt of each block, sorted by block (`RECEIPT`)."""
        return receipts_in(self.contents("receipts"))

    def lines(self, kind: Literal["ledger", "failed"]) -> Iterator[JsonObject]:
        """Yield records that are lines of JSON; skip truncated lines."""
        for content in self.contents(kind):
            for line in content.splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record

    def put(self, name: str, value: object) -> None:
        """Write a JSON file of the run atomically."""
        self.files.put(f"{self.run}/{name}", json.dumps(value, indent=1).encode(), "application/json")

    def get(self, name: str) -> Any:
        """Return the content of a JSON file of the run; None if there is none."""
        content = self.files.get(f"{self.run}/{name}")
        return None if content is None else json.loads(content)

    def remove(self, name: str = "") -> None:
        """Remove a file of the run, or all of them, the plan last, so that an interrupted removal can be repeated."""
        names = list(self.files.names(f"{self.run}/{name}"))
        last = f"{self.run}/plan.json"
        self.files.delete([file for file in names if file != last])
        self.files.delete([file for file in names if file == last])
        if self.files.folder is not None and not name:
            (self.files.folder / self.run).rmdir()


class _NoFiles(Files):
    """Files that are not kept."""

    __slots__ = ()

    def put(self, name: str, content: bytes, content_type: object = None, compress: object = None) -> None:
        """Keep nothing."""

    def get(self, name: str) -> None:
        """Return None."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """List nothing."""
        return iter(())

    def delete(self, names: Iterable[str]) -> None:
        """Do nothing."""


class NoRecords(Records):
    """Records that are not kept, for targets whose storage has no place for them."""

    __slots__ = ()

    @classmethod
    def of(cls, run: str) -> NoRecords:
        """Return the records of a run."""
        return cls(_NoFiles(""), run)

    @property
    def kept(self) -> bool:
        """Return False."""
        return False

    def append(self, kind: Kind, content: bytes) -> None:
        """Keep nothing."""


def _append(path: Any, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except FileNotFoundError:
        # Do not create the folder here: a task that outlives its run must not restore what the run removed.
        raise FileNotFoundError(f"The records of this run, {path.parent}, are gone.") from None
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)
