"""Runs that write, or wrote, to a target: their records and their state."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.records.journal import Records
from imagery_dask.storage.files import Files, records_folder, split_prefix

__all__ = ["Run", "now", "record_folders", "remove_unplanned", "runs_in"]

PLAN = "plan.json"
ENDING = ".receipts"
# The names of records folders of slices contain what the slices show (`SliceExport.records`).
OF_SLICES = ("imagery", "masks", "labels", "overlay")
# Fields of `Run`, by their keys in the file.
KEYS = {name: name for name in ("place", "created", "begun", "finished", "swapping", "plan")} | {"place": "url"}


@dataclass(frozen=True, slots=True)
class Run:
    """A run of an export: its plan, its records and its state.

    Parameters
    ----------
    records : Records
        The records of the run.
    url : str
        Where it writes: the target, or a store beside the target that replaces it at the end.
    plan : dict
        The plan (`imagery_dask.export.core.plans.ExportPlan` as JSON).
    created : str
        Time at which it was started, ISO 8601.
    begun : bool
        True if the empty store exists, so that blocks can be written.
    finished : str or None
        Time at which it was complete, ISO 8601.
    swapping : bool
        True if it was about to replace the target. If its store is no longer beside the target, it did.
    """

    records: Records
    url: str
    plan: JsonObject
    created: str
    begun: bool = False
    finished: str | None = None
    swapping: bool = False

    def saved(self, **changes: Any) -> Run:
        """Return the run with changed fields, after writing it to its records."""
        run = replace(self, **changes)
        content = {key: getattr(run, name) for key, name in KEYS.items()}
        run.records.put(PLAN, content)
        return run


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
    for name in sorted(_names(files, stem)):
        yield Files.at(f"{files.url}/{name}")


def _names(files: Files, stem: str) -> set[str]:
    """Return the names of the records folders of slices."""
    pattern = re.compile(rf"\.{re.escape(stem)}_({'|'.join(OF_SLICES)})\.[0-9a-f]{{8}}{re.escape(ENDING)}")
    if files.folder is not None:
        if not files.folder.is_dir():
            return set()
        return {name for name in os.listdir(files.folder) if pattern.fullmatch(name)}
    # List by prefixes that no picture has, since there may be a million pictures.
    names = (name for what in OF_SLICES for name in files.names(f".{stem}_{what}."))
    return {first for name in names if pattern.fullmatch(first := name.partition("/")[0])}


def runs_in(files: Files) -> list[Run]:
    """Return the runs in a records folder, oldest first."""
    names = [name for name in files.names() if name.endswith(f"/{PLAN}")]
    of_runs = [Records(files, name.partition("/")[0]) for name in names]
    # Another process may remove a run meanwhile.
    written = [(records, plan) for records in of_runs if (plan := records.get(PLAN)) is not None]
    known = [Run(records=records, **{KEYS[key]: value for key, value in plan.items()}) for records, plan in written]
    return sorted(known, key=lambda run: run.created)


def remove_unplanned(files: Files) -> None:
    """Remove the empty folders of runs that ended before their plan was written, or after it was removed."""
    if files.folder is None or not files.folder.is_dir():
        return
    for folder in files.folder.iterdir():
        if folder.is_dir() and not (folder / PLAN).exists():
            files.remove_partial(folder.name)
            with suppress(OSError):  # not empty
                folder.rmdir()


def now() -> str:
    """Return the current time as ISO 8601, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
