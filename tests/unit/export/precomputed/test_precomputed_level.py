"""Chunks of one label are encoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressed_segmentation
import numpy as np
import pytest

from imagery_dask.export.precomputed import precomputed_level
from imagery_dask.export.precomputed.precomputed_level import PrecomputedLevel
from imagery_dask.storage.atomic_files import Files

LABEL = 2**53 + 1
WHOLE = (slice(0, 64), slice(0, 32), slice(0, 32))


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_chunks_of_one_label_are_encoded_once(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    level = PrecomputedLevel(
        Files.at(tmp_path), "8_8_40", (0, 0, 0), (64, 32, 32), (16, 16, 16), "compressed_segmentation", dtype, 1, None,
        None,
    )  # fmt: skip
    precomputed_level._uniform.cache_clear()  # other tests may have encoded the same chunks
    encoded = []
    compress = compressed_segmentation.compress

    def record(labels: Any, **options: Any) -> Any:
        encoded.append(labels.shape)
        return compress(labels, **options)

    monkeypatch.setattr(compressed_segmentation, "compress", record)
    label = np.dtype(dtype).type(LABEL % 2 ** (8 * np.dtype(dtype).itemsize))
    voxels = np.full((64, 32, 32), label, order="F")
    voxels[40, 20, 20] += 1  # in a chunk whose corners are equal
    voxels[:16] = 0
    digest = level.write(WHOLE, voxels)
    assert len(encoded) == 3  # the two labels, and the chunk of two labels
    np.testing.assert_array_equal(level.read(WHOLE), voxels)
    assert level.digest(WHOLE) == digest
