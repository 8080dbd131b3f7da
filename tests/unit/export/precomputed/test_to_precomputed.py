"""What follows from dtype, encoding and shapes is refused when an export is made; what is not refused is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from imagery_dask.export.precomputed.precomputed_options import IMAGE_ENCODINGS, LABEL_ENCODINGS, PrecomputedOptions
from imagery_dask.export.precomputed.to_precomputed import PrecomputedExport
from imagery_dask.geometry.grid import region_between
from imagery_dask.storage.atomic_files import Files

PLACE = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20)}
DTYPES = ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32",
          "float64"]  # fmt: skip
ENCODINGS = sorted({*IMAGE_ENCODINGS, *LABEL_ENCODINGS})
SHAPE = (9, 8, 7)


def written(folder: Path, data: Any, **options: Any) -> Any:
    """Return the voxels that are read back, or the error with which the export is refused."""
    try:
        export = PrecomputedExport(data, folder, PrecomputedOptions(**options, **PLACE))
    except (TypeError, ValueError) as error:
        return error
    (layer,) = export.layers
    (store,) = layer.stores(Files.at(str(folder)))
    region = region_between((0, 0, 0), SHAPE)
    store.write(region, np.asfortranarray(data))
    return store.read(region)


@pytest.mark.parametrize("kind", [None, "image", "segmentation"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_and_encoding_is_written_or_refused(tmp_path: Path, dtype: str, kind: Any) -> None:
    for number, (encoding, channels) in enumerate((e, c) for e in [None, *ENCODINGS] for c in (1, 2, 3, 4, 5)):
        voxels = (np.arange(np.prod(SHAPE) * channels) % 2).reshape(*SHAPE, channels).astype(dtype)
        if kind == "image" and np.dtype(dtype).kind == "i":
            voxels = -voxels
        voxels, folder = voxels[..., 0] if channels == 1 else voxels, tmp_path / str(number)
        folder.mkdir()
        result = written(folder, voxels, encoding=encoding, kind=kind, chunks=SHAPE)
        if isinstance(result, Exception):
            assert str(result)
            assert not list(folder.iterdir())
        elif encoding != "jpeg" and encoding != "jxl":
            np.testing.assert_array_equal(result, voxels)


def test_the_common_dtypes_are_not_refused(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32"):
        (folder := tmp_path / dtype).mkdir()
        voxels = np.full(SHAPE, np.iinfo(dtype).min if "int" in dtype else -0.5, dtype)
        np.testing.assert_array_equal(written(folder, voxels, kind="image", chunks=SHAPE), voxels, strict=True)


@pytest.mark.parametrize(
    ("encoding", "dtype", "chunk", "most"),
    [
        ("jpeg", "uint8", (4, 250, 263), (4, 250, 262)),
        ("jpeg", "uint8", (65501, 1, 1), (65500, 1, 1)),
        ("compresso", "uint64", (65536, 1, 1), (65535, 1, 1)),
        ("compresso", "uint64", (1, 1, 65536), (1, 1, 65535)),
    ],
)
def test_chunks_that_an_encoding_cannot_hold_are_refused(
    tmp_path: Path, encoding: str, dtype: str, chunk: Any, most: Any
) -> None:
    def make(shape: Any, **options: Any) -> PrecomputedExport:
        voxels = da.zeros(shape, dtype=dtype, chunks=-1)
        return PrecomputedExport(voxels, tmp_path / "o", PrecomputedOptions(encoding=encoding, **options, **PLACE))

    with pytest.raises(ValueError, match="Choose smaller chunks"):
        make(chunk, chunks=chunk)
    assert make(most, chunks=most)
    # Chunks are no longer than the volume.
    assert make(most, chunks=chunk)
    assert make(chunk, chunks=(4, 4, 4))


@pytest.mark.long
def test_a_chunk_of_too_many_different_ids_names_the_remedy(tmp_path: Path) -> None:
    shape = (256, 256, 128)
    ids = np.asfortranarray(np.arange(1, np.prod(shape) + 1, dtype=np.uint64).reshape(shape))
    export = PrecomputedExport(ids, tmp_path, PrecomputedOptions(chunks=shape, **PLACE))
    (store,) = export.layers[0].stores(Files.at(str(tmp_path)))
    with pytest.raises(OverflowError, match=r"256 x 256 x 128 voxels has more different ids.*smaller chunks"):
        store.write(region_between((0, 0, 0), shape), ids)
