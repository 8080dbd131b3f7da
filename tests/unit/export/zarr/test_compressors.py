"""Codecs are named with their level, and are those of zarr v2 and v3."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tensorstore
import zarr

from imagery_dask import to_zarr
from imagery_dask.export.zarr.compressors import CODECS, Compressor
from imagery_dask.export.zarr.zarr_options import ZarrOptions

VOXELS = (np.arange(64**3, dtype=np.uint64).reshape(64, 64, 64) // 300 + 2**60) * (np.arange(64) > 20)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("level", ["", *(f":{level}" for level in (1, 9))])
@pytest.mark.parametrize(("version", "zarr_format"), [("0.5", 3), ("0.4", 2)])
def test_stores_of_every_codec_are_read_by_zarr_and_tensorstore(
    tmp_path: Path, name: str, level: str, version: Literal["0.4", "0.5"], zarr_format: Literal[2, 3]
) -> None:
    to_zarr(
        VOXELS, tmp_path / "out", chunks=(32, 32, 32), codec=name + level, ome_version=version, progress=False,
        resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20),
    )  # fmt: skip
    array: Any = zarr.open_array(tmp_path / "out", path="0", mode="r")
    np.testing.assert_array_equal(array[...].T, VOXELS)
    assert [named(codec) for codec in array.compressors] == [named(Compressor.parse(name + level).of_zarr(zarr_format))]  # type: ignore[union-attr]
    store = {"driver": "zarr" if zarr_format == 2 else "zarr3", "kvstore": f"file://{tmp_path}/out/0/"}
    np.testing.assert_array_equal(tensorstore.open(store).result().read().result().T, VOXELS)


def named(codec: Any) -> dict[str, Any]:
    """Return what a store says of a codec, without the size of its voxels, which zarr adds."""
    said = codec.get_config() if hasattr(codec, "get_config") else codec.to_dict()["configuration"]
    return {"class": type(codec).__name__} | {name: value for name, value in said.items() if name != "typesize"}


def test_higher_levels_are_smaller(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    voxels = np.repeat(rng.integers(0, 60, (64, 64, 16), dtype=np.uint8), 4, axis=2)
    sizes = []
    for level in (1, 19):
        to_zarr(voxels, tmp_path / str(level), codec=f"zstd:{level}", shards=None, progress=False)
        sizes.append(
            sum(file.stat().st_size for file in (tmp_path / str(level) / "0" / "c").rglob("*") if file.is_file())
        )
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    "text", ["", "lz5", "none:1", "zstd:", "zstd:0", "zstd:23", "gzip:10", "blosc-lz4:x", "zstd:1:2", "auto:1"]
)
def test_codecs_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="codec"):
        ZarrOptions(codec=text)
