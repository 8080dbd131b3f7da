"""Whether client and workers run the same packages: blocks are pickled by one and computed by the others."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from distributed import Client

from imagery_dask.errors import VersionMismatchError

__all__ = ["PACKAGES", "check_versions", "differing", "own_versions"]

# Those that decide how blocks travel, and what is in them.
PACKAGES = ("dask", "distributed", "zarr", "numpy", "cloud-volume", "imagery_dask")
SCHEDULER = ("dask", "distributed")
SHOWN = 4


def own_versions() -> dict[str, str]:
    """Versions of this process: Python's minor version, and `PACKAGES`."""
    return {"python": ".".join(map(str, sys.version_info[:2])), **{name: _version(name) for name in PACKAGES}}


def check_versions(client: Client) -> dict[str, str]:
    """Compare the versions of this process with those of the scheduler and of every worker.

    Returns
    -------
    dict
        Versions of this process.

    Raises
    ------
    VersionMismatchError
        Which package, on which worker, and the remedy.
    """
    own = own_versions()
    # dask answers this without importing anything; a worker may not have this package at all.
    answers = client.get_versions(packages=list(PACKAGES))
    problems = {}
    if wrong := differing(_read(answers["scheduler"], SCHEDULER), own):
        problems["the scheduler"] = wrong
    for address, answer in answers["workers"].items():
        if answer and (wrong := differing(_read(answer, PACKAGES), own)):
            problems[f"worker {address}"] = wrong
    if problems:
        shown = "; ".join(f"{where}: {', '.join(wrong)}" for where, wrong in list(problems.items())[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise VersionMismatchError(
            f"The cluster runs other versions than this process: {shown}{more}. Install the same environment on all of "
            "them (pip freeze here, pip install -r there), and start the workers anew."
        )
    return own


def differing(theirs: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Say which versions differ."""
    return [f"{name} {found} (here {own[name]})" for name, found in theirs.items() if found != own[name]]


def _read(answer: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    packages = answer["packages"]
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"python": python, **{name: str(packages.get(name) or "missing") for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
