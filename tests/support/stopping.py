"""Stop exports that are under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagery_dask.run import RunReport


class Stopped(Exception):
    """Raised to stop an export."""


def stop(report: RunReport) -> None:
    """Stop an export after three blocks; a callback for `progress`."""
    if report.done >= 3:
        raise Stopped
