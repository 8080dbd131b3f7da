"""Versions that the workers, the scheduler and this process must share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from imagery_dask.annotations import Keywords
from imagery_dask.errors import VersionMismatchError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["PACKAGES", "check_versions", "differing", "own_versions"]

# Packages that determine how blocks are sent and what is in them.
PACKAGES = ("dask", "distributed", "zarr", "numpy", "cloud-volume", "imagery_dask")
# Packages whose versions matter on the scheduler.
SCHEDULER = ("dask", "distributed")
# Addresses that a message lists.
SHOWN = 4


def own_versions() -> dict[str, str]:
    """Return the versions of this process by name: Python's minor version, and `PACKAGES`."""
    return {"python": ".".join(map(str, sys.version_info[:2])), **{name: _version(name) for name in PACKAGES}}


def check_versions(client: Client) -> dict[str, str]:
    """Compare the versions of this process with those of the scheduler and of every worker.

    Returns
    -------
    dict
        Versions of this process by name.

    Raises
    ------
    VersionMismatchError
        If they differ; with the packages, the addresses and the remedy.
    """
    own = own_versions()
    # A worker answers this without imports; this package may be missing there.
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
            "them (pip freeze here, pip install -r there), and restart the workers."
        )
    return own


def differing(theirs: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """Return a description of each version that differs: ``"zarr 3.0.1 (here 3.1.0)"``."""
    return [f"{name} {other} (here {own[name]})" for name, other in theirs.items() if other != own[name]]


def _read(answer: Keywords, names: Iterable[str]) -> dict[str, str]:
    packages = answer["packages"]
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"python": python, **{name: str(packages.get(name) or "missing") for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
