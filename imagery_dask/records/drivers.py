"""The job of a batch system that runs, or will run, the driver of an export."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from imagery_dask.cluster import DriverJob
from imagery_dask.storage.atomic_files import Files

__all__ = ["Driver", "driver_of"]

NAME = "driver.json"


@dataclass(frozen=True, slots=True)
class Driver(DriverJob):
    """A driver's job with the time of its submission."""

    # Time of the submission, ISO 8601.
    submitted: str

    def write(self, files: Files) -> None:
        """Write the job to the records folder of an export."""
        files.put(NAME, json.dumps(asdict(self), indent=1).encode(), "application/json")


def driver_of(files: Files) -> Driver | None:
    """Return the job that was submitted last for an export, or None."""
    content = files.get(NAME)
    try:
        return None if content is None else Driver(**json.loads(content))
    except (ValueError, TypeError, RecursionError):  # truncated by a crash, or written by another version
        return None
