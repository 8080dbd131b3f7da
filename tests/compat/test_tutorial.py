"""The kinds of snippets in imageryclient's tutorial run with both packages, and give the same arrays and pictures.

They are written anew for a volume that looks like EM. Only the import differs, and ``lazy=False``.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import imageryclient
import numpy as np
import pytest
from PIL import Image
from support.dynamic import served
from support.http_server import FileServer
from support.volumes import random_labels, write_volume

import imagery_dask
from imagery_dask.testing.cave import make_world
from imagery_dask.testing.volume import write_demo_volumes

Snippet = Callable[[ModuleType, Any, SimpleNamespace], list[Any]]
WIDTH = 96


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return the sources, a centre, bounds of one plane, and the two largest objects in them."""
    volumes = write_demo_volumes(tmp_path_factory.mktemp("em"), shape=(256, 256, 16))
    sources = {"image_source": volumes.image_source, "segmentation_source": volumes.segmentation_source}
    center = [int(n) for n in volumes.center]
    bounds = imagery_dask.bounds_from_center(center, WIDTH, WIDTH, 1).tolist()
    sizes = imagery_dask.ImageryClient(**sources).unique_roots(bounds)
    largest = sorted(sizes, key=lambda root_id: -sizes[root_id])[:2]
    return SimpleNamespace(sources=sources, center=center, bounds=bounds, root_ids=largest)


def gray(ids: Any) -> Image.Image:
    return Image.fromarray((ids.T / np.max(ids) * 255).astype("uint8"))


