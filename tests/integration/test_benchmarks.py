"""The benchmarks can be imported, so the names that they use exist in the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.long
def test_every_benchmark_imports() -> None:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    assert "bench_resume" in names
    script = (
        "import importlib, pydoc, sys\n"
        "modules = {name: importlib.import_module(name) for name in sys.argv[1:]}\n"
        "for functions in modules['bench_resume'].COSTS.values():\n"  # which it finds by name when it runs
        "    assert all(map(pydoc.locate, functions)), functions\n"
    )
    subprocess.run([sys.executable, "-c", script, *names], cwd=BENCHMARKS, check=True, timeout=200)
