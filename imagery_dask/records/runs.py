"""Runs of exports and their records: folders, the files of a run, and the ledger of missing chunks.

Every process appends its receipts and other records to its own files (`Records`), so that no locks are needed. The
state of a run is one small JSON file (`Run`).
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.config import config
from imagery_dask.records.receipts import receipts_in
from imagery_dask.sources import ReadCounts
from imagery_dask.storage.atomic_files import Files, records_folder, split_prefix
from imagery_dask.storage.buckets import parse_bucket_url

__all__ = [
    "ENDING",
    "FIRST_KEPT",
    "LEDGER",
    "MISSING_CHUNK",
    "PLAN",
    "REFUSED_OR_ABSENT",
    "Kind",
    "NoRecords",
    "Records",
    "Run",
    "incomplete_in",
    "ledger_line",
    "ledger_rows",
    "missing_first",
    "now",
    "record_folders",
    "records_of",
    "refused_or_absent_in",
    "remove_unplanned",
    "runs_in",
    "target_url",
    "time_of",
    "write_ledger",
]

Kind = Literal["receipts", "ledger", "failed"]
SUFFIX = {"receipts": "bin", "ledger": "jsonl", "failed": "jsonl"}
# A segment of receipts has 380 kB at most, a hundredth of a block; a million receipts are 250 segments.
GETS_IN_FLIGHT = 16
PLAN = "plan.json"
ENDING = ".receipts"
# The names of records folders of slices contain what the slices show (`SliceExport.records`).
OF_SLICES = ("imagery", "masks", "labels", "overlay")
SLICES = re.compile(rf"\.(.+)_(?:{'|'.join(OF_SLICES)})\.[0-9a-f]{{8}}{re.escape(ENDING)}")
# Where a run writes, in its file: the target, or a store beside it of this name. No other path is ever read from it.
IN_PLACE = "in place"
INCOMING = re.compile(r"\.[^/]+\.incoming-([^/]+)")
RUN_NAME = re.compile(r"\w[\w.-]*")
# Types of the fields in the file.
FIELDS: dict[str, tuple[type, ...]] = {
    "place": (str,), "created": (str,), "begun": (bool,), "finished": (str, type(None)), "swapping": (bool,),
    "plan": (dict,),
}  # fmt: skip
# Table of missing chunks in the records folder, and the number of its keys that a report names.
LEDGER = "ledger.jsonl"
FIRST_KEPT = 10
# Kinds of its rows.
MISSING_CHUNK, REFUSED_OR_ABSENT = "missing chunk", "refused or absent chunk"
# Fields of its lines; a line that a crash has damaged is left out. Lines of blocks of which the server does not say if
# chunks are missing or refused have a list of these among the missing ones, too.
UNSAID = "refused_or_absent"
LEDGER_FIELDS: dict[str, Any] = {
    "block": int, "name": str, "volume": str, "missing": list, "zero_roots": int,
    "zero_root_ids": list,
}  # fmt: skip


@dataclass(slots=True)
class _Segment:
    """Records that a process puts into a bucket as one object, and again with those that follow."""

    name: str
    held: list[bytes] = field(default_factory=list)
    # How many of them are in the bucket, and when they were put there.
    stored: int = 0
    put: float = field(default_factory=time.monotonic)


_lock = threading.Lock()
_segments: dict[tuple[str, str, str, int], _Segment] = {}
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

    @property
    def removed(self) -> bool:
        """Return True if another run has replaced this one; only looked at on a disk, where that takes no request."""
        return self.files.folder is not None and not (self.files.folder / self.run / PLAN).exists()

    def append(self, kind: Kind, content: bytes, at_once: bool = True) -> None:
        """Append a record; other processes see it when this returns.

        Parameters
        ----------
        kind : str
            Which of the process's files.
        content : bytes
            The record.
        at_once : bool
            False lets other processes see it after `flush`; in a bucket, records are then put together.
        """
        if SUFFIX[kind] == "jsonl":
            content = b"\n" + content  # so that a line truncated by a full disk does not damage the next one
        process = os.getpid()  # a forked process writes its own files
        with _lock:
            name = _names.setdefault(process, f"{socket.gethostname()}-{process}-{uuid4().hex[:8]}")
            path = f"{self.run}/{kind}-{name}"
            if self.files.folder is not None:
                _append(self.files.folder / f"{path}.{SUFFIX[kind]}", content)
                return
            segment = _segments.get(key := (self.files.url, self.run, kind, process))
            if segment is None or len(segment.held) >= config.get("records.segment_records"):
                if segment is not None:
                    self._put(kind, segment)
                segment = _segments[key] = _Segment(f"{path}-{uuid4().hex[:8]}")
            segment.held.append(content)
            if at_once or time.monotonic() - segment.put >= config.get("records.put_s"):
                self._put(kind, segment)

    def flush(self, kind: Kind) -> None:
        """Let other processes see the records that this process has appended."""
        with _lock:
            segment = _segments.get((self.files.url, self.run, kind, os.getpid()))
            if segment is not None:
                self._put(kind, segment)

    def _put(self, kind: Kind, segment: _Segment) -> None:
        if segment.stored < len(segment.held):
            self.files.put(f"{segment.name}.{SUFFIX[kind]}", b"".join(segment.held), "application/octet-stream")
            segment.stored, segment.put = len(segment.held), time.monotonic()

    def has(self, kind: Kind) -> bool:
        """Return True if there is any record of a kind."""
        return any(True for _ in self.files.names(f"{self.run}/{kind}-"))

    def contents(self, kind: Kind) -> Iterator[bytes]:
        """Yield the contents of all files of a kind, of which a few are in memory at a time."""
        names = sorted(self.files.names(f"{self.run}/{kind}-"))
        with ThreadPoolExecutor(GETS_IN_FLIGHT) as threads:
            for first in range(0, len(names), GETS_IN_FLIGHT):
                for content in threads.map(self.files.get, names[first : first + GETS_IN_FLIGHT]):
                    if content is not None:
                        yield content

    def receipts(self, blocks: int | None = None) -> Array:
        """Return the last receipt of each block (`RECEIPT`), sorted by block; if `blocks` is given, of so many."""
        return receipts_in(self.contents("receipts"), blocks)

    def lines(self, kind: Literal["ledger", "failed"]) -> Iterator[JsonObject]:
        """Yield records that are lines of JSON; skip truncated lines."""
        for content in self.contents(kind):
            for line in content.splitlines():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    yield record

    def put(self, name: str, value: object) -> None:
        """Write a JSON file of the run atomically."""
        self.files.put(f"{self.run}/{name}", json.dumps(value, indent=1).encode(), "application/json")

    def get(self, name: str) -> Any:
        """Return the content of a JSON file of the run; None if there is none.

        Raises
        ------
        ValueError
            The file is not JSON.
        """
        content = self.files.get(f"{self.run}/{name}")
        if content is None:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"it is not JSON ({error})"
            raise self.damaged(name, reason) from None

    def damaged(self, name: str, reason: str) -> ValueError:
        """Return the error for a file of the run that cannot be used."""
        if name == PLAN:
            remedy = (
                f"Restore it from a copy, or remove {self.files.url}/{self.run}: the export is then started anew "
                "(overwrite=True, --overwrite where its store exists)."
            )
        else:
            remedy = "Remove it; what it says is found out again (by verify, for damaged.json)."
        return ValueError(f"{self.files.url}/{self.run}/{name} is damaged: {reason.removesuffix('.')}. {remedy}")

    def remove(self, name: str = "") -> None:
        """Remove a file of the run, or all of them, the plan last, so that an interrupted removal can be repeated."""
        names = list(self.files.names(f"{self.run}/{name}"))
        last = f"{self.run}/{PLAN}"
        self.files.delete([file for file in names if file != last])
        self.files.delete([file for file in names if file == last])
        if self.files.folder is not None and not name:
            with suppress(OSError):  # a block of a stopped run has just ended: see `remove_unplanned`
                (self.files.folder / self.run).rmdir()


class _NoFiles(Files):
    """Files that are not kept."""

    __slots__ = ()

    def put(self, name: str, content: object, content_type: object = None, compress: object = None) -> None:
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

    def append(self, kind: Kind, content: bytes, at_once: bool = True) -> None:
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


@dataclass(frozen=True, slots=True)
class Run:
    """A run of an export: its plan, its records and its state.

    Parameters
    ----------
    records : Records
        The records of the run.
    plan : dict
        The plan (`imagery_dask.export.core.plans.ExportPlan` as JSON). Its ``out`` is where the records lie now, so
        that a project that was copied or moved is complete in itself.
    created : str
        Time at which it was started, ISO 8601.
    in_place : bool
        True if it writes to the target; False if to ``.NAME.incoming-RUN`` beside it, which replaces it at the end.
    begun : bool
        True if the empty store exists, so that blocks can be written.
    finished : str or None
        Time at which it was complete, ISO 8601.
    swapping : bool
        True if it was about to replace the target. If its store is no longer beside the target, it did.
    """

    records: Records
    plan: JsonObject
    created: str
    in_place: bool = True
    begun: bool = False
    finished: str | None = None
    swapping: bool = False

    def saved(self, **changes: Any) -> Run:
        """Return the run with changed fields, after writing it to its records."""
        run = replace(self, **changes)
        content = {key: getattr(run, key) for key in FIELDS if key != "place"}
        run.records.put(PLAN, {"place": run._place} | content)
        return run

    @property
    def _place(self) -> str:
        name = target_url(self.records.files).rpartition("/")[2]
        return IN_PLACE if self.in_place else f".{name}.incoming-{self.records.run}"

    @classmethod
    def read(cls, records: Records) -> Run | None:
        """Return the run that its file describes; None if there is no file.

        Raises
        ------
        ValueError
            The file is damaged, or names a place that is not the target of these records.
        """
        content = records.get(PLAN)
        if content is None:
            return None
        if not isinstance(content, dict):
            raise records.damaged(PLAN, "it holds no record of a run")
        for key, kinds in FIELDS.items():
            if not isinstance(content.get(key), kinds):
                raise records.damaged(PLAN, f"{key!r} is {_brief(content.get(key))}")
        plan = content["plan"]
        if not isinstance(plan.get("decides", {}), dict):
            raise records.damaged(PLAN, f"'decides' of its plan is {_brief(plan['decides'])}")
        url = target_url(records.files, of_slices=plan.get("kind") == "png")
        in_place = _is_in_place(records, content["place"], url, str(plan.get("out")))
        fields = {key: content[key] for key in FIELDS if key not in ("place", "plan")}
        return cls(records=records, plan=plan | {"out": url}, in_place=in_place, **fields)


def _is_in_place(records: Records, place: str, url: str, planned: str) -> bool:
    """Return whether a run writes to the target itself, or to a store beside it.

    Version 0.1 recorded absolute paths. Those of its own target are understood wherever the records lie now; they are
    never followed.
    """
    folder, _, name = place.rpartition("/")
    beside = INCOMING.fullmatch(name)
    if place == IN_PLACE or place in (url, planned):
        return True
    if beside is not None and beside[1] == records.run and folder in ("", _parent(url), _parent(planned)):
        return False
    raise records.damaged(
        PLAN,
        f"its place is {place!r}, which is neither {IN_PLACE!r} nor a store beside {url}; nothing there is touched",
    )


def _parent(url: str) -> str:
    return url.rpartition("/")[0]


def _brief(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def target_url(files: Files, of_slices: bool = False) -> str:
    """Return the target of a records folder: what lies beside the folder, under the name without its ending.

    Examples
    --------
    >>> target_url(Files("file:///data/em.zarr.receipts"))
    '/data/em.zarr'
    >>> target_url(Files("s3://bucket/.receipts"))
    's3://bucket'
    >>> target_url(Files("file:///data/.em_imagery.1234abcd.receipts"), of_slices=True)
    'file:///data/em'
    """
    folder, _, name = files.url.rpartition("/")
    if name == ENDING:
        return folder
    if of_slices and (stem := SLICES.fullmatch(name)):
        return f"{folder}/{stem[1]}"
    return f"{folder}/{name.removesuffix(ENDING)}".removeprefix("file://")


def record_folders(url: str) -> Iterator[Files]:
    """Yield the records folders of a target."""
    url = url.removeprefix("precomputed://").rstrip("/")
    if url.endswith(ENDING):
        yield Files.at(url)
        return
    yield records_folder(url)
    try:
        files, stem = split_prefix(url)
    except ValueError:  # the root of a bucket
        return
    for name in sorted(_folder_names(files, stem)):
        yield Files.at(f"{files.url}/{name}")


def _folder_names(files: Files, stem: str) -> set[str]:
    """Return the names of the records folders of slices."""
    if files.folder is not None:
        if not files.folder.is_dir():
            return set()
        return {name for name in os.listdir(files.folder) if _stem(name) == stem}
    # List by prefixes that no picture has, since there may be a million pictures.
    names = (name for what in OF_SLICES for name in files.names(f".{stem}_{what}."))
    return {first for name in names if _stem(first := name.partition("/")[0]) == stem}


def _stem(name: str) -> str | None:
    """Return the stem of slices whose records folder has this name."""
    match = SLICES.fullmatch(name)
    return None if match is None else match[1]


def runs_in(files: Files) -> list[Run]:
    """Return the runs in a records folder, oldest first; ValueError names a file that is damaged."""
    of_plans = (name.partition("/") for name in files.names())
    names = [run for run, _, name in of_plans if name == PLAN and RUN_NAME.fullmatch(run)]
    # Another process may remove a run meanwhile.
    known = [run for name in names if (run := Run.read(Records(files, name))) is not None]
    return sorted(known, key=lambda run: run.created)


def remove_unplanned(files: Files) -> None:
    """Remove the folders of runs that ended before their plan was written, or after it was removed."""
    if files.folder is None or not files.folder.is_dir():
        return
    for folder in files.folder.iterdir():
        if folder.is_dir() and RUN_NAME.fullmatch(folder.name) and not (folder / PLAN).exists():
            files.remove_partial(folder.name)
            for kind in SUFFIX:
                files.delete(list(files.names(f"{folder.name}/{kind}-")))
            with suppress(OSError):  # foreign files
                folder.rmdir()


def now() -> str:
    """Return the current time as ISO 8601, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# ---------------------------------------- the ledger: what the source did not have, for each block


