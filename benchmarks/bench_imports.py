"""CPU seconds (user and system) of whole processes that import the package: medians of five runs.

Run with ``python benchmarks/bench_imports.py``.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

CLI = "import sys; sys.argv[0] = 'imagery-dask'; from imagery_dask.cli import main; main()"
CASES = {
    "import click, rich": ["import click, rich"],
    "import imagery_dask": ["import imagery_dask"],
    "imagery-dask --help": [CLI, "--help"],
    "imagery-dask export zarr --help": [CLI, "export", "zarr", "--help"],
    "from imagery_dask import ImageryClient": ["from imagery_dask import ImageryClient"],
}


def cpu_s(arguments: list[str]) -> float:
    """Return the CPU seconds of a new interpreter that runs a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    for name, arguments in CASES.items():
        print(f"{statistics.median(cpu_s(arguments) for _ in range(5)):6.2f} s  {name}")
