"""The job of a batch system that runs, or will run, the driver of an export."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from imagery_dask.cluster import DriverJob
from imagery_dask.storage.files import Files

__all__ = ["Driver", "driver_of"]

NAME = "driver.json"


@dataclass(frozen=True, slots=True)
class Driver(DriverJob):
    """A job that was submitted, and when.

    Parameters
    ----------
    submitted : str
        When, ISO 8601; the others are those of `DriverJob`.
    """

    submitted: str

    def write(self, files: Files) -> None:
        """Write the job down among the records of an export."""
        files.put(NAME, json.dumps(asdict(self), indent=1).encode(), "application/json")


def driver_of(files: Files) -> Driver | None:
    """Return the job that was submitted last for an export, or None."""
    content = files.get(NAME)
    try:
        return None if content is None else Driver(**json.loads(content))
    except (ValueError, TypeError):  # cut off by a crash, or of another version
        return None
