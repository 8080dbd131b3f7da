"""Runs that have written to a target: where their records are, and how far they came."""

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
# The records of slices are named after what these show, too: `SliceExport.records`.
OF_SLICES = ("imagery", "masks", "labels", "overlay")
# Keys of the file, and the fields of `Run` that they hold.
KEYS = {name: name for name in ("place", "created", "begun", "finished", "swapping", "plan")} | {"place": "url"}


@dataclass(frozen=True, slots=True)
class Run:
    """A run of an export: what it writes, and where.

    Parameters
    ----------
    records : Records
        Its records.
    url : str
        Where it writes: the target, or a store beside it that replaces the target in the end.
    plan : dict
        What it writes (`imagery_dask.export.core.plans.ExportPlan` as JSON).
    created : str
        When it was started, ISO 8601.
    begun : bool
        Whether the empty store exists, so that blocks can be written.
    finished : str or None
        When it was complete.
    swapping : bool
        Whether it was about to replace the target: if its store is not beside the target any more, it has.
    """

    records: Records
    url: str
    plan: JsonObject
    created: str
    begun: bool = False
    finished: str | None = None
    swapping: bool = False

    def saved(self, **changes: Any) -> Run:
        """Change fields, and write the run down."""
        run = replace(self, **changes)
        content = {key: getattr(run, name) for key, name in KEYS.items()}
        run.records.put(PLAN, content)
        return run


def record_folders(url: str) -> Iterator[Files]:
    """List the records folders of a target."""
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
    """Names of the records folders of slices."""
    pattern = re.compile(rf"\.{re.escape(stem)}_({'|'.join(OF_SLICES)})\.[0-9a-f]{{8}}{re.escape(ENDING)}")
    if files.folder is not None:
        if not files.folder.is_dir():
            return set()
        return {name for name in os.listdir(files.folder) if pattern.fullmatch(name)}
    # By prefixes that no picture has: there may be a million pictures.
    names = (name for what in OF_SLICES for name in files.names(f".{stem}_{what}."))
    return {first for name in names if pattern.fullmatch(first := name.partition("/")[0])}


def runs_in(files: Files) -> list[Run]:
    """List the runs whose records are in a folder, oldest first."""
    names = [name for name in files.names() if name.endswith(f"/{PLAN}")]
    of_runs = [Records(files, name.partition("/")[0]) for name in names]
    # A run may be removed meanwhile.
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
