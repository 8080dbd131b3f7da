"""The demo volume is written once, complete or not at all, and a client opens on it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cloudvolume import CloudVolume

from imagery_dask import demo
from imagery_dask.demo import opening


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def test_the_client_shows_the_volume_around_its_centre(cache: Path) -> None:
    client = demo.open(image_mip=1)
    image, labels = client.image_and_segmentation_cutout(demo.CENTER, bbox_size=(64, 64, 2), scale_to_bounds=False)
    assert image.shape == labels.shape == (32, 32, 2)
    volume = CloudVolume(client.image_source, mip=1, progress=False)
    x, y, z = demo.CENTER
    expected = volume[x // 2 - 16 : x // 2 + 16, y // 2 - 16 : y // 2 + 16, z - 1 : z + 1][..., 0]
    np.testing.assert_array_equal(image.compute(), expected)
    bounds = volume.meta.bounds(0)
    assert tuple((bounds.minpt + bounds.maxpt) // 2) == demo.CENTER
    assert [path.name for path in (cache / "imagery_dask").iterdir()] == ["demo-1"]


def test_a_volume_that_exists_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = demo.demo_volumes()
    monkeypatch.setattr(opening, "write_demo_volumes", lambda folder: pytest.fail("written again"))
    assert demo.demo_volumes() == first


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "image").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "write_demo_volumes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.open(tmp_path / "volume")
    assert os.listdir(tmp_path) == []


def test_another_process_may_finish_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(folder: Path) -> None:
        for layer in ("image", "segmentation"):
            (tmp_path / "volume" / layer).mkdir(parents=True)
            (tmp_path / "volume" / layer / "info").touch()

    monkeypatch.setattr(opening, "write_demo_volumes", slow)
    assert demo.demo_volumes(tmp_path / "volume").image_source.endswith("volume/image")
    assert os.listdir(tmp_path) == ["volume"]


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError, match="is not a demo volume"):
        demo.open(tmp_path)
