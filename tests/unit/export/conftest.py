"""Fixtures for the tests of exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient

SHAPE = (64, 64, 32)


@pytest.fixture
def client(tmp_path: Path) -> ImageryClient:
    """Open volumes of two resolutions: 8 and 16 nm along x and y."""
    return ImageryClient(
        image_source=write_volume(tmp_path / "em", coordinate_volume(SHAPE, dtype=np.uint8), resolution=(8, 8, 40)),
        segmentation_source=write_volume(
            tmp_path / "ids", random_labels((32, 32, 32)), resolution=(16, 16, 40), layer_type="segmentation"
        ),
        resolution=(8, 8, 40),
    )
