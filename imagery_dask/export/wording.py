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
    """Time in the unit that fits."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
