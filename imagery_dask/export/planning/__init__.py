"""Estimate what an export takes before it is run: `plan_export`.

May import `export.core` and `export.execution`. Begin with `estimate`, which scales what `sampling` measures on a few
blocks, in a process of their own.
"""

__all__ = ["SAMPLES"]

# Blocks of each volume that are measured by default.
SAMPLES = 3
