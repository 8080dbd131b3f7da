"""Blocks equal the whole: chunking, slicing and cutting into pieces change no voxel."""

from __future__ import annotations

import itertools
import math
import pickle
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume import CloudVolume
from dask.base import tokenize
from hypothesis import assume, given
from hypothesis import strategies as st
from skimage.transform import resize

from imagery_dask import ImageryClient
from imagery_dask.arrays import lazy
from imagery_dask.arrays.origins import source_of
from imagery_dask.config import config
from imagery_dask.export.core.plans import chunk_reads
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.kernels import downsample
from imagery_dask.model.cutout import Cutout, whole_layer
from imagery_dask.sources import open_volume

SHAPE = (40, 36, 24)
CHUNK = (16, 8, 8)
START = (7, -20, -3)
OWN = (8.0, 8.0, 40.0)
# Finer, coarser and equal voxel sizes, with whole and fractional ratios to 8 nm and 40 nm.
LATERAL = [8.0, 4.0, 16.0, 32.0, 12.0, 4.3, 9.7, 3.0, 8.8, 24.0]
AXIAL = [40.0, 20.0, 80.0, 33.3, 50.0, 45.0]
FIRST_ID = 2**60


def write(folder: Path, data: np.ndarray, kind: str, start: Any = START, resolution: Any = OWN) -> str:
    info = CloudVolume.create_new_info(
        1, kind, data.dtype.name, "raw", list(resolution), list(start), list(data.shape), chunk_size=list(CHUNK)
    )
    path = f"precomputed://file://{folder}"
    volume = CloudVolume(path, info=info, progress=False)
    volume.commit_info()
    volume.commit_provenance()
    volume[volume.bounds.to_slices()] = np.asfortranarray(data)
    return path


def labels() -> np.ndarray:
    """Return ids above 2**53, one for each cell of 3 x 3 x 3 voxels; every seventh voxel is 0."""
    x, y, z = np.ix_(*(np.arange(n) for n in SHAPE))
    ids = np.uint64(FIRST_ID) + (x // 3 + 16 * (y // 3) + 256 * (z // 3)).astype(np.uint64)
    return np.where((x + y + z) % 7 == 0, np.uint64(0), ids)


def grey() -> np.ndarray:
    return np.random.default_rng(5).integers(1, 255, SHAPE, dtype=np.uint8)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> ImageryClient:
    root = tmp_path_factory.mktemp("blocks")
    image, segmentation = write(root / "em", grey(), "image"), write(root / "seg", labels(), "segmentation")
    return ImageryClient(image_source=image, segmentation_source=segmentation, outside="fill")


@st.composite
def targets(draw: st.DrawFn, widest: int = 40) -> tuple[list[list[int]], tuple[float, float, float]]:
    """Draw a target grid: bounds in its voxels, overlapping or outside the volume, and its voxel size."""
    resolution = (draw(st.sampled_from(LATERAL)), draw(st.sampled_from(LATERAL)), draw(st.sampled_from(AXIAL)))
    lower, upper = [], []
    for axis in range(3):
        ratio = OWN[axis] / resolution[axis]
        first = int((START[axis] - 6) * ratio) - 1
        last = int((START[axis] + SHAPE[axis] + 2) * ratio)
        lower.append(draw(st.integers(first, last)))
        upper.append(lower[-1] + draw(st.integers(2, widest)))
    return [lower, upper], resolution


def cut(client: ImageryClient, kind: str, target: Any, **options: Any) -> Any:
    bounds, resolution = target
    call = client.image_cutout if kind == "image" else client.segmentation_cutout
    return call(bounds, resolution=resolution, scale_to_bounds=True, **options)


def cutout_of(array: Any) -> Cutout:
    source = source_of(array)
    assert source is not None
    return source.cutout


def computed(array: Any) -> np.ndarray:
    return np.asarray(array.compute(scheduler="synchronous"))


def expected(data: np.ndarray, target: Any) -> np.ndarray:
    """Resample with exact fractions: take the source voxel that contains the target's centre, or 0."""
    (lower, upper), resolution = target
    index = []
    for axis in range(3):
        step = Fraction(str(resolution[axis])) / Fraction(str(OWN[axis]))
        centres = [(t + Fraction(1, 2)) * step for t in range(lower[axis], upper[axis])]
        index.append(np.array([centre.__floor__() - START[axis] for centre in centres]))
    inside = [(i >= 0) & (i < n) for i, n in zip(index, data.shape, strict=True)]
    taken = data[np.ix_(*(np.clip(i, 0, n - 1) for i, n in zip(index, data.shape, strict=True)))]
    return np.where(inside[0][:, None, None] & inside[1][:, None] & inside[2], taken, 0).astype(data.dtype).squeeze()


block_bytes = st.sampled_from([1, 2_000, 20_000, 200_000])


@given(target=targets(), size=block_bytes)
def test_labels_are_exact_with_blocks_of_any_size(client: ImageryClient, target: Any, size: int) -> None:
    with config.set({"lazy.block_bytes": size}):
        array = cut(client, "labels", target)
    whole = expected(labels(), target)
    assert array.dtype == np.int64
    np.testing.assert_array_equal(computed(array).astype(np.uint64), whole)
    assert set(np.unique(whole)) <= {0, *np.unique(labels()).tolist()}


@given(target=targets(), size=block_bytes)
def test_nearest_imagery_is_exact_with_blocks_of_any_size(client: ImageryClient, target: Any, size: int) -> None:
    with config.set({"lazy.block_bytes": size}):
        array = cut(client, "image", target)
    np.testing.assert_array_equal(computed(array), expected(grey(), target))


@given(target=targets(widest=24), size=block_bytes, order=st.sampled_from([0, 1]), data=st.data())
def test_any_partition_equals_one_block(
    client: ImageryClient, target: Any, size: int, order: int, data: st.DataObject
) -> None:
    """Compare one read of everything, dask's blocks, and blocks at arbitrary edges."""
    with config.set({"lazy.block_bytes": size}):
        array = cut(client, "image", target, order=order)
    cutout = cutout_of(array)
    source = lazy.CutoutArray(cutout)
    whole = source.read(cutout.target)[..., 0]
    assert whole.shape == cutout.target.shape
    np.testing.assert_array_equal(computed(array), whole.squeeze())
    pieces = np.full_like(whole, 255)
    edges = [
        sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=2), label=f"edges {axis}")})
        for axis, n in zip("xyz", cutout.target.shape, strict=True)
    ]
    for x in pairwise(edges[0]):
        for y in pairwise(edges[1]):
            for z in pairwise(edges[2]):
                key = tuple(slice(*span) for span in (x, y, z))
                pieces[key] = source[key]
    np.testing.assert_array_equal(pieces, whole)


