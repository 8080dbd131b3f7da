"""Slices of cutouts are those of the whole, and read each chunk once, however they are computed.

dask chooses graphs or expressions when it is imported, so that the last test runs the others once more in a process
with expressions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import python
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient
from imagery_dask.arrays.cutout_array import CutoutSlice
from imagery_dask.config import config
from imagery_dask.errors import TooLargeError
from imagery_dask.sources.requests.transport import Transport
from imagery_dask.sources.volumes.chunk_cache import set_cache_bytes

START, SHAPE, CHUNK, CHANNELS = (-8, 16, 3), (40, 36, 20), (16, 16, 8), 2
EMPTY = slice(0, 0)
MODE = "DASK_ARRAY__QUERY_PLANNING"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageryClient]:
    folder = tmp_path_factory.mktemp("volumes")
    ids = coordinate_volume(SHAPE, START) + np.uint64(2**60)
    grey = np.stack([ids % 251, ids // 7 % 253], axis=-1).astype(np.uint8)
    place: Any = {"voxel_offset": START, "chunk_size": CHUNK}
    image = write_volume(folder / "em", grey, **place)
    segmentation = write_volume(folder / "seg", ids, layer_type="segmentation", **place)
    for path in folder.rglob("*"):
        os.utime(path, (10**9, 10**9))  # chunks of files that were just written are not kept
    with config.set({"lazy.block_bytes": 16 * 16 * 16 * 8}):
        yield ImageryClient(image_source=image, segmentation_source=segmentation, outside="fill")


@contextmanager
def fetches(clear: bool = True) -> Iterator[Counter[str]]:
    """Count how often chunks are fetched from storage, by default with an empty cache at the beginning."""
    counts: Counter[str] = Counter()
    lock, get = Lock(), Transport.get

    def counting(self: Transport, request: Any) -> Any:
        if request.key != "info":
            with lock:
                counts[f"{self.cloudpath}/{request.key}"] += 1
        return get(self, request)

    if clear:
        set_cache_bytes(0)
    set_cache_bytes(2**26)
    with mock.patch.object(Transport, "get", counting):
        yield counts


@pytest.fixture
def fetched() -> Iterator[Counter[str]]:
    with fetches() as counts:
        yield counts


def cutouts(client: ImageryClient, bounds: Any) -> dict[str, da.Array]:
    return {
        "image": client.image_cutout(bounds),
        "ids": client.segmentation_cutout(bounds, convert_to_int64=False),
        "mask": client.split_segmentation_cutout(bounds)[2**60 + 5],
        "finer": client.segmentation_cutout(np.multiply(bounds, (2, 2, 1)), resolution=(4, 4, 40)),
    }


def by_dask(array: da.Array) -> Any:
    """Compute an array as dask does, which looks for arrays in a list."""
    ((voxels,),) = dask.compute([array], scheduler="synchronous")
    return voxels


corners = st.tuples(*(st.tuples(st.integers(-6, size - 1), st.integers(2, size + 6)) for size in SHAPE))
slices = st.builds(slice, *[st.none() | st.integers(-50, 50)] * 2, st.sampled_from([None, 1, 2, 7, -1, -3]))
parts = slices | st.floats(0, 0.99) | st.just("numpy's last")


def index_of(drawn: Any, array: Any) -> Any:
    """Return an index of slices, integers, perhaps an ellipsis or a new axis, for the axes of an array."""
    given, (first, after), new = drawn
    index: list[Any] = []
    for part, size in zip(given, array.shape, strict=False):
        if isinstance(part, slice):
            picked = range(*part.indices(size))
            # dask takes x[-23::-1] for x[::-1] where x is shorter: without such starts.
            index.append(
                slice(picked.start, picked.stop if picked.stop >= 0 else None, picked.step) if picked else EMPTY
            )
        elif size:
            index.append(np.int64(-1) if isinstance(part, str) else int(part * size))
        else:
            index.append(slice(None))
    if first <= after and len(index) == array.ndim:
        index[first:after] = [Ellipsis]
    if new < len(index):
        index.insert(new, None)
    return tuple(index)


indices = st.tuples(st.lists(parts, max_size=4), st.tuples(*[st.integers(0, 4)] * 2), st.integers(0, 30))


@settings(max_examples=15)
@given(
    box=corners,
    drawn=st.lists(indices, min_size=1, max_size=3),
    scheduler=st.sampled_from([None, "threads", "synchronous"]),
    kept=st.sampled_from([0, 5000, 2**26]),
)
def test_slices_of_slices_are_those_of_the_whole(
    client: ImageryClient, box: Any, drawn: Any, scheduler: str | None, kept: int
) -> None:
    set_cache_bytes(kept)
    low = [a + first for a, (first, _) in zip(START, box, strict=True)]
    bounds = [low, [a + size for a, (_, size) in zip(low, box, strict=True)]]
    for array in cutouts(client, bounds).values():
        part, expected = array, by_dask(array)
        for one in drawn:
            index = index_of(one, part)
            part, expected = part[index], expected[index]
        for _ in range(2):  # chunks are kept the second time
            voxels = np.asarray(part.compute(scheduler=scheduler))
            assert (voxels.dtype, voxels.shape) == (part.dtype, part.shape)
            np.testing.assert_array_equal(voxels, expected)


@settings(max_examples=8)
@given(drawn=indices, other=indices)
def test_chunks_are_fetched_once_and_then_kept(client: ImageryClient, drawn: Any, other: Any) -> None:
    image, ids = client.image_volume(), client.segmentation_volume()
    one, two = (array.data[index_of(index, array)] for array, index in ((image, drawn), (ids, other)))
    with fetches() as before:
        expected = by_dask(one), by_dask(two)
    with fetches() as counts:
        found = one.compute(), two.compute()
    assert set(counts.values()) <= {1}
    assert counts.keys() <= before.keys()  # dask reads whole blocks for some slices of slices
    with fetches(clear=False) as again:
        found = *found, *dask.compute(one, two), *dask.compute(two, None, one)
    assert not again
    for voxels, of in zip(found, (0, 1, 0, 1, 1, None, 0), strict=True):
        assert (voxels is None) if of is None else np.array_equal(voxels, expected[of])


def test_voxels_are_the_callers_own(client: ImageryClient, fetched: Counter[str]) -> None:
    plane = client.segmentation_volume().data[:16, :16, 3]
    for _ in range(2):
        voxels = plane.compute()
        assert voxels.flags.f_contiguous
        assert voxels.flags.owndata or voxels.base.nbytes == voxels.nbytes
        voxels[...] = 0
    assert plane.compute().all()
    assert set(fetched.values()) == {1}


def test_planes_of_xarray_are_taken_from_kept_chunks(client: ImageryClient, fetched: Counter[str]) -> None:
    volume = client.segmentation_volume()
    expected = volume.isel(z=4).compute()
    assert max(fetched.values()) == 1
    fetched.clear()
    with mock.patch.object(dask.threaded, "get", side_effect=AssertionError("a graph is computed")):
        np.testing.assert_array_equal(volume.isel(z=4).compute(), expected)
        np.testing.assert_array_equal(volume.sel(z=volume.z[4]).load(), expected)
        np.testing.assert_array_equal(volume.isel(x=slice(3, 9), z=4).as_numpy(), expected[3:9])
        if not da.array_expr_enabled():  # which numpy cannot convert
            np.testing.assert_array_equal(volume.isel(z=4).values, expected)
            np.testing.assert_array_equal(np.asarray(volume.data[:, :, 4]), expected)
    assert not fetched


def test_a_slice_that_dask_takes_otherwise_than_numpy_has_the_shape_that_it_says(client: ImageryClient) -> None:
    row = client.segmentation_volume().data[:, 3, 4]
    part = row[-100::-1]
    np.testing.assert_array_equal(part.compute(), row.compute()[::-1][: part.size])


@pytest.mark.skipif(da.array_expr_enabled(), reason="expressions cannot be assigned to")
def test_an_array_that_is_assigned_to_has_the_new_voxels(client: ImageryClient) -> None:
    plane = client.segmentation_volume().data[:, :, 3]
    expected = plane.compute()
    plane[2, 3] = 7
    expected[2, 3] = 7
    np.testing.assert_array_equal(plane.compute(), expected)


def test_persisted_arrays_are_not_read_again(client: ImageryClient, fetched: Counter[str]) -> None:
    volume = client.segmentation_volume().data
    for array in (volume, volume[:, :, 3]):
        set_cache_bytes(0)
        persisted = array.persist(scheduler="synchronous")
        fetched.clear()
        np.testing.assert_array_equal(persisted.compute(), persisted.compute())
        assert not fetched


def test_slices_of_kept_chunks_are_refused_too(client: ImageryClient) -> None:
    plane = client.segmentation_volume().data[:, :, 3]
    plane.compute()
    with config.set({"max_bytes": 1000}):
        for compute in (plane.compute, lambda: dask.compute(plane, None)):
            with pytest.raises(TooLargeError, match="at once"):
                compute()


def test_a_cluster_computes_slices_also_of_kept_chunks(client: ImageryClient, threads: Client) -> None:
    plane = client.segmentation_volume().data[:, :, 3]
    expected = plane.compute()
    with mock.patch.object(CutoutSlice, "kept", side_effect=AssertionError("it is read here")):
        np.testing.assert_array_equal(plane.compute(scheduler=threads), expected)
        np.testing.assert_array_equal(dask.compute(plane, scheduler=threads)[0], expected)


@pytest.mark.skipif(MODE in os.environ, reason="runs this file")
def test_all_of_it_with_expressions() -> None:
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__), env={MODE: "True"})
    assert done.code == 0, done.out
