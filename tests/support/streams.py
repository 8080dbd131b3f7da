"""What the command line writes."""

from __future__ import annotations

import re


def without_dashboard(error: str) -> str:
    """Give what is on stderr beside the line that says where the dashboard is, on a port that is free."""
    return re.sub(r"^dashboard: http://\S+\n", "", error, count=1, flags=re.MULTILINE)