@given(
    target=targets(),
    keep=st.sets(st.sampled_from([*np.unique(labels()).tolist(), 2**60 + 10**6, 2**64 - 1]), max_size=40),
    size=block_bytes,
)
def test_ids_that_are_not_listed_become_zero(client: ImageryClient, target: Any, keep: set[int], size: int) -> None:
    with config.set({"lazy.block_bytes": size}):
        array = cut(client, "labels", target, root_ids=sorted(keep), convert_to_int64=False)
    whole = expected(labels(), target)
    listed = np.array([*keep, 0], dtype=np.uint64)  # with another dtype, numpy would compare floats
    assert array.dtype == np.uint64
    np.testing.assert_array_equal(computed(array), np.where(np.isin(whole, listed), whole, 0))


def keys(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw basic indices: slices with any step and bounds, and integers, of both signs."""
    parts = [st.one_of(st.slices(n), st.integers(-n, n - 1)) if n else st.slices(n) for n in shape]
    return st.tuples(*parts)


@given(
    target=targets(), kind=st.sampled_from(["image", "labels"]), order=st.sampled_from([0, 1]), size=block_bytes,
    data=st.data(),
)  # fmt: skip
def test_slicing_commutes_with_computing(
    client: ImageryClient, target: Any, kind: str, order: int, size: int, data: st.DataObject
) -> None:
    options = {"order": order} if kind == "image" else {}
    with config.set({"lazy.block_bytes": size}):
        array = cut(client, kind, target, **options)
    whole = computed(array)
    key = data.draw(keys(array.shape), label="first slice")
    np.testing.assert_array_equal(computed(array[key]), whole[key])
    # The array-like without dask, for callers of numpy's indexing protocol.
    direct = lazy.CutoutArray(cutout_of(array), squeeze=True)
    np.testing.assert_array_equal(direct[key], whole[key])
    again = data.draw(keys(whole[key].shape), label="second slice")
    np.testing.assert_array_equal(computed(array[key][again]), whole[key][again])


@given(target=targets(), size=block_bytes, axis=st.integers(0, 2), data=st.data())
def test_indexing_with_lists_and_masks_commutes_with_computing(
    client: ImageryClient, target: Any, size: int, axis: int, data: st.DataObject
) -> None:
    """Lists of indices (in any order, repeated, negative) and masks along one axis, slices along the others."""
    with config.set({"lazy.block_bytes": size}):
        array = cut(client, "labels", target)
    whole = computed(array)
    n = array.shape[axis]
    index: Any = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=6), label="indices")
    if data.draw(st.booleans(), label="as mask"):
        index = np.isin(np.arange(n), index)
    key: list[Any] = [data.draw(st.slices(m), label="slice") for m in array.shape]
    key[axis] = index
    np.testing.assert_array_equal(computed(array[tuple(key)]), whole[tuple(key)])
    np.testing.assert_array_equal(lazy.CutoutArray(cutout_of(array), squeeze=True)[tuple(key)], whole[tuple(key)])


@given(target=targets(), kind=st.sampled_from(["image", "linear", "labels"]), axis=st.integers(0, 2), data=st.data())
def test_adjacent_cutouts_meet_without_a_seam(
    client: ImageryClient, target: Any, kind: str, axis: int, data: st.DataObject
) -> None:
    (lower, upper), resolution = target
    at = data.draw(st.integers(lower[axis] + 1, upper[axis] - 1), label="cut at")
    middle_upper, middle_lower = list(upper), list(lower)
    middle_upper[axis] = middle_lower[axis] = at
    options = {"linear": {"order": 1}}.get(kind, {})
    layer = "labels" if kind == "labels" else "image"
    whole = cut(client, layer, target, **options)
    full = [b - a for a, b in zip(lower, upper, strict=True)]
    parts = []
    for bounds in ([lower, middle_upper], [middle_lower, upper]):
        size = [b - a for a, b in zip(*bounds, strict=True)]
        parts.append(computed(cut(client, layer, (bounds, resolution), **options)).reshape(size))
    np.testing.assert_array_equal(np.concatenate(parts, axis=axis), computed(whole).reshape(full))


@given(target=targets())
def test_layers_of_a_pair_share_one_grid(client: ImageryClient, target: Any) -> None:
    bounds, resolution = target
    image, ids = client.image_and_segmentation_cutout(bounds, resolution=resolution)
    assert image.shape == ids.shape
    np.testing.assert_array_equal(computed(image), expected(grey(), target))
    np.testing.assert_array_equal(computed(ids).astype(np.uint64), expected(labels(), target))


@given(target=targets(widest=12))
def test_masks_are_true_where_the_ids_are(client: ImageryClient, target: Any) -> None:
    bounds, resolution = target
    whole = expected(labels(), target)
    masks = client.split_segmentation_cutout(bounds, resolution=resolution)
    assert list(masks) == [int(i) for i in np.unique(whole) if i]
    for root_id in list(masks)[:3]:
        assert masks[root_id].dtype == bool
        np.testing.assert_array_equal(computed(masks[root_id]), whole == np.uint64(root_id))


# ------------------------------------------------------------------------------------ linear resampling of volumes


@pytest.mark.parametrize("start", [(0, 0, 0), (48, -24, 12)])
@pytest.mark.parametrize(
    "size",
    # Whole and fractional ratios from 1/4 to 4 whose voxel sizes are decimal numbers and divide the volume.
    [(48, 40, 24), (12, 10, 6), (16, 25, 10), (24, 20, 12), (64, 50, 15), (15, 5, 32), (6, 5, 3), (30, 100, 16)],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_linear_resampling_equals_scikit_image(
    tmp_path: Path, start: Any, size: tuple[int, int, int], dtype: str
) -> None:
    """Values equal those of ``skimage.transform.resize``, except for the rounding of exact halves."""
    shape, own = (24, 20, 12), (8, 8, 40)
    rng = np.random.default_rng(3)
    source = rng.random(shape).astype(dtype) if dtype == "float32" else rng.integers(0, 256, shape).astype(dtype)
    if dtype == "uint16":
        source *= 257
    client = ImageryClient(image_source=write(tmp_path, source, "image", start, own))
    exact = [Fraction(n * nm, m) for n, nm, m in zip(shape, own, size, strict=True)]
    lower = [Fraction(first * nm) / step for first, nm, step in zip(start, own, exact, strict=True)]
    assert all(value.denominator == 1 for value in lower), "the volume's edge must be on a voxel of the result's grid"
    assert all(Fraction(repr(float(step))) == step for step in exact), "voxel sizes must be decimal numbers"
    first = [int(value) for value in lower]
    bounds = [first, [a + n for a, n in zip(first, size, strict=True)]]
    with config.set({"lazy.block_bytes": 1}):
        array = client.image_cutout(bounds, resolution=[float(s) for s in exact], scale_to_bounds=True, order=1)
    result = computed(array)
    theirs = resize(
        source.astype(np.float64), size, order=1, mode="edge", anti_aliasing=False, preserve_range=True, clip=False
    )
    assert result.dtype == dtype
    assert result.shape == size
    if dtype == "float32":
        np.testing.assert_allclose(result, theirs, rtol=1e-6)
        return
    difference = np.abs(result.astype(np.int64) - np.rint(theirs).astype(np.int64))
    half = np.abs(theirs - np.floor(theirs) - 0.5) < 1e-6
    assert difference.max() <= 1
    assert not difference[~half].any()


@given(target=targets())
def test_linear_resampling_is_zero_only_outside_the_volume(client: ImageryClient, target: Any) -> None:
    outside = expected(np.ones(SHAPE, dtype=np.uint8), target) == 0
    result = computed(cut(client, "image", target, order=1))
    assert not result[outside].any()
    assert (result[~outside] >= 1).all()


# ------------------------------------------------------------------------------------ values: pickles and tokens


@given(target=targets(), kind=st.sampled_from(["image", "labels"]))
def test_arrays_survive_pickling(client: ImageryClient, target: Any, kind: str) -> None:
    array = cut(client, kind, target)
    copy = pickle.loads(pickle.dumps(array))
    assert copy.name == array.name
    assert copy.chunks == array.chunks
    np.testing.assert_array_equal(computed(copy), computed(array))
    for squeeze in (False, True):
        source = lazy.CutoutArray(cutout_of(array), squeeze)
        clone = pickle.loads(pickle.dumps(source))
        assert clone.cutout == source.cutout
        assert (clone.shape, clone.dtype, clone.axes) == (source.shape, source.dtype, source.axes)


@given(target=targets(widest=3), squeeze=st.booleans())
def test_axes_of_length_one_survive_pickling(client: ImageryClient, target: Any, squeeze: bool) -> None:
    (lower, _), resolution = target
    bounds = [lower, [lower[0] + 1, lower[1] + 2, lower[2] + 1]]
    source = lazy.CutoutArray(cutout_of(cut(client, "labels", (bounds, resolution))), squeeze)
    assert source.shape == ((2,) if squeeze else (1, 2, 1))
    assert pickle.loads(pickle.dumps(source)).shape == source.shape


@given(first=targets(), second=targets())
def test_tokens_differ_exactly_where_cutouts_differ(client: ImageryClient, first: Any, second: Any) -> None:
    assume(first != second)
    array, other = (cut(client, "image", target) for target in (first, second))
    token = tokenize(lazy.CutoutArray(cutout_of(array)))
    assert array.name != other.name
    assert token != tokenize(lazy.CutoutArray(cutout_of(other)))
    again = cut(client, "image", first)
    assert again.name == array.name
    assert tokenize(lazy.CutoutArray(cutout_of(again))) == token


def test_tokens_depend_on_every_option_that_changes_voxels(client: ImageryClient) -> None:
    target = ([[10, -18, 0], [20, -10, 4]], OWN)
    fill = cut(client, "image", target)
    strict = ImageryClient(image_source=client.image_source, missing="error", outside="fill")
    one_id = FIRST_ID + 5
    arrays = [
        fill,
        cut(strict, "image", target),
        cut(client, "image", target, order=1),
        client.image_cutout([[10, -18, 0], [20, -10, 4]], resolution=(16, 16, 40), scale_to_bounds=True),
        cut(client, "labels", target),
        cut(client, "labels", target, convert_to_int64=False),
        cut(client, "labels", target, root_ids=[]),
        cut(client, "labels", target, root_ids=[one_id]),
        cut(client, "labels", target, root_ids=[one_id, one_id + 1]),
        client.split_segmentation_cutout(target[0], resolution=OWN, scale_to_bounds=True)[one_id],
        client.split_segmentation_cutout(target[0], resolution=OWN, scale_to_bounds=True)[one_id + 1],
    ]
    assert len({array.name for array in arrays}) == len(arrays)


@pytest.mark.parametrize("kind", ["image", "segmentation"])
def test_blocks_of_the_next_level_equal_the_whole(tmp_path: Path, kind: Any) -> None:
    data = (grey() if kind == "image" else labels())[:39, :35, :23]
    path = write(tmp_path / "v", data, kind, (6, -20, -4))
    whole = whole_layer(open_volume(path).layer, 0)
    plain = lazy.lazy_array(whole)
    for step in ((2, 2, 1), (2, 2, 2), (1, 1, 2)):
        array = lazy.lazy_array(whole.coarser(step))
        expected = downsample(np.asfortranarray(data), step, kind == "segmentation")
        assert array.name != plain.name
        np.testing.assert_array_equal(array.compute(), expected, strict=True)
        np.testing.assert_array_equal(array[3:11, ::-2, -5].compute(), expected[3:11, ::-2, -5], strict=True)
        source = source_of(array)
        assert source is not None
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again[5:, 2:9], expected[5:, 2:9])
        edges: Any = ([0, 4, array.shape[0]], [0, array.shape[1]], [0, array.shape[2]])
        read = chunk_reads(source, BlockPlan(edges, (True, True, True)))
        assert read == sum(
            math.prod(
                -(-min(stop * n, size) // chunk) - start * n // chunk
                for (start, stop), n, size, chunk in zip(block, step, data.shape, CHUNK, strict=True)
            )
            for block in itertools.product(*map(pairwise, edges))
        )
