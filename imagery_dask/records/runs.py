"""Which runs have written to a store, and how far each came."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from imagery_dask.records.journal import Records
from imagery_dask.storage.files import Files

__all__ = ["Run", "now", "remove_unplanned", "runs_in"]

PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Run:
    """A run: what it writes, and where.

    Parameters
    ----------
    records : Records
        Its records.
    place : str
        Where it writes: the store itself, or one beside it that takes its place in the end.
    plan : dict
        What it writes (`imagery_dask.export.core.plans.ExportPlan` as JSON).
    created : str
        When it was started, ISO 8601.
    begun : bool
        Whether there is an empty store, so that blocks can be written.
    finished : str or None
        When all of it was there.
    swapping : bool
        Whether it was about to take its place: when it is not beside any more, it has.
    """

    records: Records
    place: str
    plan: dict[str, Any]
    created: str
    begun: bool = False
    finished: str | None = None
    swapping: bool = False

    def saved(self, **changes: Any) -> Run:
        """Write down what has changed."""
        run = replace(self, **changes)
        content = {name: getattr(run, name) for name in ("place", "created", "begun", "finished", "swapping", "plan")}
        run.records.put(PLAN, content)
        return run


def runs_in(files: Files) -> list[Run]:
    """List the runs whose records are in a folder, oldest first."""
    names = [name for name in files.names() if name.endswith(f"/{PLAN}")]
    records = [Records(files, name.partition("/")[0]) for name in names]
    # One that is removed meanwhile is none.
    found = [(each, plan) for each in records if (plan := each.get(PLAN)) is not None]
    return sorted((Run(records=each, **plan) for each, plan in found), key=lambda run: run.created)


def remove_unplanned(files: Files) -> None:
    """Remove folders of runs that ended before their plan was written, or after it was removed; nothing is in them."""
    if files.folder is None or not files.folder.is_dir():
        return
    for folder in files.folder.iterdir():
        if folder.is_dir() and not (folder / PLAN).exists():
            files.remove_partial(folder.name)
            with suppress(OSError):  # something is in it
                folder.rmdir()


def now() -> str:
    """Return this moment as ISO 8601, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
