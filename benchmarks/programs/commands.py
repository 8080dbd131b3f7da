"""Whole processes: imports, commands of the command line, and small scripts."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def load(source: str, modules: list[str]) -> None:
    """Import modules."""
    for module in modules:
        importlib.import_module(module)


def names(source: str) -> None:
    """Import a name of this package that is found when it is asked for."""
    from imagery_dask import ImageryClient  # noqa: F401


def cli(arguments: list[str], **_: Any) -> None:
    """Run a command."""
    from imagery_dask.cli import main

    sys.argv = ["imagery-dask", *arguments]
    sys.modules["__main__"].__package__ = ""  # of a module, click would take the name for that of the program
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{arguments} ended with {end.code}") from end


def completion(source: str) -> None:
    """Complete a command in a shell."""
    words = {"_IMAGERY_DASK_COMPLETE": "bash_complete", "COMP_WORDS": "imagery-dask ", "COMP_CWORD": "1"}
    os.environ |= words
    try:
        cli([])
    finally:
        for name in words:
            del os.environ[name]


def status(export: str, **_: Any) -> None:
    """Run `imagery-dask status`."""
    cli(["status", export])


def verify(export: str, **_: Any) -> None:
    """Run `imagery-dask verify` on one worker."""
    cli(["verify", export, "--workers", "1"])


def first_plane(source: str, start: list[int], stop: list[int], **_: Any) -> Any:
    """Read one plane of a local volume."""
    from imagery_dask import ImageryClient

    return ImageryClient(image_source=source).image_cutout([start, stop])[:, :, 3].compute()


def small(source: str, start: list[int], stop: list[int], out: str, **_: Any) -> None:
    """Export a box from Python."""
    from imagery_dask import ImageryClient, to_zarr

    cutout = ImageryClient(image_source=source).image_cutout([start, stop])
    to_zarr(cutout, out, chunks=(128, 128, 32), progress=False)


def small_command(source: str, start: list[int], stop: list[int], out: str, **_: Any) -> None:
    """Export a box from the command line."""
    bounds = [str(n) for n in (*start, *stop)]
    where = ["--image-source", source, "--bounds", *bounds, "--resolution", "8", "8", "40"]
    cli(["export", "zarr", out, *where, "--chunks", "128,128,32"])
