"""Stores read by other programs: the same voxels at the same positions in nm."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from ome_zarr_models import v04, v05
from support.readers import READERS, ReadLevel, by_cloudvolume, by_zarr
from support.volumes import coordinate_volume, delete_chunks, random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import BlockFailedError
from imagery_dask.kernels import downsample

#: Odd sizes and offsets along every axis.
SHAPE = (67, 51, 33)
OFFSET = (-7, 101, 5)
BOUNDS = [list(OFFSET), [first + size for first, size in zip(OFFSET, SHAPE, strict=True)]]
RESOLUTIONS = {"4.3x4.3x13": (4.3, 4.3, 13), "8x8x40": (8, 8, 40)}
LAYOUTS: dict[str, dict[str, Any]] = {
    "0.5": {"ome_version": "0.5", "shards": None},
    "0.5 shards": {"ome_version": "0.5", "shards": (32, 32, 16)},
    "0.4": {"ome_version": "0.4", "shards": None},
}
LABELS = "labels/segmentation"
LEVELS = 4

# ome-zarr warns about its own defaults.
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ome_zarr")

Export = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return smooth_image(SHAPE)


@pytest.fixture(scope="module")
def ids() -> NDArray[np.uint64]:
    labels = random_labels(SHAPE, n=40, above_2_63=False)
    assert labels.max() > 2**53
    return labels


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, image: Any, ids: Any) -> Export:
    """Return the store of a layout and a resolution, which is written once."""
    folder = tmp_path_factory.mktemp("exports")

    @cache
    def client_at(resolution: str) -> ImageryClient:
        geometry: dict[str, Any] = {"resolution": RESOLUTIONS[resolution], "voxel_offset": OFFSET}
        return ImageryClient(
            image_source=write_volume(folder / f"{resolution} image", image, **geometry),
            segmentation_source=write_volume(folder / f"{resolution} ids", ids, layer_type="segmentation", **geometry),
        )

    @cache
    def write(layout: str, resolution: str) -> Path:
        out = folder / f"{layout} {resolution}.zarr".replace(" ", "-")
        data = client_at(resolution).dataset(BOUNDS)
        to_zarr(data, out, chunks=(16, 16, 8), levels=LEVELS, block_mib=0.05, progress=False, **LAYOUTS[layout])
        return out

    return write


def check_levels(levels: list[ReadLevel], source: NDArray[Any], nm: Any, labels: bool) -> None:
    """Check the voxels of every level, and that each lies at the position of the source voxels that it is made of."""
    assert len(levels) == LEVELS
    whole = source
    for index, level in enumerate(levels):
        if index:
            step = tuple(round(now / before) for now, before in zip(level.scale, levels[index - 1].scale, strict=True))
            whole = downsample(whole, step, labels)  # type: ignore[arg-type]
        np.testing.assert_array_equal(level.voxels, whole, strict=True)
        rng = np.random.default_rng(index)
        for _ in range(20):
            voxel = tuple(int(rng.integers(0, max(1, n - 1))) for n in level.voxels.shape[:3])
            below = source[within(level.centre(voxel), level.scale, nm)]
            if labels:
                assert level.voxels[voxel] in below
            else:  # every level rounds down
                mean = below.reshape(-1, *below.shape[3:]).mean(axis=0)
                assert (np.abs(level.voxels[voxel] + index / 2 - mean) <= index / 2 + 0.5).all()


def within(centre: NDArray[np.float64], size: NDArray[np.float64], nm: Any) -> tuple[slice, ...]:
    """Return slices of the source voxels whose centres lie within a voxel of a level, computed from nm alone."""
    parts = []
    for axis in range(3):
        source_centres = (np.arange(SHAPE[axis]) + OFFSET[axis] + 0.5) * nm[axis]
        (inside,) = np.nonzero(np.abs(source_centres - centre[axis]) < size[axis] / 2)
        assert len(inside) == round(size[axis] / nm[axis])
        parts.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(parts)


# ---------------------------------------------------------------------------------------------- an image and its labels


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_the_same_voxels_at_the_same_positions(
    export: Export, image: Any, ids: Any, reader: str, layout: str, resolution: str
) -> None:
    out, version, nm = export(layout, resolution), layout[:3], RESOLUTIONS[resolution]
    check_levels(READERS[reader](out, "", version), image, nm, labels=False)
    if (reader, layout) == ("xarray", "0.4"):
        with pytest.raises(KeyError, match="_ARRAY_DIMENSIONS"):  # rather than ids that are rounded to floats
            READERS[reader](out, LABELS, version)
    else:
        check_levels(READERS[reader](out, LABELS, version), ids, nm, labels=True)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_cloudvolume_gives_the_same_voxels(tmp_path: Path, image: Any, ids: Any, version: Any) -> None:
    """CloudVolume reads no shards and only the codecs of Python, and places voxels by offsets of whole voxels."""
    nm = RESOLUTIONS["4.3x4.3x13"]
    for name, voxels in (("image", image), ("ids", ids)):
        out = tmp_path / f"{name}.zarr"
        to_zarr(
            voxels, out, chunks=(16, 16, 8), shards=None, codec="gzip", ome_version=version, resolution_nm=nm,
            translation_nm=(0, 0, 0), levels=2, progress=False,
        )  # fmt: skip
        expected_levels, levels = by_zarr(out, "", version), by_cloudvolume(out, "", version)
        for expected, level in zip(expected_levels, levels, strict=True):
            np.testing.assert_array_equal(level.voxels, expected.voxels, strict=True)
            np.testing.assert_allclose(level.scale, expected.scale, rtol=1e-6)


@pytest.mark.xfail(strict=True, reason="CloudVolume (12.15) reads translations in the order z, y, x, or ignores them")
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_cloudvolume_gives_the_same_positions(tmp_path: Path, image: Any, version: Any) -> None:
    placement: dict[str, Any] = {"resolution_nm": (8, 8, 40), "translation_nm": (12, 804, 220)}
    to_zarr(image, tmp_path / "out.zarr", shards=None, codec="gzip", ome_version=version, progress=False, **placement)
    (expected,) = by_zarr(tmp_path / "out.zarr", "", version)
    (level,) = by_cloudvolume(tmp_path / "out.zarr", "", version)
    np.testing.assert_allclose(level.translation, expected.translation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metadata_are_valid_by_ome_zarr_models(export: Export, layout: str) -> None:
    models: Any = v04 if layout == "0.4" else v05
    root = zarr.open_group(export(layout, "4.3x4.3x13"), mode="r")
    image = models.image.Image.from_zarr(root)
    labels = models.labels.Labels.from_zarr(root["labels"])
    label = models.image_label.ImageLabel.from_zarr(root[LABELS])
    attributes = [model.attributes if layout == "0.4" else model.ome_attributes for model in (image, labels, label)]
    assert attributes[1].labels == ["segmentation"]
    assert attributes[2].image_label.source.image == "../../"
    for described in (attributes[0], attributes[2]):
        (multiscale,) = described.multiscales
        assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
        assert [dataset.path for dataset in multiscale.datasets] == ["0", "1", "2", "3"]
    raw: Any = root.attrs.asdict()
    assert raw.get("ome", raw)["omero"]["channels"][0]["window"] == {"min": 0, "max": 255, "start": 0, "end": 255}
    for name in "0123":
        array: Any = root[name]
        assert array.metadata.zarr_format == (2 if layout == "0.4" else 3)
        assert array.chunks == tuple(min(size, n) for size, n in zip((8, 16, 16), array.shape, strict=True))
    assert (root["0"].shards is not None) == (layout == "0.5 shards")  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ channels, other types


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["rgb", "16 bit"])
def test_channels_and_16_bits_are_read_with_a_useful_window(tmp_path: Path, layout: str, kind: str) -> None:
    nm = RESOLUTIONS["4.3x4.3x13"]
    if kind == "rgb":
        source: NDArray[Any] = smooth_image((*SHAPE, 3))
    else:
        source = smooth_image(SHAPE).astype(np.uint16) * 200
    path = write_volume(tmp_path / "em", source, resolution=nm, voxel_offset=OFFSET)
    out = tmp_path / "out.zarr"
    data = ImageryClient(image_source=path).image_cutout(BOUNDS)
    to_zarr(data, out, chunks=(16, 16, 8), levels=LEVELS, progress=False, **LAYOUTS[layout])
    for reader, read in READERS.items():
        if not (reader == "xarray" and layout == "0.4"):
            check_levels(read(out, "", layout[:3]), source, nm, labels=False)
    models: Any = v04 if layout == "0.4" else v05
    assert models.image.Image.from_zarr(zarr.open_group(out, mode="r"))
    channels = channels_shown(out)
    if kind == "rgb":
        assert [channel["color"] for channel in channels] == ["FF0000", "00FF00", "0000FF"]
        assert [channel["window"]["end"] for channel in channels] == [255] * 3
    else:
        window = channels[0]["window"]
        assert (window["min"], window["max"]) == (0, 65535)
        assert source.min() <= window["start"] < window["end"] <= source.max()


def channels_shown(out: Path) -> list[dict[str, Any]]:
    """Return the channels of a store's `omero` metadata."""
    attributes: Any = zarr.open_group(out, mode="r").attrs.asdict()
    channels: list[dict[str, Any]] = attributes.get("ome", attributes)["omero"]["channels"]
    return channels


