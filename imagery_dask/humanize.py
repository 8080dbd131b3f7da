"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["human_bytes", "human_time"]


def human_bytes(count: float) -> str:
    """Bytes in decimal units, for people."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 1000 or unit == "PB":
            break
        count /= 1000
    return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"


def human_time(seconds: float) -> str:
    """Time in the two units that matter; below 10 s with two digits.

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
