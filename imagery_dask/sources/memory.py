"""Memory settings of processes that write blocks.

dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``: every freed buffer is returned to the system, and the next
buffer of the same size is faulted in again, page by page, which is much of the time of a read. glibc's own settings do
so for buffers of some megabytes. The settings here let a process keep the memory of a few blocks instead.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
DASK_DEFAULT = "65536"
LARGEST_KEPT = 32 * 2**20  # glibc's maximum
FREE_KEPT = 128 * 2**20


def keep_freed_memory(*, instead_of_glibc: bool = False) -> bool:
    """Keep up to 128 MiB of freed memory in this process, if it has dask's default settings.

    Parameters
    ----------
    instead_of_glibc : bool
        Also if it has those of glibc.

    Returns
    -------
    bool
        True if the settings were changed, which needs one of these defaults and glibc.
    """
    own = os.environ.get("MALLOC_TRIM_THRESHOLD_", DASK_DEFAULT if instead_of_glibc else "")
    if own != DASK_DEFAULT or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, FREE_KEPT))
