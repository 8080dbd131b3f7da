"""Limits of a run that a user sets: size of blocks, chunks that may be missing, requests in flight."""

from __future__ import annotations

from typing import Any

from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.validate import number, whole_number

__all__ = ["block_bytes_of", "checked_missing", "checked_requests", "most_missing"]

MIB = 2**20


def checked_missing(value: Any) -> float | int | None:
    """Part of the storage chunks (a float from 0 to 1) or number of them (an int) that may be missing.

    Raises
    ------
    ValueError
        For what is neither.
    """
    if value is None:
        return None
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    share = isinstance(value, float) and 0 <= value <= 1
    if not (number or share):
        raise ValueError(
            f"max_missing is a share of the storage chunks that are read, from 0.0 to 1.0, or a whole number of them; "
            f"got {value!r}."
        )
    return value  # type: ignore[no-any-return]


def checked_requests(value: Any) -> int | None:
    """Check a number of requests in flight to one server."""
    return None if value is None else whole_number("max_requests", value)


def block_bytes_of(block_mib: float | None) -> int | None:
    """Size of blocks in bytes.

    Raises
    ------
    ValueError
        For what is no size.
    """
    if block_mib is None:
        return None
    return max(1, int(number("block_mib", block_mib) * MIB))


def most_missing(value: float | int | None, plan: ExportPlan) -> float | None:
    """How many chunks of a plan may be missing."""
    if isinstance(value, float) and plan.source_chunks is None:
        raise ValueError(
            "max_missing is a share of storage chunks, and how many an array is computed from is not known; give a "
            "whole number of them."
        )
    return value * plan.source_chunks if isinstance(value, float) and plan.source_chunks is not None else value
