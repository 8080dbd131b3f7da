"""Metadata files of a store, without which its chunks cannot be read: kept among the records, compared and restored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.records.lease import NoLease
from imagery_dask.records.runs import target_url
from imagery_dask.serialization import json_object
from imagery_dask.storage.atomic_files import Files, flush
from imagery_dask.storage.store_files import ROOT_IDS

if TYPE_CHECKING:
    from imagery_dask.export.core.base import Export
    from imagery_dask.run import Workers

__all__ = ["LOST", "damaged_metadata", "keep_metadata", "restore_metadata"]

# Contents of the metadata files, by name.
COPY = "metadata.json"
# Files that a store has in any case; others are known from the copy.
NEEDED = {"zarr.json", ".zgroup", ".zarray", "info"}
# Reasons for which a file is written again without a repair.
LOST = GONE, EMPTY, UNREADABLE = "it is gone", "it is empty", "it is not JSON"
# What a user may change afterwards.
FREE = {"attributes", "consolidated_metadata"}


def keep_metadata(export: Export, run: StartedRun) -> None:
    """Write the metadata files of a store to disk for good, and copy them to the records."""
    if not run.records.kept:
        return
    files = export.metadata_files(run.url)
    contents = {name: files.get(name) for name in export.metadata_names()}
    # Of tables of compact ids, which may be large, the records have a copy already.
    there = {name: _kept_of(name, content) for name, content in contents.items() if content}
    flush(files, there)
    run.records.put(COPY, there)


def damaged_metadata(export: Export, run: StartedRun) -> dict[str, str]:
    """Return the metadata files that are not as written, and what is wrong with each.

    Other attributes than those that were written are no damage.
    """
    files, kept = export.metadata_files(run.url), _kept(run)
    if kept is None:  # a run of version 0.1
        needed = [name for name in export.metadata_names() if name.rpartition("/")[2] in NEEDED]
        wrong = {name: _damage(name, files.get(name), None) for name in needed}
    else:
        wrong = {name: _damage(name, files.get(name), content) for name, content in kept.items()}
    return {name: reason for name, reason in wrong.items() if reason is not None}


def restore_metadata(export: Export, run: StartedRun, workers: Workers, damaged: Mapping[str, str]) -> None:
    """Write metadata files again, from the copy or, if there is none, from the plan."""
    kept = _kept(run)
    contents = _made_again(export, run, workers) if kept is None else {name: kept[name].encode() for name in damaged}
    files = export.metadata_files(run.url)
    tables = [name for name in damaged if name.endswith(ROOT_IDS)]
    for name in damaged:
        if name in contents and name not in tables:
            files.put(name, contents[name])
    if tables:
        export.put_tables(run)


def _kept_of(name: str, content: bytes) -> str:
    """Return what is kept of a metadata file: its text, or the hash of a table of compact ids."""
    return hashlib.sha256(content).hexdigest() if name.endswith(ROOT_IDS) else content.decode()


def _kept(run: StartedRun) -> dict[str, str] | None:
    kept = run.records.get(COPY)
    return kept if isinstance(kept, dict) and all(isinstance(text, str) for text in kept.values()) else None


def _made_again(export: Export, run: StartedRun, workers: Workers) -> dict[str, bytes]:
    """Make the empty store of a run once more, among its records; return its files."""
    folder = target_url(Files(f"{run.records.files.url}/{run.id}/empty-store"))
    copy = export.copied_to(folder)
    started = StartedRun(copy.target, replace(run.record, in_place=True), run.plan, NoLease())
    try:
        copy.create(started, workers)
        files = copy.metadata_files(folder)
        return {name: content for name in copy.metadata_names() if (content := files.get(name))}
    finally:
        with suppress(OSError):
            copy.target.clear(folder)


def _damage(name: str, content: bytes | None, kept: str | None) -> str | None:
    """Return what is wrong with a file, or None."""
    if content is None:
        return GONE
    if not content.strip():
        return EMPTY
    if name.endswith(ROOT_IDS):
        return None if kept is None or _kept_of(name, content) == kept else "it is not as it was written"
    if name.endswith(".csv"):
        return None if kept is None or content == kept.encode() else "it is not as it was written"
    now = json_object(content)
    if now is None:
        return UNREADABLE
    before = {} if kept is None else json_object(kept.encode()) or {}
    other = [key for key in before if not _agrees(name, key, before[key], now.get(key))]
    return f"it says other things of {', '.join(map(repr, other[:3]))}" if other else None


def _agrees(name: str, key: str, before: Any, now: Any) -> bool:
    if name.endswith((".zattrs", "provenance")):
        return now is not None
    if key in FREE:
        return not isinstance(before, dict) or (isinstance(now, dict) and before.keys() <= now.keys())
    if key == "scales" and isinstance(now, list):  # further mips may have been added
        return bool(now[: len(before)] == before)
    return bool(now == before)
