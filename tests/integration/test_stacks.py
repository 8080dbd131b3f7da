"""Stacks of TIFF files (docs/how-to/stacks.md): exports of them resume in other processes, by the name of the array."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from support.volumes import coordinate_volume

from imagery_dask import open_export, to_zarr
from imagery_dask.run import RunReport

tifffile = pytest.importorskip("tifffile")

PLACE = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20)}


@contextmanager
def stack(path: Path, **options: Any) -> Iterator[xr.DataArray]:
    with closing(tifffile.imread(path, aszarr=True)) as store:
        pages = zarr.open_array(store, mode="r")
        yield xr.DataArray(da.from_array(pages, chunks=pages.chunks, **options), dims=("z", "y", "x"), name="image")


def test_an_export_of_a_named_stack_is_resumed(tmp_path: Path) -> None:
    planes = coordinate_volume((64, 64, 32), dtype=np.uint16).T
    path, copy = tmp_path / "stack.tif", tmp_path / "copy.tif"
    for file in (path, copy):
        tifffile.imwrite(file, planes, tile=(32, 32), compression="zlib")
    options: dict[str, Any] = {"chunks": (32, 32, 16), "block_mib": 0.01, **PLACE}

    def stop(report: RunReport) -> None:
        if report.done >= 3:
            raise KeyboardInterrupt

    with stack(path, name="stack.tif") as data, pytest.raises(KeyboardInterrupt):
        to_zarr(data, tmp_path / "out.zarr", progress=stop, **options)
    # An array that dask names has another name in each process, as that of another file has.
    with stack(copy) as data, pytest.raises(FileExistsError, match="image array"):
        to_zarr(data, tmp_path / "out.zarr", progress=False, **options)
    with stack(path, name="stack.tif") as data:
        report = to_zarr(data, tmp_path / "out.zarr", progress=False, **options)
    assert (report.ok, report.before >= 3) == (True, True)
    written = open_export(tmp_path / "out.zarr", level=0).image
    np.testing.assert_array_equal(written.transpose("z", "y", "x"), planes)
