"""The type of the `configure` fixture, which changes settings of `imagery_dask.config` for one test."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Configure"]

Configure = Callable[[str, object], None]