def sparse(dtype: Any) -> NDArray[Any]:
    """Return voxels of which too few differ from 0 to change percentiles."""
    voxels = np.zeros((64, 64, 3), dtype)
    voxels[5, 6] = 100
    return voxels


WINDOWS: dict[str, tuple[NDArray[Any], tuple[float, float]]] = {
    "float": (np.linspace(-2, 7, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3), (-2, 7)),
    "float with NaN": (np.where(np.arange(64)[:, None, None] % 2, np.nan, np.ones((64, 64, 3)) * 3), (2, 5)),
    "all equal float": (np.full((64, 64, 3), 0.5, np.float32), (0.5, 1.5)),
    "all NaN": (np.full((64, 64, 3), np.nan, np.float32), (0, 1)),
    "all equal 16 bit": (np.full((64, 64, 3), 7, np.uint16), (0, 65535)),
    "sparse float": (sparse(np.float32), (0, 100)),
    "sparse 16 bit": (sparse(np.uint16), (0, 65535)),
    "signed": (np.arange(-2000, 64 * 64 - 2000, dtype=np.int16).reshape(64, 64, 1), (-32768, 32767)),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_the_window_of_a_channel_is_never_empty(tmp_path: Path, case: str) -> None:
    """Viewers divide by the width of the window."""
    voxels, (least, most) = WINDOWS[case]
    to_zarr(voxels, tmp_path / "out.zarr", progress=False)
    (channel,) = channels_shown(tmp_path / "out.zarr")
    window = channel["window"]
    assert least - 1 <= window["min"] <= window["start"] < window["end"] <= window["max"] <= most + 1


@pytest.mark.parametrize("missing", ["fill", "error"])
def test_a_window_that_cannot_be_measured_is_the_full_range(tmp_path: Path, missing: Any) -> None:
    voxels = coordinate_volume((96, 96, 24), dtype=np.uint16)
    path = write_volume(tmp_path / "em", voxels, chunk_size=(32, 32, 8), resolution=(8, 8, 40))
    delete_chunks(path, 0, lambda start: start[2] == 8)
    data = ImageryClient(image_source=path, missing=missing).image_volume()
    options: dict[str, Any] = {"chunks": (96, 96, 8), "block_mib": 0.1, "progress": False}
    if missing == "fill":
        report = to_zarr(data, tmp_path / "out.zarr", **options)
        assert (report.done, report.counts.missing) == (3, 9)
    else:
        with pytest.raises(BlockFailedError) as caught:
            to_zarr(data, tmp_path / "out.zarr", **options)
        assert (caught.value.report.done, caught.value.report.failures) == (2, 1)
    (channel,) = channels_shown(tmp_path / "out.zarr")
    assert channel["window"] == {"min": 0, "max": 65535, "start": 0, "end": 65535}


# ----------------------------------------------------------------------------------------------- levels of the source


@pytest.mark.parametrize("layout", LAYOUTS)
def test_levels_of_the_source_are_copied(tmp_path: Path, layout: str) -> None:
    """Bounds need not begin at a multiple of a mip's factor; every level covers the region, as its mip does."""
    nm, offset, shape = (4.3, 4.3, 13), (-32, 64, 8), (96, 80, 24)
    image = coordinate_volume(shape, offset, np.uint8)
    ids = random_labels(shape, n=30)
    client = ImageryClient(
        image_source=write_volume(tmp_path / "em", image, resolution=nm, voxel_offset=offset, mips=3),
        segmentation_source=write_volume(
            tmp_path / "ids", ids, resolution=nm, voxel_offset=offset, mips=3, layer_type="segmentation",
            encoding="compressed_segmentation",
        ),
    )  # fmt: skip
    out = tmp_path / "out.zarr"
    bounds = np.array([[-27, 71, 9], [50, 130, 30]])
    to_zarr(client.dataset(bounds), out, chunks=(16, 16, 8), levels="source", progress=False, **LAYOUTS[layout])
    for group, source in (("", image), (LABELS, ids)):
        levels = by_zarr(out, group, layout[:3])
        assert len(levels) == 3
        for mip, level in enumerate(levels):
            factor = np.array([2**mip, 2**mip, 1])
            stored = source[:: 2**mip, :: 2**mip]
            np.testing.assert_allclose(level.scale, factor * nm)
            first = level.translation / level.scale - 0.5
            np.testing.assert_allclose(first, np.round(first), atol=1e-6)
            start = np.round(first).astype(int)
            stop = start + level.voxels.shape
            # Levels hold whole voxels of the mip and end less than one voxel from the bounds.
            assert (np.abs(start * factor - bounds[0]) < factor).all()
            assert (np.abs(stop * factor - bounds[1]) < factor).all()
            inside = tuple(slice(a, b) for a, b in zip(start - offset // factor, stop - offset // factor, strict=True))
            np.testing.assert_array_equal(level.voxels, stored[inside], strict=True)
