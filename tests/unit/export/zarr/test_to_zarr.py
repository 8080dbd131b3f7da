"""What a codec cannot hold is refused when the export is made."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import ZarrOptions


def test_chunks_that_blosc_cannot_hold_are_refused(tmp_path: Path) -> None:
    data, chunks = da.zeros((2048, 1024, 1024), dtype=np.uint8, chunks=256), (2048, 1024, 1024)
    with pytest.raises(ValueError, match=r"2,147,483,648 bytes, and blosc holds .* smaller chunks"):
        ZarrExport(data, tmp_path / "o", ZarrOptions(chunks=chunks, codec="blosc-zstd"))
    assert ZarrExport(data, tmp_path / "o", ZarrOptions(chunks=chunks, codec="zstd"))
    assert ZarrExport(data, tmp_path / "o", ZarrOptions(chunks=(1024, 1024, 1024), codec="blosc-zstd"))


def test_floats_of_more_than_64_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="No format holds"):
        ZarrExport(np.zeros((4, 4, 4), np.longdouble), tmp_path / "o", ZarrOptions())
