"""The demo writes the volumes, the store and the pictures that it describes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import zarr
from cloudvolume import Bbox, CloudVolume
from integration.stores import labels, placement, written
from ome_zarr_models.v05.image import Image

from imagery_dask import ImageryClient
from imagery_dask.demo import DemoResult, run_cave_demo, run_demo, tour, write_demo_volumes


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module", autouse=True)
def _small_demo() -> Iterator[None]:
    """Reduce the demo's volume and region; CI runs the README's command at full size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour, "write_demo_volumes", partial(write_demo_volumes, shape=(256, 256, 40)))
        patch.setattr(tour, "REGION", (192, 224, 32))
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> DemoResult:
    """Run the demo on threads of this process."""
    return run_demo(tmp_path_factory.mktemp("demo"), lines.append, cluster=None)


def stored(source: str, demo: DemoResult, coarser: int) -> np.ndarray:
    """Read the region with CloudVolume from mip 0 of a layer that is `coarser` times coarser along x and y."""
    lower, upper = (np.asarray(corner) // (coarser, coarser, 1) for corner in demo.bounds)
    return np.asarray(CloudVolume(source, progress=False)[Bbox(lower, upper)])[..., 0]


@pytest.mark.smoke
def test_the_store_holds_the_region(demo: DemoResult, lines: list[str]) -> None:
    assert demo.report.ok
    assert (demo.report.counts.missing, demo.report.failures) == (0, 0)
    image = stored(demo.volumes.image_source, demo, 1)
    ids = stored(demo.volumes.segmentation_source, demo, 2)
    np.testing.assert_array_equal(written(demo.zarr), image, strict=True)
    np.testing.assert_array_equal(labels(demo.zarr), ids.repeat(2, axis=0).repeat(2, axis=1), strict=True)
    assert ids.max() > 2**53
    assert len(np.unique(ids)) > 20
    assert image.std() > 20
    assert Image.from_zarr(zarr.open_group(demo.zarr, mode="r"))
    first = [(a + 0.5) * nm for a, nm in zip(demo.bounds[0], (8, 8, 40), strict=True)]
    assert placement(demo.zarr) == placement(demo.zarr, "labels/segmentation") == ([8.0, 8.0, 40.0], first)
    assert any(str(demo.overlay.parent) in line for line in lines)


def test_pictures_show_the_region(demo: DemoResult) -> None:
    image = written(demo.zarr)
    assert len(demo.slices) == image.shape[2]
    assert sorted(demo.slices[0].parent.iterdir()) == sorted(demo.slices)
    for index, file in enumerate(demo.slices):
        picture = imageio.imread(file)
        assert picture.dtype == np.uint8
        for channel in range(3):
            np.testing.assert_array_equal(picture[..., channel], image[:, :, index].T)
    overlay = imageio.imread(demo.overlay)
    assert overlay.shape == (image.shape[1], image.shape[0], 3)
    assert overlay.dtype == np.uint8
    # The overlay is grey where there is no object, and colored elsewhere.
    colored = overlay.max(axis=2) > overlay.min(axis=2)
    objects = labels(demo.zarr)[:, :, image.shape[2] // 2].T != 0
    assert not colored[~objects].any()
    assert colored[objects].mean() > 0.9


def test_the_volumes_have_three_mips_and_ids_above_2_53(demo: DemoResult) -> None:
    client = ImageryClient(image_source=demo.volumes.image_source, segmentation_source=demo.volumes.segmentation_source)
    for volume, nm in ((client.image_cv, [8, 8, 40]), (client.segmentation_cv, [16, 16, 40])):
        assert volume.resolution.tolist() == nm
        assert len(volume.available_mips) >= 3
        assert all(volume.voxel_offset > 0)
    assert client.image_volume(mip=2)[:4, :4, 0].values.any()
    assert client.segmentation_volume(mip=2)[..., 0].values.max() > 2**53


def test_a_second_demo_replaces_the_first(tmp_path: Path) -> None:
    first = run_demo(tmp_path / "demo", lambda text: None, cluster=None)
    before = written(first.zarr)
    assert before.any()
    first.overlay.unlink()
    first.slices[0].write_bytes(b"")
    again = run_demo(tmp_path / "demo", lambda text: None, cluster=None)
    np.testing.assert_array_equal(written(again.zarr), before)
    assert imageio.imread(again.overlay).shape == (224, 192, 3)
    assert imageio.imread(again.slices[0]).shape == (224, 192, 3)


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run_demo(tmp_path / "file", lambda text: None, cluster=None)


@pytest.mark.long
def test_the_cave_demo_shows_one_region_at_two_moments(tmp_path: Path) -> None:
    result = run_cave_demo(tmp_path, lambda text: None, cluster=None)
    assert result.moments[0] < result.moments[1]
    assert result.changed > 0
    before, after = (zarr.open_group(store, mode="r")["labels/segmentation/0"][:] for store in result.stores)
    changed = before != after
    assert 0 < changed.sum() < changed.size / 2
    assert (before[changed] > 2**53).all()
    picture = imageio.imread(result.picture)
    rows = slice(27, 27 + 512)
    before, after = picture[rows, 10:522], picture[rows, 532:1044]
    assert before.shape == after.shape == (512, 512, 3)
    assert (before != after).any()
    for part in (picture[:27], picture[27 + 512 :]):  # captions; legends and the note
        assert 0.5 < (part == 255).mean() < 1
    for report in result.reports:
        assert report.ok
        assert report.counts.zero_roots == 0