def cut_a_plane(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    image = client.image_cutout(place.bounds)
    return [image, Image.fromarray(image.T)]


def cut_around_a_center(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    image = client.image_cutout(place.center, bbox_size=(WIDTH, WIDTH))
    np.testing.assert_array_equal(image, client.image_cutout(place.bounds))
    return [image]


def make_bounds(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    return [ic.bounds_from_center(place.center, width=WIDTH, height=WIDTH, depth=1)]


def ask_for_the_resolution(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    coarse = ic.ImageryClient(**place.sources, resolution=[16, 16, 40], **place.eager)
    named = [ic.ImageryClient(**place.sources, resolution=name, **place.eager) for name in ("image", "segmentation")]
    halves = np.array(place.bounds) // (2, 2, 1)
    resolutions = [np.array(other.resolution, np.float64) for other in (client, coarse, *named)]
    return [*resolutions, coarse.image_cutout(halves, mip=0)]


def cut_a_coarser_mip(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    image = client.image_cutout(place.bounds, mip=2)
    return [image, Image.fromarray(image.T)]


def cut_a_number_of_pixels(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    image = client.image_cutout(place.center, mip=1, image_size=(40, 40))
    assert image.shape == (40, 40)
    return [image, client.image_cutout(place.center, mip=1, image_size=(40, 40, 2))]


def enlarge_to_the_bounds(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    return [client.image_cutout(place.bounds, mip=1, scale_to_bounds=True)]


def cut_ids(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    ids = client.segmentation_cutout(place.bounds, mip=0)
    return [ids, gray(ids), client.segmentation_cutout(place.bounds, mip=0, convert_to_int64=False)]


def cut_some_ids(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    ids = client.segmentation_cutout(place.bounds, root_ids=place.root_ids, mip=0)
    return [ids, gray(ids)]


def cut_masks(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    masks = client.split_segmentation_cutout(place.bounds, root_ids=place.root_ids, mip=0)
    assert isinstance(masks, dict)
    return [masks, Image.fromarray((masks[place.root_ids[0]].T * 255).astype("uint8"))]


def cut_both(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    image, ids = client.image_and_segmentation_cutout(place.bounds)
    assert image.shape == ids.shape
    return [image, ids.astype(np.float64)]  # imageryclient rounds resized ids to floats: see docs/differences.md


def size_of_pixels(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    sizes = [
        client.segmentation_bbox_size_from_dimensions((50, 60), mip=1),
        client.image_bbox_size_from_dimensions((50, 60, 3)),
    ]
    return [np.array(size) for size in sizes]


def overlay(**options: Any) -> Snippet:
    def snippet(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
        image, masks = client.image_and_segmentation_cutout(
            place.bounds, split_segmentations=True, root_ids=place.root_ids
        )
        return [masks, ic.composite_overlay(masks, imagery=image, **options)]

    return snippet


def overlay_in_own_colors(**options: Any) -> Snippet:
    def snippet(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
        colors = dict(zip(place.root_ids, [(0, 1, 1), (1, 0, 0)], strict=True))
        return overlay(colors=colors, **options)(ic, client, place)

    return snippet


def overlay_a_stack(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    bounds = ic.bounds_from_center(place.center, width=WIDTH, height=WIDTH, depth=3)
    image, masks = client.image_and_segmentation_cutout(bounds, split_segmentations=True)
    overlays = ic.composite_overlay(masks, imagery=image, alpha=0.3, width=3, merge_outline=False, side="in")
    assert len(overlays) == 3
    return [*overlays, ic.stack_images(overlays), ic.stack_images(overlays, direction="vertical", spacing=4)]


def overlay_along_another_axis(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    bounds = ic.bounds_from_center(place.center, width=8, height=WIDTH, depth=6)
    image, masks = client.image_and_segmentation_cutout(bounds, split_segmentations=True)
    return list(ic.composite_overlay(masks, imagery=image, dim=0))


def ask_for_the_settings(ic: ModuleType, client: Any, place: SimpleNamespace) -> list[Any]:
    moment = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)
    pinned = ic.ImageryClient(**place.sources, auth_token="none", timestamp=moment, **place.eager)
    assert pinned.timestamp == moment
    assert pinned.token == "none"
    return [np.array(client.image_source), np.array(client.segmentation_source), np.array(client.image_cv.shape)]


SNIPPETS: dict[str, Snippet] = {
    "a plane": cut_a_plane,
    "around a centre": cut_around_a_center,
    "bounds": make_bounds,
    "resolution": ask_for_the_resolution,
    "a mip": cut_a_coarser_mip,
    "pixels": cut_a_number_of_pixels,
    "scaled": enlarge_to_the_bounds,
    "ids": cut_ids,
    "some ids": cut_some_ids,
    "masks": cut_masks,
    "both": cut_both,
    "sizes": size_of_pixels,
    "overlay": overlay(),
    "palette": overlay(palette="tab10", alpha=0.4),
    "colors": overlay_in_own_colors(),
    "outline": overlay_in_own_colors(outline=True, alpha=0.5, width=15),
    "inner outline": overlay_in_own_colors(outline=True, alpha=1, width=3, merge_outline=False, side="in"),
    "stack": overlay_a_stack,
    "another axis": overlay_along_another_axis,
    "settings": ask_for_the_settings,
}


def assert_same(ours: Any, released: Any) -> None:
    """Assert that two results are equal; masks are bool here, and int64 there."""
    if isinstance(released, dict):
        assert set(ours) == set(released)
        for root_id, mask in released.items():
            assert ours[root_id].dtype == bool
            np.testing.assert_array_equal(ours[root_id], mask)
    elif isinstance(released, Image.Image):
        assert isinstance(ours, Image.Image)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(released))
    else:
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == released.dtype
        np.testing.assert_array_equal(ours, released)


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_of_the_tutorial_run_unchanged(place: SimpleNamespace, name: str) -> None:
    results = []
    for ic, eager in ((imagery_dask, {"lazy": False}), (imageryclient, {})):
        place.eager = eager
        results.append(SNIPPETS[name](ic, ic.ImageryClient(**place.sources, **eager), place))
    ours, released = results
    assert len(ours) == len(released) > 0
    for own, expected in zip(ours, released, strict=True):
        assert_same(own, expected)


def test_ids_without_a_mip_are_scaled_as_documented(place: SimpleNamespace) -> None:
    """The one snippet that differs: imageryclient's text says that it scales the ids, and its code does not."""
    ours = imagery_dask.ImageryClient(**place.sources, lazy=False).segmentation_cutout(place.bounds)
    released = imageryclient.ImageryClient(**place.sources).segmentation_cutout(place.bounds)
    assert gray(ours).size == (WIDTH, WIDTH)
    np.testing.assert_array_equal(ours, released.repeat(2, axis=0).repeat(2, axis=1))


def test_the_snippet_of_a_caveclient_runs(tmp_path: Path) -> None:
    with served(make_world(tmp_path)) as server:
        center = np.array(server.world.voxel_offset) * (2, 2, 1) + (128, 128, 16)
        pictures = []
        for ic, eager in ((imagery_dask, {"lazy": False}), (imageryclient, {})):
            client = ic.ImageryClient(client=server.client(), **eager)
            image, masks = client.image_and_segmentation_cutout(
                center, split_segmentations=True, bbox_size=(64, 64), scale_to_bounds=True
            )
            assert client.token == server.client().auth.token
            pictures.append(ic.composite_overlay(masks, imagery=image, palette="husl"))
        assert_same(*pictures)


# ----------------------------------------------------------------------------------------------------- eager clients


@pytest.fixture
def served_ids(tmp_path: Path, http_server_factory: Callable[..., FileServer]) -> tuple[FileServer, Any]:
    ids = random_labels((64, 48, 16), n=9)
    for name, kind in (("em", "image"), ("ids", "segmentation")):
        write_volume(tmp_path / name, ids, layer_type=kind, chunk_size=(16, 16, 8))
    return http_server_factory(tmp_path), ids


EAGER: dict[str, Callable[[Any, Any], Any]] = {
    "image": lambda client, bounds: client.image_cutout(bounds),
    "ids": lambda client, bounds: client.segmentation_cutout(bounds, convert_to_int64=False),
    "masks": lambda client, bounds: client.split_segmentation_cutout(bounds),
    "null": lambda client, bounds: client.split_segmentation_cutout(bounds, include_null_root=True),
    "pair": lambda client, bounds: client.image_and_segmentation_cutout(bounds, convert_to_int64=False),
    "split pair": lambda client, bounds: client.image_and_segmentation_cutout(bounds, split_segmentations=True),
}


@pytest.mark.parametrize("call", EAGER)
def test_an_eager_call_reads_each_chunk_once_and_has_the_lazy_voxels(served_ids: Any, call: str) -> None:
    server, ids = served_ids
    sources = {"image_source": f"{server.url}/em", "segmentation_source": f"{server.url}/ids", "cache_bytes": 0}
    client = imagery_dask.ImageryClient(**sources, lazy=False)
    server.reset()
    result = EAGER[call](client, [(0, 0, 0), ids.shape])
    assert server.count(lambda request: not request.path.endswith("info")) == 4 * 3 * 2 * (1 + ("pair" in call))
    for part in result if isinstance(result, tuple) else (result,):
        if isinstance(part, dict):
            assert list(part) == sorted(set(np.unique(ids).tolist()) - (set() if call == "null" else {0}))
            for root_id, mask in part.items():
                assert mask.dtype == bool
                np.testing.assert_array_equal(mask, ids == root_id)
        else:
            assert type(part) is np.ndarray
            np.testing.assert_array_equal(part, ids)


def test_volumes_of_an_eager_client_are_lazy(place: SimpleNamespace) -> None:
    client = imagery_dask.ImageryClient(**place.sources, lazy=False)
    assert client.image_volume().chunks
    assert client.segmentation_volume().chunks
    assert client.dataset(place.bounds)["image"].chunks
