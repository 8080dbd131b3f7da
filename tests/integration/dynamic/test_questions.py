"""Queries about objects: `unique_roots`, `root_at` and `remap`."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from cloudvolume import CloudVolume
from support.dynamic import BOXES, TOKEN, WHOLE, at, at_mip, bounds, distinct, expected, resolution, roots_at

from imagery_dask import ImageryClient
from imagery_dask.testing.cave import CaveServer, World


@pytest.mark.parametrize("mip", [0, 1])
@pytest.mark.parametrize("root_ids", ["all", None, "listed", []])
def test_unique_roots_counts_the_voxels_of_each_root(
    client: ImageryClient, world: World, small_lazy_blocks: None, mip: int, root_ids: Any
) -> None:
    moment = int(world.times["split_1"])
    keep = roots_at(world, moment)[:4] if root_ids == "listed" else root_ids
    for box in BOXES:
        box = at_mip(box, mip)
        ids, counts = np.unique(expected(world, moment, box, mip=mip, keep=keep), return_counts=True)
        expected_roots = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        options: dict[str, Any] = {
            "mip": mip, "resolution": resolution(world, mip), "timestamp": moment, "root_ids": keep,
        }  # fmt: skip
        assert client.unique_roots(bounds(world, box, mip), include_null_root=True, **options) == expected_roots
        expected_roots.pop(0, None)
        roots = client.unique_roots(bounds(world, box, mip), **options)
        assert roots == expected_roots
        assert list(roots) == sorted(roots)
        assert all(type(value) is int for pair in roots.items() for value in pair)


def test_unique_roots_looks_up_each_supervoxel_once(
    server: CaveServer, client: ImageryClient, world: World, small_lazy_blocks: None, no_cache: None
) -> None:
    server.reset()
    client.unique_roots(bounds(world, WHOLE), timestamp=world.times["split_1"])
    assert server.ids_sent == distinct(world)


@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("mip", [0, 1])
def test_root_at_returns_the_roots_at_points(
    server: CaveServer, client: ImageryClient, world: World, mip: int, layer: Any
) -> None:
    moment = int(world.times["split_1"])
    voxels = np.random.default_rng(3).integers((-4, -4, -2), (132, 132, 34), (300, 3))
    volume = world.roots_volume(moment, mip, layer)
    steps = np.array((2**mip, 2**mip, 1))
    cells = voxels // steps
    inside = ((cells >= 0) & (cells < volume.shape)).all(axis=1)
    expected_roots = np.where(inside, volume[tuple(np.clip(cells, 0, np.array(volume.shape) - 1).T)], np.uint64(0))
    server.reset()
    points = voxels + world.voxel_offset
    roots = client.root_at(points, mip=mip, timestamp=moment, stop_layer=layer)
    assert roots.dtype == np.uint64
    np.testing.assert_array_equal(roots, expected_roots)
    assert server.count("roots_binary") == 1
    one = client.root_at(points[7], mip=mip, timestamp=moment, stop_layer=layer)
    assert (one.shape, int(one)) == ((), int(expected_roots[7]))
    assert client.root_at(np.zeros((0, 3)), timestamp=moment).shape == (0,)
    finer = client.root_at(points * (2, 2, 1) + (1, 1, 0), mip=mip, resolution=(8, 8, 40), timestamp=moment)
    assert layer or np.array_equal(finer, expected_roots)
    np.testing.assert_array_equal(
        client.root_at(points.tolist(), mip=mip, timestamp=moment, stop_layer=layer), expected_roots
    )


def test_root_at_equals_cloudvolume(server: CaveServer, client: ImageryClient, world: World) -> None:
    moment = int(world.times["merge_1"]) + 1
    points = np.random.default_rng(4).integers((0, 0, 0), (128, 128, 32), (20, 3)) + world.voxel_offset
    cv = CloudVolume(server.segmentation_source, agglomerate=True, timestamp=moment, secrets=TOKEN, progress=False)
    scattered = cv.scattered_points([tuple(point) for point in points.tolist()])
    roots = client.root_at(points, timestamp=moment)
    assert roots.tolist() == [int(scattered[tuple(point)]) for point in points.tolist()]


@pytest.mark.parametrize("points", [[1, 2], [[1, 2]], "here", [[1, 2, np.nan]], [[[1, 2, 3]]], 5, None])
def test_invalid_points_are_refused(client: ImageryClient, points: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="points must be"):
        client.root_at(points)


def test_remap_returns_the_root_of_each_supervoxel(server: CaveServer, client: ImageryClient, world: World) -> None:
    moment = int(world.times["split_1"])
    ids = np.append(world.graph.supervoxels, np.uint64(0))
    expected_roots = np.append(world.graph.roots(world.graph.supervoxels, moment), np.uint64(0))
    server.reset()
    roots = client.remap(ids, timestamp=moment)
    assert roots.dtype == np.uint64
    np.testing.assert_array_equal(roots, expected_roots)
    assert server.ids_sent == len(world.graph.supervoxels)
    np.testing.assert_array_equal(roots, [*server.client().chunkedgraph.get_roots(ids[:-1], at(moment)), 0])
    shuffled = np.random.default_rng(0).permutation(np.concatenate([ids, ids]))
    for form in (shuffled, shuffled.reshape(2, -1), shuffled.astype(np.int64), shuffled.tolist(), shuffled[::-1]):
        values = np.asarray(form, dtype=np.uint64)
        again = client.remap(form, timestamp=moment)
        assert (again.shape, again.dtype) == (values.shape, np.uint64)
        order = np.argsort(ids)
        np.testing.assert_array_equal(again, expected_roots[order][np.searchsorted(ids[order], values)])
    assert not client.remap(np.zeros(3, np.uint64)).any()
    assert client.remap([]).shape == (0,)
    assert int(client.remap(int(ids[0]), timestamp=moment)) == expected_roots[0]


def test_remap_does_not_change_its_input_and_keeps_dask_arrays_lazy(client: ImageryClient, world: World) -> None:
    moment, before = int(world.times["split_1"]), world.supervoxels.copy()
    lazy = da.from_array(world.supervoxels, chunks=(50, 60, 20))
    remapped = client.remap(lazy, timestamp=moment)
    assert isinstance(remapped, da.Array)
    assert (remapped.dtype, remapped.chunks) == (np.uint64, lazy.chunks)
    np.testing.assert_array_equal(remapped, world.roots_volume(moment))
    np.testing.assert_array_equal(client.remap(world.supervoxels, timestamp=moment), world.roots_volume(moment))
    np.testing.assert_array_equal(world.supervoxels, before)
    second = client.remap(world.supervoxels, timestamp=moment, stop_layer=2)
    np.testing.assert_array_equal(second, world.roots_volume(moment, stop_layer=2))
    read_only = world.supervoxels.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(client.remap(read_only, timestamp=moment), world.roots_volume(moment))


@pytest.mark.parametrize("ids", [[1.5], np.array([1.0]), ["a"], [-5], [2**64], np.array([True])])
def test_remap_refuses_invalid_ids(client: ImageryClient, ids: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError), match="supervoxels must be"):
        client.remap(ids)


def test_a_flat_segmentation_cannot_be_remapped(world: World) -> None:
    flat = ImageryClient(segmentation_source=world.watershed_source)
    with pytest.raises(ValueError, match="needs a dynamic segmentation"):
        flat.remap([1])
    with pytest.raises(ValueError, match="needs a dynamic segmentation"):
        flat.segmentation_volume(stop_layer=2)
