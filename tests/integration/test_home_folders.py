"""A path that begins with the home folder of no user is refused wherever a path is given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from imagery_dask import ImageryClient, save_image_slices, to_png, to_precomputed, to_zarr, verify_export
from imagery_dask.cluster import connect
from imagery_dask.export.registry import read_plan
from imagery_dask.export.reports.status import status_of
from imagery_dask.validate import expanded_path

NOBODY = "~no-such-user-here/em"
DATA = da.zeros((4, 4, 4), dtype=np.uint8)
VOXELS: dict[str, Any] = {"resolution_nm": (8, 8, 8), "translation_nm": (4, 4, 4)}


def connected(spec: str) -> None:
    with connect(spec):
        pass


CALLS: dict[str, Callable[[], object]] = {
    "to_zarr": lambda: to_zarr(DATA, NOBODY, progress=False),
    "to_precomputed": lambda: to_precomputed(DATA, NOBODY, progress=False, **VOXELS),
    "to_png": lambda: to_png(DATA, NOBODY, progress=False),
    "to_zarr, with file://": lambda: to_zarr(DATA, f"file://{NOBODY}", progress=False),
    "to_zarr, with a report": lambda: to_zarr(DATA, "memory://here", progress=False, report=f"{NOBODY}.html"),
    "a source": lambda: ImageryClient(image_source=NOBODY).image_volume(),
    "a source, with file://": lambda: ImageryClient(image_source=f"precomputed://file://{NOBODY}").image_volume(),
    "verify_export": lambda: verify_export(NOBODY, progress=False),
    "status": lambda: status_of(NOBODY),
    "a plan": lambda: read_plan(f"{NOBODY}.json"),
    "a cluster file": lambda: connected(f"{NOBODY}.yaml"),
    "a scheduler file": lambda: connected(f"{NOBODY}.json"),
    "save_image_slices": lambda: save_image_slices(NOBODY, "s", np.zeros((4, 4, 1), np.uint8), 2, "imagery"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_home_folder_of_no_user_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"~no-such-user-here, the home folder of a user whom this machine does not"):
        CALLS[name]()
    assert os.listdir(tmp_path) == []


def test_the_home_folder_of_this_user_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded_path("~/em") == f"{tmp_path}/em"
    to_zarr(DATA, "~/out.zarr", progress=False)
    assert (tmp_path / "out.zarr" / "zarr.json").exists()
