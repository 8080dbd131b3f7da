"""CPU seconds (user and system) of whole processes, most of which are imports: medians, and ratios to the first case.

Run with ``python benchmarks/bench_imports.py [--repeats N]``. The cases take turns, so that a change in the load of the
machine affects all of them.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

CLI = "import sys; sys.argv[0] = 'imagery-dask'; from imagery_dask.cli import main; main()"
PLANE = (
    "import sys; import imagery_dask; c = imagery_dask.ImageryClient(image_source=sys.argv[1]); "
    "c.image_cutout([list(map(int, text.split(','))) for text in sys.argv[2:]])[:, :, 3].compute()"
)
SHAPE = (768, 768, 64)


@dataclass(frozen=True)
class Case:
    """A program and its arguments."""

    program: str
    arguments: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)

    def cpu_s(self) -> float:
        """Return the CPU seconds of a new interpreter that runs the program."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", self.program, *self.arguments], check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=os.environ | self.variables,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cases_in(folder: Path) -> dict[str, Case]:
    """Return the cases by name; volumes and an export are written to a folder first."""
    # Imported here: the cases are new processes, and most need neither.
    from imagery_dask import ImageryClient, to_zarr
    from imagery_dask.testing.volume import write_demo_volumes

    volumes = write_demo_volumes(folder / "volumes", SHAPE)
    start = [center - size // 2 for center, size in zip(volumes.center, SHAPE, strict=True)]
    stop = [first + size for first, size in zip(start, SHAPE, strict=True)]
    store = str(folder / "out.zarr")
    client = ImageryClient(image_source=volumes.image_source)
    to_zarr(client.image_cutout([start, [n + 32 for n in start]]), store, progress=False, resolution_nm=(8, 8, 40))
    completion = {"_IMAGERY_DASK_COMPLETE": "bash_complete", "COMP_WORDS": "imagery-dask ", "COMP_CWORD": "1"}
    corners = [",".join(map(str, corner)) for corner in (start, stop)]
    return {
        "import click, rich": Case("import click, rich"),
        "import imagery_dask": Case("import imagery_dask"),
        "imagery-dask --help": Case(CLI, ("--help",)),
        "imagery-dask --version": Case(CLI, ("--version",)),
        "imagery-dask export zarr --help": Case(CLI, ("export", "zarr", "--help")),
        "shell completion": Case(CLI, variables=completion),
        "imagery-dask status": Case(CLI, ("status", store)),
        "imagery-dask verify (one worker)": Case(CLI, ("verify", store, "--workers", "1")),
        "import dask.array": Case("import dask.array"),
        "from imagery_dask import ImageryClient": Case("from imagery_dask import ImageryClient"),
        f"first plane of a local volume of {SHAPE}": Case(PLANE, (volumes.image_source, *corners)),
    }


def main() -> None:
    """Measure the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        cases = cases_in(Path(folder))
        for case in cases.values():
            case.cpu_s()  # fills caches
        rounds = [{name: case.cpu_s() for name, case in cases.items()} for _ in range(repeats)]
    medians = {name: statistics.median(seconds[name] for seconds in rounds) for name in cases}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{median:6.3f} s  {median / first:6.2f}  {name}")


if __name__ == "__main__":
    main()
