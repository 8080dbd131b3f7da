"""Timestamps, resolved to whole seconds once, before any block is computed."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime

import numpy as np

__all__ = ["Moment", "as_unix_seconds", "describe_moment", "resolve_moment"]

Moment = datetime | str | float | int | None


def resolve_moment(value: object, now: float | None = None, name: str = "timestamp") -> int:
    """Return a timestamp in whole seconds; the state of a graph at that second does not change any more.

    Parameters
    ----------
    value : datetime, str, number or None
        A datetime (naive means UTC), an ISO 8601 string, seconds since 1970, ``"now"`` or None, which means now.
    now : float, optional
        Seconds since 1970; by default the current time.
    name : str
        Name of the argument, for errors.

    Returns
    -------
    int
        Seconds since 1970. Fractions are rounded up, as CloudVolume does, so that an edit is visible at its own
        timestamp. "Now" is rounded down, so that all blocks of an export see the same edits.

    Raises
    ------
    TypeError, ValueError
        If `value` is not a timestamp, or lies in the future.
    """
    present = time.time() if now is None else now
    if value is None or (isinstance(value, str) and value.strip().lower() == "now"):
        return math.floor(present)
    seconds = as_unix_seconds(value, name)
    if seconds > present:
        raise ValueError(
            f"{name}={value!r} is in the future: it is {describe_moment(seconds)}, and the current time is "
            f"{describe_moment(present)}. Give a timestamp in the past, or 'now'."
        )
    whole = math.ceil(seconds)
    if now is None and whole > present:
        # Edits may still happen within the current second: wait until it ends.
        time.sleep(whole - present)
    return whole


def as_unix_seconds(value: object, name: str = "timestamp") -> float:
    """Return a datetime, an ISO 8601 string or a number as seconds since 1970.

    Raises
    ------
    TypeError, ValueError
        If `value` is not a timestamp.
    """
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError as error:
            raise ValueError(
                f"{name} must be a date and time such as '2024-05-01T12:00:00Z', or 'now'; got {value!r}."
            ) from error
    if isinstance(value, datetime):
        try:
            value = (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError) as error:  # pandas' NaT, years out of range
            raise ValueError(f"{name} must be a date and time; got {value!r}.") from error
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"{name} must be a datetime, an ISO 8601 string, seconds since 1970 or 'now'; got {value!r} "
            f"({type(value).__name__})."
        )
    seconds = float(value)
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"{name} must be after the beginning of 1970; got {value!r}.")
    return seconds


def describe_moment(seconds: float) -> str:
    """Return seconds since 1970 as an ISO 8601 string in UTC, rounded down to the second."""
    try:
        return datetime.fromtimestamp(math.floor(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} seconds after 1970 (milliseconds, perhaps?)"
