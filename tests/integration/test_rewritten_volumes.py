"""A volume that is replaced while processes have it open is read in its new state, or not at all."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from integration.stores import written
from support.volumes import coordinate_volume, delete_chunks, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import SourceError
from imagery_dask.sources import handle


def test_a_new_client_reads_the_new_volume_and_an_old_array_is_an_error(tmp_path: Path) -> None:
    first, second = (
        coordinate_volume((40, 30, 20), dtype=np.uint8),
        coordinate_volume((30, 40, 8), (10, 0, 0), np.uint8),
    )
    path = write_volume(tmp_path / "em", first)
    old = ImageryClient(image_source=path).image_volume()
    np.testing.assert_array_equal(old.to_numpy(), first)
    shutil.rmtree(tmp_path / "em")
    write_volume(tmp_path / "em", second, voxel_offset=(10, 0, 0), chunk_size=(16, 16, 8))
    new = ImageryClient(image_source=path).image_volume()
    assert new.attrs["voxel_offset"] == [10, 0, 0]
    np.testing.assert_array_equal(new.to_numpy(), second)
    with pytest.raises(SourceError, match="has changed"):
        old.data.compute(scheduler="synchronous")


def test_each_client_has_cloudvolumes_of_its_own(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "em", coordinate_volume((40, 30, 20), dtype=np.uint8))
    first, second = (ImageryClient(image_source=path, segmentation_source=None) for _ in range(2))
    first.image_cv.fill_missing = False
    assert first.image_cv is first.image_cv
    assert not first.image_cv.fill_missing
    assert second.image_cv.fill_missing
    assert second.segmentation_cv is None
    both = ImageryClient(image_source=path, segmentation_source=path, as_segmentation=True)
    assert both.image_cv is not both.segmentation_cv
    assert not pickle.loads(pickle.dumps(first)).__dict__["_volumes"]
    shutil.rmtree(tmp_path / "em")
    write_volume(tmp_path / "em", coordinate_volume((20, 10, 8), dtype=np.uint8))
    assert ImageryClient(image_source=path).image_cv.shape[:3] == (20, 10, 8)


def test_workers_that_have_the_old_volume_open_read_the_new_one(
    tmp_path: Path, processes: Client, small_blocks: int
) -> None:
    del small_blocks
    for number, chunk in enumerate([(32, 32, 16), (16, 16, 8)]):
        data = coordinate_volume((70, 60, 30), dtype=np.uint8) + np.uint8(number)
        shutil.rmtree(tmp_path / "em", ignore_errors=True)
        path = write_volume(tmp_path / "em", data, chunk_size=chunk)
        out = tmp_path / f"out{number}.zarr"
        report = to_zarr(ImageryClient(image_source=path).image_volume(), out, cluster=processes, progress=False)
        assert report.counts.missing == 0
        np.testing.assert_array_equal(written(out), data)


def test_missing_chunks_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = coordinate_volume((64, 64, 32), dtype=np.uint8)
    path = write_volume(tmp_path / "em", data)
    delete_chunks(path, 0, lambda start: start[0] == 32)
    handle._warned.clear()
    with caplog.at_level(logging.WARNING, logger="imagery_dask"):
        voxels = ImageryClient(image_source=path).image_volume().data.compute()
        ImageryClient(image_source=path).image_volume().data.compute()
    assert not voxels[32:].any()
    (record,) = caplog.records
    assert "8_8_40/32-64_0-32_0-16" in record.getMessage()
    assert path in record.getMessage()
