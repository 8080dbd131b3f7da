"""Change settings of the program for one test, by their names in `imagery_dask.config`."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Configure"]

Configure = Callable[[str, object], None]
