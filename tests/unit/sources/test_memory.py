"""malloc keeps freed memory in worker processes, and only if dask's default is in effect."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
import numpy as np
from imagery_dask.sources.memory import keep_freed_memory

changed = keep_freed_memory(instead_of_glibc=GLIBC)
def faults():
    np.ones(2_000_000, dtype="uint8").sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(2_000_000, dtype="uint8").sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(changed, faults())
"""


def run(value: str | None, instead_of_glibc: bool = False) -> tuple[bool, int]:
    environment = {name: text for name, text in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}
    if value is not None:
        environment["MALLOC_TRIM_THRESHOLD_"] = value
    code = COUNT_FAULTS.replace("GLIBC", str(instead_of_glibc))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    changed, faults = done.stdout.split()
    return changed == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc's malloc")
@pytest.mark.parametrize(("value", "instead_of_glibc"), [("65536", False), (None, True)])
def test_buffers_are_reused_where_blocks_are_written(value: str | None, instead_of_glibc: bool) -> None:
    changed, faults = run(value, instead_of_glibc)
    assert changed
    # 50 buffers of 2 MB have 24,000 pages; memory that is kept causes page faults only once.
    assert faults < 5_000


@pytest.mark.parametrize("value", [None, "1000000"])
def test_other_processes_are_not_changed(value: str | None) -> None:
    assert run(value)[0] is False


def test_settings_of_the_user_are_not_changed() -> None:
    assert run("1000000", instead_of_glibc=True)[0] is False
