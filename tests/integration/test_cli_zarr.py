"""Options of ``imagery-dask export zarr``: levels, shards, codecs, versions, and invalid values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from numpy.typing import NDArray
from ome_zarr_models import v04, v05
from support.streams import without_dashboard
from support.volumes import coordinate_volume, random_labels, write_volume
from support.volumes import downsample as every_other

from imagery_dask.cli import main
from imagery_dask.kernels import downsample

SHAPE = (96, 80, 40)
OFFSET = (-32, -48, 16)
REGION = ("--bounds", -31, -47, 17, 60, 30, 52)
PART = np.s_[1:92, 1:78, 1:36]
IDS = "labels/segmentation/"


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return coordinate_volume(SHAPE, OFFSET, np.uint8)


@pytest.fixture(scope="module")
def ids() -> NDArray[np.uint64]:
    return random_labels(SHAPE, n=30)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, image: Any, ids: Any) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("sources")
    geometry: dict[str, Any] = {"voxel_offset": OFFSET, "resolution": (4.3, 4.3, 13)}
    return (
        "--image-source", write_volume(folder / "image", image, **geometry),
        "--segmentation-source", write_volume(folder / "ids", ids, layer_type="segmentation", **geometry),
        *REGION,
    )  # fmt: skip


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], threads: Client) -> Run:
    """Run the command line in this process, on threads; return exit code and stderr."""

    def call(*arguments: Any) -> tuple[int, str]:
        command = ["imagery-dask", "export", "zarr", *arguments, "--cluster", threads.scheduler_info()["address"]]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), without_dashboard(capfd.readouterr().err)

    return call


def check_levels(out: Path, image: Any, ids: Any, levels: int) -> None:
    """Check that each level is made of the level above, for imagery and labels."""
    for group, source, labels in (("", image, False), (IDS, ids, True)):
        above = source[PART]
        steps = [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]
        for level, step in zip(range(levels), steps, strict=False):
            above = downsample(above, step, labels)  # type: ignore[arg-type]
            stored: Any = zarr.open_array(out, path=f"{group}{level}", mode="r")
            np.testing.assert_array_equal(stored[...].T, above, strict=True)


@pytest.mark.parametrize(
    ("options", "levels", "shards"),
    [
        (("--levels", "auto"), 1, None),
        (("--levels", 4, "--block-mib", 0.1), 4, None),
        (("--levels", 3, "--shards", "64,64,64", "--codec", "zstd", "--block-mib", 1), 3, (64, 64, 64)),
        (("--levels", 2, "--shards", "auto", "--codec", "none"), 2, None),
        (("--levels", 2, "--shards", "none", "--codec", "gzip"), 2, None),
        (("--ome-version", "0.4", "--levels", 3, "--codec", "zstd"), 3, None),
        (("--ome-version", "0.4", "--levels", 2, "--shards", "none"), 2, None),
    ],
    ids=str,
)
def test_options_determine_levels_shards_codec_and_version(
    run: Run, tmp_path: Path, sources: tuple[Any, ...], image: Any, ids: Any, options: Any, levels: int, shards: Any
) -> None:
    out = tmp_path / "out.zarr"
    assert run(out, *sources, "--chunks", "32,32,32", *options) == (0, "")
    check_levels(out, image, ids, levels)
    old = "0.4" in options
    root = zarr.open_group(out, mode="r")
    assert root.metadata.zarr_format == (2 if old else 3)
    assert len(list(root.array_keys())) == levels
    models: Any = v04 if old else v05
    assert models.image.Image.from_zarr(root)
    assert models.image_label.ImageLabel.from_zarr(root["labels/segmentation"])
    first: Any = root["0"]
    assert first.chunks == (32, 32, 32)
    assert (first.shards is not None) == (shards is not None)
    codec_name = dict(zip(options, options[1:], strict=False)).get("--codec", "blosc-zstd")
    names = codecs_of(first)
    assert names.startswith({"blosc-zstd": "blosc", "none": ""}.get(codec_name, codec_name))
    assert bool(names) == (codec_name != "none")
    expected = "zstd" if "--codec" not in options else names  # by default
    assert codecs_of(root["labels/segmentation/0"]).startswith(expected)


def codecs_of(array: Any) -> str:
    return " ".join(type(codec).__name__.lower() for codec in array.compressors)


def test_automatic_levels_end_at_512_voxels(run: Run, tmp_path: Path) -> None:
    voxels = coordinate_volume((1030, 16, 4), dtype=np.uint8)
    source = write_volume(tmp_path / "em", voxels, chunk_size=(512, 16, 4), resolution=(8, 8, 40))
    out = tmp_path / "out.zarr"
    assert run(out, "--image-source", source, "--bounds", 0, 0, 0, 1030, 16, 4, "--levels", "auto") == (0, "")
    shapes = [zarr.open_array(out, path=name, mode="r").shape for name in "012"]
    assert shapes == [(4, 16, 1030), (4, 8, 515), (4, 4, 258)]


def test_levels_of_the_source_are_copied(run: Run, tmp_path: Path, image: Any) -> None:
    source = write_volume(tmp_path / "em", image, voxel_offset=OFFSET, mips=2, resolution=(4.3, 4.3, 13))
    out = tmp_path / "out.zarr"
    bounds = ("--bounds", *OFFSET, *(first + size for first, size in zip(OFFSET, SHAPE, strict=True)))
    assert run(out, "--image-source", source, *bounds, "--levels", "source", "--shards", "64,64,64", "--chunks",
               "32,32,32") == (0, "")  # fmt: skip
    for level in range(2):
        stored: Any = zarr.open_array(out, path=str(level), mode="r")
        np.testing.assert_array_equal(stored[...].T, every_other(image, level), strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shards", "48,64,64", "--chunks", "32,32,32"), "(64, 64, 64) would be"),
        (("--shards", "64,64"), "is not three whole numbers"),
        (("--shards", "0,64,64"), "at least 1 voxel"),
        (("--shards", "many"), "is not three whole numbers"),
        (("--shards", "64,64,64", "--chunks", "32,32,32", "--ome-version", "0.4"), "has no shards"),
        (("--ome-version", "0.6"), "'0.6' is not one of"),
        (("--codec", "lzma"), "codec must be 'auto', 'none', 'blosc-zstd'"),
        (("--codec", "zstd:23"), "level of codec 'zstd' must be from 1 to 22; got '23'"),
        (("--levels", "0"), "is not a number of levels"),
        (("--levels", "-1"), "is not a number of levels"),
        (("--levels", "2.5"), "is not a number of levels"),
        (("--levels", "99"), "a whole number from 1 to 32"),
        (("--levels", "source"), "has no mip coarser than"),
        (("--block-mib", "0"), "--block-mib"),
        (("--block-mib", "nan"), "must be a number above 0"),
        (("--block-mib", "much"), "not a valid float"),
        (("--chunks", "32,32"), "is not three whole numbers"),
    ],
    ids=str,
)
def test_invalid_values_are_named(
    run: Run, tmp_path: Path, sources: tuple[Any, ...], options: Any, message: str
) -> None:
    code, error = run(tmp_path / "out.zarr", *sources, *options)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("Error: ")]) == 1
    assert list(tmp_path.iterdir()) == []
