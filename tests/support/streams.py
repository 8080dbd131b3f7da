"""Helpers for the output of the command line."""

from __future__ import annotations

import re


def without_dashboard(error: str) -> str:
    """Return stderr without the line with the dashboard's URL, whose port varies."""
    return re.sub(r"^dashboard: http://\S+\n", "", error, count=1, flags=re.MULTILINE)
