"""What a review found: levels without data, foreign folders, encodings that cannot be read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from support.volumes import write_volume

from imagery_dask import ImageryClient, to_precomputed, to_zarr
from imagery_dask.cli.main import commands

PLACE: dict[str, Any] = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20)}


def test_levels_of_the_source_leave_placeholders_out(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(1, 2**60, size=(32, 32, 16), dtype=np.uint64)
    segmentation = write_volume(tmp_path / "seg", ids, layer_type="segmentation", mips=3, placeholder_mip=True)
    image = write_volume(tmp_path / "em", np.ones((64, 64, 16), np.uint8), resolution=(4, 4, 40), mips=2)
    client = ImageryClient(image_source=image, segmentation_source=segmentation)
    data = client.dataset([[0, 0, 0], [64, 64, 16]], image_mip=0, segmentation_mip=1)
    report = to_zarr(data, tmp_path / "o.zarr", levels="source", progress=False)
    levels = dict(zarr.open_group(tmp_path / "o.zarr", path="labels/segmentation", mode="r").arrays())
    assert [levels[name].shape for name in sorted(levels)] == [(16, 64, 64), (16, 16, 16), (16, 8, 8)]
    assert all((np.asarray(level[...]) != 0).all() for level in levels.values())
    assert report.counts.missing == 0


@pytest.mark.parametrize("folder", ["2024", "c"])
def test_a_zarr_store_with_a_foreign_folder_is_not_replaced(tmp_path: Path, folder: str) -> None:
    to_zarr(np.ones((8, 8, 8), np.uint8), tmp_path / "o.zarr", progress=False)
    foreign = tmp_path / "o.zarr" / folder / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds '{folder}'"):
        to_zarr(np.ones((8, 8, 8), np.uint8), tmp_path / "o.zarr", overwrite=True, progress=False)
    assert foreign.read_text() == "mine"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_that_zarr_wrote_is_replaced(tmp_path: Path, zarr_format: Any) -> None:
    encoding = {"name": "v2", "separator": "."} if zarr_format == 2 else None
    zarr.create_array(
        tmp_path / "o.zarr", data=np.ones((8, 8, 8)), chunks=(4, 4, 4), zarr_format=zarr_format,
        chunk_key_encoding=encoding,
    )  # fmt: skip
    to_zarr(np.ones((8, 8, 8), np.uint8), tmp_path / "o.zarr", overwrite=True, progress=False)


@pytest.mark.parametrize("folder", ["image", "segmentation"])
def test_a_precomputed_volume_with_a_foreign_folder_is_not_replaced(tmp_path: Path, folder: str) -> None:
    to_precomputed(np.ones((8, 8, 8), np.uint8), tmp_path / "o", progress=False, **PLACE)
    foreign = tmp_path / "o" / folder / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds '{folder}'"):
        to_precomputed(np.ones((8, 8, 8), np.uint8), tmp_path / "o", overwrite=True, progress=False, **PLACE)
    assert foreign.read_text() == "mine"


@pytest.mark.parametrize("encoding", ["compressed_segmentation", "compresso", "crackle"])
def test_ids_of_several_channels_are_refused_by_encodings_of_one(tmp_path: Path, encoding: str) -> None:
    ids = np.ones((8, 8, 8, 3), np.uint64)
    with pytest.raises(ValueError, match=f"{encoding} cannot hold uint64 with 3 channels"):
        to_precomputed(ids, tmp_path / "o", encoding=encoding, progress=False, **PLACE)
    assert not (tmp_path / "o").exists()
    to_precomputed(ids, tmp_path / "o", progress=False, **PLACE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoding": "jpeg", "quality": -5}, "quality of jpeg must be a whole number from .* to 100"),
        ({"encoding": "png", "quality": 50}, "quality of png must be a whole number from .* to 9"),
        ({"encoding": {"imagery": "jpeg"}}, "encoding names .*imagery"),
    ],
)
def test_options_are_refused_before_anything_is_written(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_precomputed(np.ones((8, 8, 8), np.uint8), tmp_path / "o", progress=False, **PLACE, **options)
    assert not (tmp_path / "o").exists()


def test_voxels_of_another_byte_order_are_written(tmp_path: Path) -> None:
    voxels = np.arange(512, dtype=">u2").reshape(8, 8, 8)
    to_zarr(voxels, tmp_path / "o.zarr", levels=2, progress=False)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(tmp_path / "o.zarr", path="0", mode="r")[...]).T, voxels)


def test_the_command_line_writes_small_ids(tmp_path: Path) -> None:
    source = write_volume(tmp_path / "seg", np.ones((16, 16, 16), np.uint16), layer_type="segmentation")
    bounds = [str(value) for value in (0, 0, 0, 16, 16, 16)]
    arguments = ["export", "precomputed", str(tmp_path / "o"), "--segmentation-source", source, "--bounds", *bounds]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
