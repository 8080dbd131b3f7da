"""Levels: blocks equal the whole, ids are those of level 0, and voxels keep their positions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import numpy as np
import pytest
import tinybrain
import zarr
from distributed import Client
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagery_dask import kernels, to_zarr
from imagery_dask.config import config
from imagery_dask.export.multiscale import levels as levels_module
from imagery_dask.export.multiscale.level_layout import CHUNKS_UNSHARDED, default_chunks, lay_out
from imagery_dask.geometry.pyramid import pyramid

Xyz = tuple[int, int, int]

steps = st.sampled_from([(2, 2, 1), (2, 2, 2), (1, 2, 2), (2, 1, 2), (2, 1, 1), (1, 1, 2), (1, 2, 1)])
shapes = st.tuples(st.integers(1, 25), st.integers(1, 25), st.integers(1, 13))
seeds = st.integers(0, 2**32 - 1)
image_types = st.sampled_from([np.uint8, np.uint16, np.float32, np.uint32, np.int32, np.uint64, np.float16])
label_types = st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64, np.int64, np.int32, np.bool_])


def voxels_of(shape: tuple[int, ...], dtype: Any, seed: int, labels: bool) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return np.asfortranarray(rng.random(shape).astype(dtype))
    if dtype.kind == "b":
        return np.asfortranarray(rng.random(shape) < 0.5)
    if not labels:
        return np.asfortranarray(rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True))
    few = rng.integers(0, np.iinfo(dtype).max, 4, dtype=dtype, endpoint=True)
    return np.asfortranarray(rng.choice(np.append(few, np.zeros(1, dtype)), shape))


def windows(array: NDArray[Any], step: Xyz) -> list[NDArray[Any]]:
    """Return one array for each position within windows of ``step`` voxels; the last voxel of odd axes is repeated."""
    short = [(0, -size % s) for size, s in zip(array.shape, (*step, 1), strict=False)]
    padded = np.pad(array, short, mode="edge")
    return [padded[tuple(slice(o, None, s) for o, s in zip(at, step, strict=True))] for at in np.ndindex(step)]


def in_blocks(array: NDArray[Any], step: Xyz, labels: bool, cuts: list[list[int]]) -> NDArray[Any]:
    shape = [-(-n // s) for n, s in zip(array.shape, step, strict=False)]
    out = np.zeros((*shape, *array.shape[3:]), array.dtype)
    spans = [list(itertools.pairwise(edges)) for edges in cuts]
    for block in itertools.product(*spans):
        part = array[tuple(itertools.starmap(slice, block))]
        small = kernels.downsample(part, step, labels)
        out[tuple(slice(a // s, -(-b // s)) for (a, b), s in zip(block, step, strict=True))] = small
    return out


@given(shapes, steps, image_types, seeds, st.data())
@settings(max_examples=150, deadline=None)
def test_means_of_blocks_equal_the_whole(shape: Xyz, step: Xyz, dtype: Any, seed: int, data: st.DataObject) -> None:
    image = voxels_of((*shape, 3) if seed % 3 == 0 else shape, dtype, seed, labels=False)
    whole = kernels.downsample(image, step, labels=False)
    assert whole.dtype == image.dtype
    parts = windows(image, step)
    if image.dtype.kind == "f":
        np.testing.assert_allclose(whole, np.mean([p.astype(np.float64) for p in parts], axis=0), rtol=2e-3)
    else:  # exact, with Python's integers
        expected = sum(part.astype(object) for part in parts) // len(parts)
        np.testing.assert_array_equal(whole, expected.astype(image.dtype))
    np.testing.assert_array_equal(in_blocks(image, step, False, cuts_of(shape, data)), whole)


@pytest.mark.parametrize("step", [(2, 1, 1), (2, 2, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("dtype", [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)])
def test_means_of_integers_are_right_at_the_limits(dtype: str, step: Xyz) -> None:
    limits = np.iinfo(dtype)
    values = [limits.max, limits.max - 1, limits.min, limits.min + 1, 0, 1, limits.max // 2, limits.max // 4 + 1]
    rng = np.random.default_rng(1)
    image = np.array(values, dtype)[rng.integers(0, len(values), (16, 16, 16))]
    image[:4], image[4:6] = limits.max, limits.min
    expected = sum(part.astype(object) for part in windows(image, step)) // np.prod(step)
    assert kernels.downsample(image, step, labels=False).tolist() == expected.tolist()


@pytest.mark.parametrize("step", [(2, 1, 1), (2, 2, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_means_of_floats_do_not_overflow(dtype: str, step: Xyz) -> None:
    limits = np.finfo(dtype)
    values = np.array([limits.max, limits.max / 2, -limits.max, 1], dtype)
    image = values[np.random.default_rng(1).integers(0, 4, (8, 8, 8))]
    image[:4] = limits.max
    parts = [np.vectorize(Fraction, otypes=[object])(part.astype(object)) for part in windows(image, step)]
    expected = (sum(parts) / int(np.prod(step))).astype(np.float64)
    means = kernels.downsample(image, step, labels=False)
    assert np.isfinite(means).all()
    np.testing.assert_allclose(means / limits.max, expected / limits.max, rtol=0, atol=4 * float(limits.eps))
    image[0, 0, 0] = np.inf
    assert np.isinf(kernels.downsample(image, step, labels=False)[0, 0, 0])


@given(shapes, steps, label_types, seeds, st.data())
@settings(max_examples=150, deadline=None)
def test_modes_of_blocks_equal_the_whole(shape: Xyz, step: Xyz, dtype: Any, seed: int, data: st.DataObject) -> None:
    ids = voxels_of(shape, dtype, seed, labels=True)
    whole = kernels.downsample(ids, step, labels=True)
    assert whole.dtype == ids.dtype
    parts = np.stack(windows(ids, step))
    frequency = (parts == whole).sum(axis=0)
    most = np.max([(parts == part).sum(axis=0) for part in parts], axis=0)
    np.testing.assert_array_equal(frequency, most)
    assert set(whole.ravel().tolist()) <= set(ids.ravel().tolist())
    np.testing.assert_array_equal(in_blocks(ids, step, True, cuts_of(shape, data)), whole)


def cuts_of(shape: Xyz, data: st.DataObject) -> list[list[int]]:
    """Draw edges of blocks at even voxels."""
    cuts = []
    for size in shape:
        inner = data.draw(st.lists(st.integers(1, max(1, size // 2)), max_size=4, unique=True))
        cuts.append(sorted({0, size, *(2 * cut for cut in inner if 2 * cut < size)}))
    return cuts


@given(shapes, st.sampled_from([(2, 2, 1), (2, 2, 2)]), seeds)
@settings(max_examples=100, deadline=None)
def test_whole_levels_equal_tinybrain(shape: Xyz, step: Xyz, seed: int) -> None:
    even: Xyz = (2 * shape[0], 2 * shape[1], shape[2] * step[2])
    image = voxels_of(even, np.uint8, seed, labels=False)
    expected = tinybrain.downsample_with_averaging(image, step, num_mips=1)[0]
    np.testing.assert_array_equal(kernels.downsample(image, step, labels=False), expected)
    # tinybrain's modes of odd sizes are correct; its means over two axes are not (1.7.0), so that we pad.
    assume(min(n for n, s in zip(shape, step, strict=True) if s == 2) > 1)
    ids = voxels_of(shape, np.uint64, seed, labels=True)
    expected = tinybrain.downsample_segmentation(ids, step, num_mips=1)[0]
    np.testing.assert_array_equal(kernels.downsample(ids, step, labels=True), expected)


# --------------------------------------------------------------------------- geometry


resolutions = st.tuples(*[st.sampled_from([4.0, 4.3, 8.0, 8.6, 16.0, 30.0, 40.0, 45.0])] * 3)


@given(st.tuples(*[st.integers(1, 5000)] * 3), resolutions, st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_voxels_keep_their_positions(shape: Xyz, resolution: tuple[float, float, float], count: int) -> None:
    """A voxel's centre is the mean of the centres of the level 0 voxels that it covers."""
    levels = pyramid(shape, resolution, (7.5 * resolution[0], -3.5 * resolution[1], 0.25), count)
    factor = np.ones(3)
    first = levels[0]
    for above, level in itertools.pairwise(levels):
        factor *= level.step
        assert set(level.step) <= {1, 2}
        assert max(level.step) == 2
        assert level.shape == tuple(-(-n // s) for n, s in zip(above.shape, level.step, strict=True))
        assert level.resolution_nm is not None
        np.testing.assert_allclose(level.resolution_nm, np.array(resolution) * factor)
        np.testing.assert_allclose(
            level.translation_nm, np.array(first.translation_nm) + (factor - 1) / 2 * resolution, atol=1e-6
        )
        # An axis is halved only while its voxels are smaller than twice the smallest, so that voxels become isotropic.
        long = [size for size, n in zip(above.resolution_nm or (), above.shape, strict=True) if n > 1]
        for size, n, step in zip(above.resolution_nm or (), above.shape, level.step, strict=True):
            assert step == (2 if n > 1 and size < 2 * min(long) else 1)


@pytest.mark.parametrize(
    ("shape", "resolution", "itemsize"),
    [
        ((120_000, 120_000, 700), (8, 8, 40), 1),
        ((22_000, 22_000, 21_000), (8, 8, 8), 1),
        ((60_000, 60_000, 350), (8, 8, 40), 8),
        ((80_000, 80_000, 800), (4, 4, 40), 2),
        ((60_000, 60_000, 700), (16, 16, 45), 4),
    ],
)
def test_ten_terabytes_need_less_than_a_million_objects(shape: Xyz, resolution: Any, itemsize: int) -> None:
    levels = pyramid(shape, resolution, (0, 0, 0), "auto")
    layouts, _ = lay_out(levels, default_chunks(itemsize), "auto", itemsize)
    objects = sum(
        math.prod(-(-n // size) for n, size in zip(layout.level.shape, layout.shard or layout.chunk, strict=True))
        for layout in layouts
    )
    assert objects * 10e12 / (math.prod(shape) * itemsize) < 1e6


@given(
    st.tuples(*[st.integers(1, 3000)] * 3),
    resolutions,
    st.tuples(*[st.sampled_from([16, 32, 48, 64, 128])] * 3),
    st.tuples(*[st.integers(1, 4)] * 3) | st.just("auto") | st.none(),
    st.sampled_from([1, 2, 8]),
)
@settings(max_examples=200, deadline=None)
def test_blocks_own_whole_chunks_of_every_level(
    shape: Xyz, resolution: Any, chunks: Xyz, shards: Any, size: int
) -> None:
    if isinstance(shards, tuple):
        shards = tuple(chunk * times for chunk, times in zip(chunks, shards, strict=True))
    levels = pyramid(shape, resolution, (0, 0, 0), "auto")
    layouts, stages = lay_out(levels, chunks, shards, size)
    assert [layout.level for layout in layouts] == list(levels)
    assert [index for stage in stages for index in range(stage.first, stage.last + 1)] == list(range(len(levels)))
    for stage in stages:
        scale = np.ones(3, int)
        for index in range(stage.first, stage.last + 1):
            layout = layouts[index]
            if index > stage.first:
                scale *= layout.level.step
            stored = layout.shard or layout.chunk
            for axis in range(3):
                assert stored[axis] % layout.chunk[axis] == 0
                alone = stage.unit[axis] >= levels[stage.first].shape[axis]  # one block along this axis
                assert alone or stage.unit[axis] % (stored[axis] * scale[axis]) == 0
    if shards == "auto" and math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True)) <= CHUNKS_UNSHARDED:
        assert all(layout.shard is None for layout in layouts)


# --------------------------------------------------------------------------- stores


@given(
    st.tuples(st.integers(1, 33), st.integers(1, 33), st.integers(1, 20)),
    st.sampled_from([(8, 8, 8), (16, 8, 4), (5, 7, 3)]),
    st.sampled_from([None, "auto", (2, 1, 2), (2, 2, 2)]),
    st.sampled_from([(8, 8, 40), (8, 8, 8), (40, 8, 8), (4.3, 4.3, 13)]),
    st.booleans(),
    st.sampled_from([1, 2000, 30_000]),
    st.sampled_from(["0.5", "0.4"]),
    seeds,
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_exported_pyramid_equals_repeated_downsampling(
    tmp_path: Path,
    threads: Client,
    shape: Xyz,
    chunks: Xyz,
    shards: Any,
    resolution: Any,
    labels: bool,
    block: int,
    version: Any,
    seed: int,
) -> None:
    if isinstance(shards, tuple):
        shards = None if version == "0.4" else tuple(c * n for c, n in zip(chunks, shards, strict=True))
    array = voxels_of(shape, np.uint64 if labels else np.uint8, seed, labels)
    out = tmp_path / f"{uuid4().hex}.zarr"
    with (
        mock.patch.object(levels_module, "PIECE_BYTES", block),
        config.set({"export.small_fused_bytes": block}),
        mock.patch("imagery_dask.export.multiscale.level_layout.CHUNKS_UNSHARDED", 3),
    ):
        to_zarr(
            array, out, chunks=chunks, shards=shards, levels=4, ome_version=version, resolution_nm=resolution,
            block_mib=block / 2**20, cluster=threads, progress=False,
        )  # fmt: skip
    whole = array
    for index, level in enumerate(pyramid(shape, resolution, (0, 0, 0), 4)):
        whole = kernels.downsample(whole, level.step, labels)
        np.testing.assert_array_equal(zarr.open_array(out, path=str(index), mode="r")[...].T, whole)
