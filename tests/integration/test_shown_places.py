"""`client.show` and `client.orthoviews` draw the voxels of the volume, and read the chunks of what they draw."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.http_server import FileServer
from support.volumes import random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient
from imagery_dask.client import figures

SHAPE, CHUNKS = (64, 64, 32), (16, 16, 8)
IN_A_PLANE, OFFSET = 16, (10, -20, 30)


@pytest.fixture
def image() -> Any:
    return smooth_image(SHAPE)


@pytest.fixture
def ids() -> Any:
    return random_labels(SHAPE, n=12)


@pytest.fixture
def server(tmp_path: Path, image: Any, ids: Any, http_server_factory: Callable[..., FileServer]) -> FileServer:
    options: Any = {"chunk_size": CHUNKS, "voxel_offset": OFFSET, "mips": 2}
    write_volume(tmp_path / "em", image, **options)
    write_volume(tmp_path / "seg", ids, layer_type="segmentation", **options)
    return http_server_factory(tmp_path)


@pytest.fixture
def client(server: FileServer) -> ImageryClient:
    client = ImageryClient(image_source=f"{server.url}/em", segmentation_source=f"{server.url}/seg")
    server.reset()
    return client


def grey(figure: Any, panel: int = 0) -> Any:
    return figure.axes[panel].images[0].get_array()


def at(z: int) -> list[int]:
    return [OFFSET[0] + 32, OFFSET[1] + 32, OFFSET[2] + z]


def test_a_plane_reads_its_own_chunks(client: ImageryClient, server: FileServer, image: Any) -> None:
    figure = client.show(at(9))
    np.testing.assert_array_equal(grey(figure), image[:, :, 9].T)
    assert server.count() == 2 * IN_A_PLANE
    server.reset()
    np.testing.assert_array_equal(grey(client.show(at(9), axis="x")), image[32])
    assert figure.axes[0].get_title() == "z = 39 (1,580 nm)"


def test_without_objects_no_segmentation_is_read(client: ImageryClient, server: FileServer) -> None:
    client.show(at(9), [])
    assert server.count() == server.count("/em/") == IN_A_PLANE


def test_a_contact_sheet_shows_planes_of_bounds_or_around_a_center(client: ImageryClient, image: Any) -> None:
    bounds = [OFFSET, [OFFSET[0] + 64, OFFSET[1] + 64, OFFSET[2] + 32]]
    for call, planes in (
        (lambda: client.show(bounds, [], n=3), [0, 16, 31]),
        (lambda: client.show(at(9), [], n=3), [8, 9, 10]),
        (lambda: client.show(at(31), [], n=3), [29, 30, 31]),
        (lambda: client.show(bounds, []), [16]),
        (lambda: client.show([bounds[0], [*bounds[1][:2], OFFSET[2] + 2]], [], n=9), [0, 1]),
    ):
        figure = call()
        for panel, z in enumerate(planes):
            np.testing.assert_array_equal(grey(figure, panel), image[:, :, z].T)
        assert sum(bool(panel.images) for panel in figure.axes) == len(planes)


def test_a_mip_is_read_that_has_no_more_voxels_than_the_figure(
    client: ImageryClient, server: FileServer, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "PIXELS", 32 * 32)
    np.testing.assert_array_equal(grey(client.show(at(9), [])), image[::2, ::2, 9].T)
    assert server.count() == IN_A_PLANE // 4
    server.reset()
    assert grey(client.show(at(9), [], image_mip=0)).shape == SHAPE[:2]
    assert server.count() == IN_A_PLANE
    assert grey(client.show(at(9), [], n=4, image_mip=0, bbox_size=(64, 64, 4))).shape == SHAPE[:2]


def test_orthoviews_cross_at_the_voxel(client: ImageryClient, server: FileServer, image: Any) -> None:
    figure = client.orthoviews([OFFSET[0] + 5, OFFSET[1] + 50, OFFSET[2] + 20], outline=True)
    for panel, plane in enumerate((image[:, :, 20].T, image[5], image[:, 50].T)):
        np.testing.assert_array_equal(grey(figure, panel), plane)
    chunks = 2 * (16 + 2 * 4 * 4)
    assert server.count() == chunks - 2 * (4 + 4 + 4) + 2  # crossing lines are read once


def test_a_place_outside_is_an_error_before_anything_is_read(client: ImageryClient, server: FileServer) -> None:
    for call, words in (
        (lambda: client.show(at(1000)), "outside"),
        (lambda: client.show([0, 0]), r"2 x 3"),
        (lambda: client.show(at(9), axis=3), "axis"),
        (lambda: client.show(at(9), n=0), "n must be"),
        (lambda: client.show(at(9), n=2, ax=object()), "leave out ax"),
        (lambda: client.show(at(9), alpha=7), "alpha"),
        (lambda: client.show([at(0), at(9)], bbox_size=(9, 9)), "bbox_size"),
        (lambda: client.orthoviews([at(0), at(9)]), "center"),
        (lambda: client.orthoviews(at(-1)), r"center lies outside .* it is \(42, 12, 29\), and the volume has \(10,"),
        (lambda: client.orthoviews([9, 0, 40], bbox_size=(8, 8, 8)), "center lies outside"),
        (lambda: client.show(at(9), image_mip=5), "mip 5"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            call()
    assert server.count() == 0


def test_without_matplotlib_the_remedy_is_named(client: ImageryClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "imagery_dask.render.show", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'imagery_dask\[notebooks\]'"):
        client.show(at(9))


def test_browsing_reads_each_chunk_once(client: ImageryClient, server: FileServer) -> None:
    pytest.importorskip("anywidget", reason="needs anywidget: pip install 'imagery_dask[notebooks]'")
    widget = client.browse([OFFSET, np.add(OFFSET, SHAPE)], read_ahead=2)
    assert server.count() == 2 * IN_A_PLANE  # of plane 16; the next two are in the same chunks
    for index in (17, 18, 19, 20, 19):
        widget.index = index
    for future in list(widget._frames._coming.values()):
        future.result()
    assert server.count() == 2 * IN_A_PLANE
    widget._clicked(widget, {"column": 5, "row": 6, "index": 19}, [])
    assert widget.voxel == (OFFSET[0] + 5, OFFSET[1] + 6, OFFSET[2] + 19)
    assert server.count() == 2 * IN_A_PLANE
    widget.close()
