"""Count the modules of imagery_dask that one call passes through, and its moves between modules.

``python -m benchmarks.count_modules`` makes a small volume and traces two calls on the driver: a cutout, and an export
of one block with `to_zarr` on threads of this process. A *module* counts if one of its functions runs on any thread,
including those of the block. A *move* is a call from a function of one module to a function of another, directly or
through other packages, on the driver's thread before the first block. Code that runs at import, generators
that are resumed (as at the end of a context manager), generator expressions that another module consumes, and the
arithmetic of `Vec3` are not moves.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
from cloudvolume import CloudVolume

import imagery_dask
from imagery_dask import ImageryClient, to_zarr
from imagery_dask.run.block import run_batch  # noqa: F401 (so that its import is not traced)

PACKAGE = str(Path(imagery_dask.__file__).parent)
ARITHMETIC = "geometry.vec"
NO_CALLS = {"<module>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<lambda>"}


class Traced:
    """Counts of a traced call."""

    def __init__(self) -> None:
        self.modules: Counter[str] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        self.submitted = False
        self.thread = 0
        # Frames of generators that were called; references keep them from being reused for other calls.
        self.generators: set[FrameType] = set()

    def run(self, call: Callable[[], object]) -> Traced:
        """Trace a call on this thread."""
        self.thread = threading.get_ident()
        threading.setprofile(self._on_event)  # for threads that start from now on
        sys.setprofile(self._on_event)
        try:
            call()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
        return self

    def _on_event(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call":
            return
        module = _module(frame)
        if module in (None, ARITHMETIC) or frame.f_code.co_name in NO_CALLS:
            return
        self.modules[module] += 1
        if module == "run.window" and frame.f_code.co_name == "_submit":
            self.submitted = True
        if self.submitted or threading.get_ident() != self.thread or frame in self.generators:
            return
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            self.generators.add(frame)
        caller = frame.f_back
        while caller is not None and _module(caller) in (None, ARITHMETIC):
            caller = caller.f_back
        origin = None if caller is None else _module(caller)
        if origin is not None and origin != module and caller is not None and caller.f_code.co_name != "<module>":
            self.moves[origin, module] += 1

    def to_json(self) -> dict[str, int]:
        """Return the numbers of modules, moves, and pairs of modules."""
        return {"modules": len(self.modules), "moves": sum(self.moves.values()), "pairs": len(self.moves)}


def _module(frame: FrameType) -> str | None:
    """Return the name of the frame's module within the package, or None."""
    name = frame.f_code.co_filename
    if not name.startswith(PACKAGE):
        return None
    return name[len(PACKAGE) + 1 :].removesuffix(".py").removesuffix("/__init__").replace("/", ".") or "__init__"


def count(folder: Path) -> dict[str, Traced]:
    """Trace a cutout and an export of one block in an empty folder."""
    source = f"precomputed://file://{folder}/image"
    voxels = np.arange(64**3, dtype=np.uint8).reshape(64, 64, 64)
    CloudVolume.from_numpy(
        voxels, source, resolution=(8, 8, 40), chunk_size=(64, 64, 64), compress=None, progress=False
    )
    bounds = [[0, 0, 0], [64, 64, 64]]

    def cut() -> object:
        return ImageryClient(image_source=source).image_cutout(bounds, mip=0)

    image = cut()
    to_zarr(image, folder / "before.zarr", progress=False)  # do what happens once per process before the trace
    return {
        "cutout": Traced().run(cut),
        "export": Traced().run(lambda: to_zarr(image, folder / "out.zarr", progress=False)),
    }


def main() -> None:
    """Print the counts, and with ``--list`` the modules and moves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the modules, and the moves by number")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counted = count(Path(folder))
    if options.json:
        print(json.dumps({name: traced.to_json() for name, traced in counted.items()}))
        return
    for name, traced in counted.items():
        numbers = traced.to_json()
        print(f"{name}: {numbers['modules']} modules, {numbers['moves']} moves ({numbers['pairs']} pairs of modules)")
        if options.list:
            print("  " + " ".join(sorted(traced.modules)))
            for (origin, module), times in traced.moves.most_common():
                print(f"  {times:4d} {origin} -> {module}")


if __name__ == "__main__":
    main()