def ledger_line(block: int, name: str, volume: str, counts: ReadCounts) -> bytes | None:
    """Return the line of a block; None if nothing was missing."""
    if not (counts.missing or counts.zero_roots):
        return None
    line = {
        "when": time.time(),
        "block": block,
        "name": name,
        "volume": volume,
        "missing": counts.missing_keys,
        "zero_roots": counts.zero_roots,
        "zero_root_ids": [str(value) for value in counts.zero_root_ids],
    }
    if counts.refused_or_absent:
        line[UNSAID] = counts.refused_or_absent_keys
    return json.dumps(line).encode() + b"\n"


def ledger_rows(lines: Iterable[JsonObject], blocks: Any = None) -> Iterator[JsonObject]:
    """Yield the rows of the table: one for each missing chunk, one for each block that has ids without a root.

    Parameters
    ----------
    lines : iterable of dict
        Lines of all processes. If a block has several, the last one counts.
    blocks : container of int, optional
        Blocks to include; by default all.
    """
    for block, line in _last_lines(lines, blocks):
        block_fields = {"block": block, "name": line["name"], "volume": line["volume"]}
        unsaid = set(map(str, _unsaid(line)))
        for key in sorted(set(map(str, line["missing"]))):
            yield block_fields | {"kind": REFUSED_OR_ABSENT if key in unsaid else MISSING_CHUNK, "key": key}
        if line["zero_roots"]:
            ids = {"supervoxels": line["zero_roots"], "first": line["zero_root_ids"]}
            yield block_fields | {"kind": "zero roots"} | ids


