"""Format and parse sizes and times for people: ``1.54 MB``, ``2 min 5 s``."""

from __future__ import annotations

import math
import re

__all__ = [
    "human_bytes",
    "human_count",
    "human_share",
    "human_time",
    "printable",
    "size_in_bytes",
    "size_or_zero",
    "time_in_seconds",
]


def human_bytes(count: float) -> str:
    """Return a number of bytes in decimal units.

    Examples
    --------
    >>> human_bytes(512), human_bytes(1_536_000)
    ('512 B', '1.54 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 1000 or unit == "PB":
            break
        count /= 1000
    return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"


def human_count(count: int) -> str:
    """Return a count in digits, or in millions, billions or trillions.

    Examples
    --------
    >>> human_count(65_536), human_count(4_294_967_296)
    ('65,536', '4.29 billion')
    """
    for unit, size in (("trillion", 10**12), ("billion", 10**9), ("million", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


def human_share(share: float) -> str:
    """Return a part of a whole in percent.

    Examples
    --------
    >>> human_share(0.95), human_share(0.0001)
    ('95%', '0.01%')
    """
    return f"{100 * share:.3g}%"


def human_time(seconds: float) -> str:
    """Return a time in its two largest units; below 10 s, in seconds with two digits.

    Examples
    --------
    >>> human_time(0.425), human_time(7.4), human_time(125), human_time(93_600)
    ('0.42 s', '7.4 s', '2 min 5 s', '1 d 2 h')
    """
    if seconds < 9.95:
        return f"{max(0.0, seconds):.2g} s"
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def size_in_bytes(value: object) -> int | None:
    """Parse a size such as ``4GiB`` (4 * 2**30) or ``4G`` (4 * 10**9, as ``4GB``); None if it is not a positive size.

    Cluster files and the command line both use this function.

    Examples
    --------
    >>> size_in_bytes("4G"), size_in_bytes("4GiB"), size_in_bytes("1.5 kB"), size_in_bytes(512), size_in_bytes("much")
    (4000000000, 4294967296, 1500, 512, None)
    """
    from dask.utils import parse_bytes  # here, so that `imagery-dask --help` does not import dask

    number = _number_with_unit(value)
    try:
        size = int(parse_bytes(number)) if number is not None else 0
    except (ValueError, OverflowError):
        return None
    return size if size > 0 else None


def size_or_zero(name: str, given: object) -> int:
    """Parse a size such as ``4GiB``, or 0.

    Raises
    ------
    ValueError
        It is neither; `name` says whose value it is.

    Examples
    --------
    >>> size_or_zero("cache_bytes", "1 MB"), size_or_zero("cache_bytes", "0")
    (1000000, 0)
    """
    if type(given) in (int, str) and str(given).strip() == "0":
        return 0
    size = size_in_bytes(given)
    if size is None:
        raise ValueError(f"{name} must be a size such as 500MB, or a number of bytes from 0; got {given!r}.")
    return size


def time_in_seconds(value: object) -> float | None:
    """Parse a time such as ``30s``, ``10 min`` or ``1 hour``, or a number of seconds; None if it is not above 0.

    Cluster files and the command line both use this function.

    Examples
    --------
    >>> time_in_seconds("10 min"), time_in_seconds("1 hour"), time_in_seconds("90"), time_in_seconds("soon")
    (600.0, 3600.0, 90.0, None)
    """
    from dask.utils import parse_timedelta

    number = _number_with_unit(value)
    if isinstance(number, str):
        # dask reads "m" and "minutes", but not "min", which `human_time` writes.
        number = re.sub(r"\s*mins?$", "m", number, flags=re.IGNORECASE)
    try:
        seconds = float(parse_timedelta(number)) if number is not None else 0.0
    except (ValueError, KeyError, OverflowError):
        return None
    return seconds if 0 < seconds < math.inf else None


def _number_with_unit(value: object) -> str | int | float | None:
    """Return a number, or text that begins with a digit or a point; dask would read "GB" as "1 GB"."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, str):
        text = value.strip()
        return text if re.match(r"[\d.]", text) else None
    return value if math.isfinite(value) else None


def printable(text: str) -> str:
    """Return a text that others have written as one line, in which what cannot be printed is a question mark."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
