"""Frames are made once, the next ones in the direction of travel in one thread, and never more than are wanted."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.render.palettes import color_of

pytest.importorskip("anywidget", reason="needs anywidget: pip install 'imagery_dask[notebooks]'")

from imagery_dask.render.slice_browser import KEPT, PlaneDrawer, ReadAhead, SliceBrowser  # noqa: E402

ROOT = 2**63 + 1
GRID = VoxelGrid((10, 20, 30), (5, 4, 3), (8, 8, 40))


class Drawn:
    """Counts the frames that are made, and where."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.threads: set[str] = set()
        self.lock = threading.Lock()

    def __call__(self, index: int) -> dict[str, Any]:
        with self.lock:
            self.indices.append(index)
            self.threads.add(threading.current_thread().name)
        return {"title": str(index)}


def settled(frames: ReadAhead) -> None:
    for future in list(frames._coming.values()):
        future.result()


def test_the_next_frames_are_made_in_the_direction_of_travel() -> None:
    drawn = Drawn()
    frames = ReadAhead(drawn, 30, ahead=2)
    for at, made in ((10, [10, 11, 12]), (11, [13]), (12, [14]), (11, [9]), (29, [29]), (0, [0])):
        before = len(drawn.indices)
        assert frames.get(at) == {"title": str(at)}
        settled(frames)
        assert sorted(drawn.indices[before:]) == sorted(made)
    frames.close()
    assert len(drawn.threads) == 2


@given(moves=st.lists(st.integers(0, 39), min_size=1, max_size=60), ahead=st.integers(0, 4))
def test_every_frame_is_its_own_and_few_are_kept(moves: list[int], ahead: int) -> None:
    drawn = Drawn()
    frames = ReadAhead(drawn, 40, ahead)
    for at in moves:
        assert frames.get(at) == {"title": str(at)}
        assert len(frames._kept) <= KEPT
        assert len(frames._coming) <= ahead
    settled(frames)
    frames.close()
    assert len(drawn.indices) <= len(moves) * (1 + ahead)


def test_an_error_of_a_frame_is_raised_when_it_is_wanted_and_tried_again() -> None:
    failing = [True]

    def draw(index: int) -> dict[str, Any]:
        if index == 1 and failing.pop():
            raise OSError("no answer")
        return {}

    frames = ReadAhead(draw, 3, ahead=1)
    frames.get(0)
    with pytest.raises(OSError, match="no answer"):
        frames.get(1)
    failing[:] = [False]
    assert frames.get(1) == {}
    frames.close()


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize(("across", "shape"), [(2, (4, 5)), (1, (3, 5)), (0, (4, 3))])
def test_pictures_are_upright(across: int, shape: tuple[int, int]) -> None:
    image = np.arange(60, dtype=np.uint8).reshape(GRID.shape)
    labels = np.where(image % 7 == 0, np.uint64(ROOT), np.uint64(0))
    frame = PlaneDrawer(image, labels, GRID, across, voxel_nm=(8, 8, 40)).draw(1)
    page = np.take(image, 1, axis=across)
    page = page if across == 0 else page.T
    np.testing.assert_array_equal(pixels(frame["image"]), page)
    np.testing.assert_array_equal(pixels(frame["labels"])[..., 3] == 255, page % 7 == 0)
    assert pixels(frame["labels"])[page % 7 == 0][0].tolist() == [*color_of(ROOT), 255]
    assert page.shape == shape
    assert frame["title"].startswith(f"{'xyz'[across]} = {GRID.start[across] + 1} (")


def test_deep_imagery_has_one_contrast_for_all_planes() -> None:
    image = np.zeros(GRID.shape, np.uint16)
    image[..., 0], image[..., 1] = np.linspace(0, 1000, 20).reshape(5, 4), 500
    drawer = PlaneDrawer(image, None, GRID, 2, voxel_nm=(8, 8, 40))
    assert pixels(drawer.draw(0)["image"]).max() == 255
    assert abs(int(pixels(drawer.draw(1)["image"])[0, 0]) - 128) < 4


def test_the_widget_answers_clicks_and_says_what_failed() -> None:
    def ids_at(voxel: Any) -> dict[str, int]:
        if voxel.x == 4:
            raise OSError("https://me:secret@host/em did not answer")
        return {"root id": ROOT, "supervoxel id": 7}

    def draw(at: int) -> dict[str, Any]:
        raise OSError("https://me:secret@host/em did not answer")

    drawer = PlaneDrawer(np.zeros(GRID.shape, np.uint8), None, GRID, 2, voxel_nm=(4, 4, 40))
    widget = SliceBrowser(drawer, ids_at, at=1, voxel_nm=(4, 4, 40), opacity=0.4, ahead=0)
    assert (widget.ids, widget.voxel) == ({}, None)
    widget._clicked(widget, {"column": 2, "row": 3, "index": 1}, [])
    assert (widget.ids, widget.voxel) == ({"root id": ROOT, "supervoxel id": 7}, (25, 47, 31))
    assert widget.picked["nm"] == [100.0, 188.0, 1260.0]
    assert widget.picked["ids"]["root id"] == str(ROOT)
    widget._clicked(widget, {"column": 99, "row": -1, "index": 1}, [])
    assert "did not answer" in widget.picked["error"]
    widget._frames._draw = draw
    widget.index = 2
    assert "did not answer" in widget.frame["error"]
    assert "secret" not in f"{widget.frame} {widget.picked}"
    widget.close()
