"""Where levels are added, and how many."""

from __future__ import annotations

from pathlib import Path

import pytest
import zarr

from imagery_dask.errors import SourceError
from imagery_dask.export.downsampling.additions import NothingLeft, folder_for, new_levels, writable_location
from imagery_dask.geometry.vec import Vec3
from imagery_dask.storage.targets import StoreTarget


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("precomputed://file:///data/em#1", "/data/em#1"),
        ("zarr3://file:///data/em.zarr", "/data/em.zarr"),
        ("zarr://gs://bucket/em.zarr", "gs://bucket/em.zarr"),
        ("precomputed://s3://bucket/em", "s3://bucket/em"),
    ],
)
def test_volumes_that_can_be_written(path: str, location: str) -> None:
    assert writable_location(path) == location


@pytest.mark.parametrize(
    "path",
    [
        "precomputed://https://host/em",
        "zarr://http://me:pass@host/em.zarr",
        "precomputed://middleauth+https://host/em",
        "graphene://https://host/segmentation/table/t",
    ],
)
def test_volumes_that_can_only_be_read(path: str) -> None:
    with pytest.raises(SourceError, match="can only be read.*its bucket") as caught:
        writable_location(path)
    assert "me:pass" not in str(caught.value)


def test_folders_of_new_levels_are_none_that_are_there(tmp_path: Path) -> None:
    def at(name: str) -> StoreTarget:
        return StoreTarget(tmp_path / name)

    assert folder_for(["8_8_40", "16_16_40"], at) == "downsampled"
    assert folder_for(["0", "downsampled/0", "downsampled/1", "downsampled-3/0"], at) == "downsampled-2"
    assert folder_for(["0", "downsampled/0", "downsampled-2/0"], at) == "downsampled-3"
    zarr.create_array(tmp_path / "downsampled", shape=(4,), dtype="uint8")
    (tmp_path / "downsampled-2").mkdir()
    (tmp_path / "downsampled-2" / "notes.txt").touch()
    assert folder_for(["0"], at) == "downsampled-3"


def test_levels_follow_those_that_are_there() -> None:
    shape, size = Vec3(1030, 600, 300), Vec3(16.0, 16.0, 40.0)
    made = new_levels("em", shape, size, 2, 4)
    assert not isinstance(made, NothingLeft)
    assert [(level.step, level.shape) for level in made] == [((2, 2, 1), (515, 300, 300)), ((2, 2, 2), (258, 150, 150))]
    assert new_levels("em", shape, size, 2, "auto") == made
    for levels in (1, 2):
        nothing = new_levels("em", shape, size, 2, levels)
        assert isinstance(nothing, NothingLeft)
        assert nothing.note == "Nothing is left to do: em has 2 levels."
    nothing = new_levels("em", Vec3(512, 300, 300), size, 3, "auto")
    assert isinstance(nothing, NothingLeft)
    assert nothing.note == "Nothing is left to do: em has 3 levels, and the coarsest is 512 x 300 x 300 voxels."
