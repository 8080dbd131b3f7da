"""What a codec cannot hold is refused when the export is made; runs of earlier versions keep their shards."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from imagery_dask.export.zarr.to_zarr import ZarrExport, zarr_export
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


@pytest.mark.parametrize("regions", [False, True])
def test_runs_that_earlier_versions_began_keep_their_shards(tmp_path: Path, regions: bool) -> None:
    data = da.zeros((1024, 1024, 256), dtype=np.uint8, chunks=256)
    options = ZarrOptions(
        chunks=(128, 128, 128), shards=(512, 512, 128), levels=3, codec="zstd", resolution_nm=(8, 8, 40)
    )
    export = zarr_export({"a": data, "b": data} if regions else data, tmp_path / "o", options)
    field = f"{'a/' if regions else ''}image level 1 shard"
    assert export.fingerprint_fields[field] == [256, 256, 128]
    (before,) = export.earlier()
    assert before.fingerprint_fields[field] == [512, 512, 128]
    assert export.as_begun([before.fingerprint_fields]).fingerprint_fields == before.fingerprint_fields
    assert export.as_begun([export.fingerprint_fields]) is export