def _last_lines(lines: Iterable[JsonObject], blocks: Any) -> list[tuple[int, JsonObject]]:
    """Return the last line of each block, in their order."""
    whole = [line for line in lines if all(isinstance(line.get(key), kind) for key, kind in LEDGER_FIELDS.items())]
    counted = [line for line in whole if blocks is None or line["block"] in blocks]
    return sorted({line["block"]: line for line in sorted(counted, key=time_of)}.items())


def _unsaid(line: JsonObject) -> list[object]:
    keys = line.get(UNSAID)
    return keys if isinstance(keys, list) else []


def refused_or_absent_in(records: Records, receipts: Array) -> NDArray[np.int64]:
    """Return how many of the missing chunks of each receipt (sorted by block) may have been refused."""
    counts = np.zeros(len(receipts), np.int64)
    # Most runs have none, and need not parse the lines of a million blocks.
    if not receipts["missing"].any() or not any(UNSAID.encode() in content for content in records.contents("ledger")):
        return counts
    for block, line in _last_lines(records.lines("ledger"), incomplete_in(receipts)):
        counts[receipts["block"].searchsorted(np.uint64(block))] = len(_unsaid(line))
    return np.asarray(np.minimum(counts, receipts["missing"]), np.int64)


def time_of(line: JsonObject) -> float:
    """Return when a line was written, in seconds since 1970; 0 where that is damaged."""
    when = line.get("when", 0)
    return float(when) if isinstance(when, (int, float)) else 0.0


def write_ledger(records: Records) -> None:
    """Write the table of a run to the records folder, in the order of the blocks."""
    rows = _rows(records)
    records.files.put(LEDGER, b"".join(json.dumps(row).encode() + b"\n" for row in rows), "application/jsonl")


def missing_first(records: Records) -> dict[str, list[str]]:
    """Return the first missing chunks of each layer, in the order of the blocks."""
    first: dict[str, list[str]] = {}
    for row in _rows(records):
        keys = first.setdefault(row["volume"], [])
        if row["kind"] in (MISSING_CHUNK, REFUSED_OR_ABSENT) and len(keys) < FIRST_KEPT and row["key"] not in keys:
            keys.append(row["key"])
    return first


def incomplete_in(receipts: Array) -> set[int]:
    """Return the numbers of the blocks for which something was missing when they were last written."""
    return set(receipts["block"][(receipts["missing"] > 0) | (receipts["zero_roots"] > 0)].tolist())


def _rows(records: Records) -> Iterator[JsonObject]:
    """Yield the rows of the table of a run; where nothing was ever missing, receipts are not read."""
    lines = list(records.lines("ledger"))
    return ledger_rows(lines, incomplete_in(records.receipts())) if lines else iter(())
