"""Overlays equal those of the released imageryclient, except for the differences in docs/differences.md."""

from __future__ import annotations

import inspect
from typing import Any
from unittest import mock

import dask.array as da
import imageryclient
import numpy as np
import pytest
import seaborn
from compat.worlds import World, make_world
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import imagery_dask
from imagery_dask.arrays import cutout_array
from imagery_dask.render.palettes import discrete_colors

FIRST_ID = 2**60 + 1
BOUNDS = [[44, 28, 9], [60, 40, 12]]

Case = tuple[Any, dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (40, 24, 8))


def pixels(pictures: Any) -> list[NDArray[np.uint8]]:
    """Return all bytes of one or more pictures, including those of transparent pixels."""
    listed = pictures if isinstance(pictures, list) else [pictures]
    assert all(isinstance(picture, Image.Image) and picture.mode == "RGBA" for picture in listed)
    return [np.asarray(picture) for picture in listed]


def assert_same(ours: Any, released: Any) -> None:
    assert isinstance(ours, list) == isinstance(released, list)
    for own, expected in zip(pixels(ours), pixels(released), strict=True):
        np.testing.assert_array_equal(own, expected)


def assert_as_released(segs: Any, **options: Any) -> None:
    assert_same(imagery_dask.composite_overlay(segs, **options), imageryclient.composite_overlay(segs, **options))


# --------------------------------------------------------------------------- any request


@st.composite
def objects(draw: st.DrawFn, shape: tuple[int, ...], kind: str) -> Any:
    """Draw overlapping masks, named or not and of any dtype; or adjacent blocks of ids."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "ids":
        size = draw(st.integers(1, 5))
        blocks = rng.integers(0, draw(st.integers(2, 6)), tuple(-(-n // size) for n in shape)).astype(np.uint64)
        for axis in range(len(shape)):
            blocks = blocks.repeat(size, axis)
        ids = blocks[tuple(slice(n) for n in shape)]
        ids[(0,) * len(shape)] = 1  # at least one id
        # Neighbouring ids, which are equal as floats.
        return np.where(ids > 0, ids + np.uint64(FIRST_ID), ids).astype(draw(st.sampled_from([np.uint64, np.int64])))
    density, dtype = draw(st.sampled_from([0.0, 0.02, 0.3, 1.0])), draw(st.sampled_from([bool, np.int64, np.float32]))
    masks = [(rng.random(shape) < density).astype(dtype) for _ in range(draw(st.integers(1, 4)))]
    names = [int(number) + FIRST_ID for number in rng.permutation(len(masks))]
    return masks if kind == "list" else dict(zip(names, masks, strict=True))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw objects and the options of their overlay."""
    shape = tuple(draw(st.lists(st.integers(2, 14), min_size=2, max_size=3)))
    kind = draw(st.sampled_from(["list", "dict", "ids"]))
    segs = draw(objects(shape, kind))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    names = list(np.unique(segs)) if kind == "ids" else list(segs) if kind == "dict" else range(len(segs))
    colors = [tuple(rng.random(draw(st.sampled_from([3, 4])))) for _ in names]
    imagery = rng.integers(0, 256, shape).astype(draw(st.sampled_from([np.uint8, bool])))
    as_image = Image.fromarray(rng.integers(0, 256, (*shape[1::-1], 4)).astype(np.uint8))
    backgrounds = [None, imagery, as_image, as_image.convert("RGB")] if len(shape) == 2 else [None, imagery]
    options = {
        "colors": draw(st.sampled_from([None, colors if kind == "list" else dict(zip(names, colors, strict=True))])),
        "alpha": draw(st.one_of(st.sampled_from([0, 0.2, 1, 0.003]), st.floats(0, 1))),
        "imagery": draw(st.sampled_from(backgrounds)),
        "width": draw(st.sampled_from([1, 2, 3, 5, 10, 50])),
        "side": draw(st.sampled_from(["out", "in"])),
        "dim": draw(st.sampled_from([0, 1, 2])),
        "palette": draw(st.sampled_from(["husl", "hls", "deep"])),
        **{name: draw(st.booleans()) for name in ("outline", "merge_outline", "overlap")},
    }
    return segs, options


@given(case=cases())
def test_overlays_equal_the_release(case: Case) -> None:
    segs, options = case
    assert_as_released(segs, **options)


@pytest.mark.parametrize("outline", [False, True])
@pytest.mark.parametrize("segs", [[np.eye(40) > 0, np.ones((40, 40))], np.eye(40, dtype=np.uint64) * FIRST_ID])
def test_overlays_with_default_options_equal_the_release(segs: Any, outline: bool) -> None:
    assert_as_released(segs, outline=outline)


@given(case=cases())
def test_overlays_of_dask_arrays_equal_the_release(case: Case) -> None:
    segs, options = case
    lazy_segs: Any = (
        {key: da.from_array(mask, chunks=3) for key, mask in segs.items()} if isinstance(segs, dict) else None
    )
    if lazy_segs is None:
        listed = isinstance(segs, list)
        lazy_segs = [da.from_array(mask, chunks=3) for mask in segs] if listed else da.from_array(segs, chunks=3)
    if isinstance(options["imagery"], np.ndarray):
        options["imagery"] = da.from_array(options["imagery"], chunks=3)
    ours = imagery_dask.composite_overlay(lazy_segs, **options)
    if isinstance(options["imagery"], da.Array):
        options["imagery"] = options["imagery"].compute()
    assert_same(ours, imageryclient.composite_overlay(segs, **options))


def test_the_signature_equals_the_release() -> None:
    ours, released = (
        [(p.name, p.kind, p.default) for p in inspect.signature(package.composite_overlay).parameters.values()]
        for package in (imagery_dask, imageryclient)
    )
    assert ours == released


def test_default_colors_equal_those_of_seaborn() -> None:
    for count in range(60):
        for h, l, s in [(0.01, 0.65, 1.0), (0, 0.5, 0.5), (0.99, 0.03, 1), (2.7, 1, 0.8), (-0.2, 0, 0.4)]:  # noqa: E741
            for name in ("husl", "hls"):
                expected = getattr(seaborn, f"{name}_palette")(count, h=h, l=l, s=s)
                ours = discrete_colors(count, name, h, l, s)
                np.testing.assert_allclose(ours, list(expected), atol=1e-9)
                as_bytes = [[[int(255 * value) for value in color] for color in colors] for colors in (ours, expected)]
                assert as_bytes[0] == as_bytes[1]


@pytest.mark.parametrize("options", [{}, {"outline": True, "width": 2}, {"outline": True, "merge_outline": False}])
def test_drawing_the_masks_of_a_cutout_reads_it_once(world: World, options: dict[str, Any]) -> None:
    masks = world.ours.split_segmentation_cutout(BOUNDS, mip=0)
    image = world.ours.image_cutout(BOUNDS, mip=1)
    released = world.released.split_segmentation_cutout(BOUNDS, mip=0)
    colors = {root_id: (0.1 * (number % 9), 0.5, 1) for number, root_id in enumerate(world.ids)}
    sizes, read = [], cutout_array.read_objects

    def reading(handle: Any, box: Any, *rest: Any) -> Any:
        voxels = read(handle, box, *rest)
        sizes.append(box.size)
        return voxels

    with mock.patch.object(cutout_array, "read_objects", reading):
        ours = imagery_dask.composite_overlay(masks, colors, imagery=image, **options)
    assert sum(sizes) == np.prod(masks.shape) + np.prod(image.shape)  # each voxel once, whatever the number of objects
    assert len(masks) > 1
    assert_same(ours, imageryclient.composite_overlay(released, colors, imagery=image.compute(), **options))


def test_null_root_is_drawn_if_it_is_requested(world: World) -> None:
    across = [[36, 20, 6], [48, 36, 9]]  # across the lower corner of the volume
    masks = world.ours.split_segmentation_cutout(across, mip=0, include_null_root=True)
    released = world.released.split_segmentation_cutout(across, mip=0, include_null_root=True)
    for options in ({}, {"outline": True, "merge_outline": False}):
        ours = imagery_dask.composite_overlay(masks, **options)
        assert_same(ours, imageryclient.composite_overlay(released, **options))
    assert 0 in masks


def test_overlays_of_cutouts_and_datasets_equal_the_release(world: World) -> None:
    image, labels = world.ours.image_and_segmentation_cutout(BOUNDS)
    assert_same(
        imagery_dask.composite_overlay(labels, imagery=image),
        imageryclient.composite_overlay(labels.compute(), imagery=image.compute()),
    )
    data = world.ours.dataset(BOUNDS)
    assert_same(
        imagery_dask.composite_overlay(data.segmentation, imagery=data.image),
        imageryclient.composite_overlay(data.segmentation.values, imagery=data.image.values),
    )


# --------------------------------------------------------------------------- differences on purpose

MASKS = [np.arange(24).reshape(6, 4) % 5 == 0, np.arange(24).reshape(6, 4) % 3 == 0]
RED = (1, 0, 0)


def test_overlays_accept_any_collection() -> None:
    ids = np.array([[FIRST_ID, 0], [FIRST_ID + 1, 0]], dtype=np.uint64)
    expected = imageryclient.composite_overlay(ids)
    named = {FIRST_ID: ids == FIRST_ID, FIRST_ID + 1: ids == FIRST_ID + 1}
    assert_same(imagery_dask.composite_overlay(da.from_array(ids)), expected)
    assert_same(imagery_dask.composite_overlay(mask for mask in named.values()), expected)
    assert imageryclient.composite_overlay(da.from_array(ids)).size == (1, 2)  # the release draws each row as a mask


def test_overlays_one_pixel_wide_keep_their_axes() -> None:
    mask = np.array([[True], [False], [True]])  # x, y
    assert imageryclient.composite_overlay([mask]).size == (1, 3)
    with pytest.raises(IndexError):
        imageryclient.composite_overlay([mask], outline=True)
    for segs in ([mask], mask.astype(np.uint64) * FIRST_ID):
        assert imagery_dask.composite_overlay(segs).size == (3, 1)
        (row,) = pixels(imagery_dask.composite_overlay(segs, outline=True, width=1))
        assert row[..., 3].tolist() == [[0, 51, 0]]
    (pixel,) = pixels(imagery_dask.composite_overlay([np.ones((1, 1))], [RED]))
    assert pixel.tolist() == [[[255, 0, 0, 51]]]


def test_overlay_without_objects_is_a_picture(world: World) -> None:
    nothing, grey = np.zeros((6, 4), dtype=np.uint64), np.full((6, 4), 7, dtype=np.uint8)
    with pytest.raises(IndexError):
        imageryclient.composite_overlay(nothing)
    for outline in (False, True):
        (empty,) = pixels(imagery_dask.composite_overlay(nothing, outline=outline))
        assert empty.shape == (4, 6, 4)
        assert not empty.any()
        for segs in (nothing, [], {}):
            (over,) = pixels(imagery_dask.composite_overlay(segs, imagery=grey, outline=outline))
            assert np.unique(over.reshape(-1, 4), axis=0).tolist() == [[7, 7, 7, 255]]
    assert len(imagery_dask.composite_overlay([], imagery=np.zeros((6, 4, 3), dtype=np.uint8))) == 3
    with pytest.raises(ValueError, match="no masks and there is no imagery"):
        imagery_dask.composite_overlay([])
    masks = world.ours.split_segmentation_cutout(BOUNDS, root_ids=[], mip=0)
    assert not any(page.any() for page in pixels(imagery_dask.composite_overlay(masks)))


def test_every_mask_of_an_overlay_has_a_color() -> None:
    named = {FIRST_ID: MASKS[0], FIRST_ID + 1: MASKS[1]}
    imageryclient.composite_overlay(MASKS, [RED])  # the release does not draw the second mask
    with pytest.raises(ValueError, match="got 1 for 2 masks"):
        imagery_dask.composite_overlay(MASKS, [RED])
    with pytest.raises(ValueError, match=f"colors has none for {FIRST_ID + 1}"):
        imagery_dask.composite_overlay(named, {FIRST_ID: RED})
    with pytest.raises(ValueError, match=f"colors has none for {FIRST_ID}"):
        imagery_dask.composite_overlay(np.full((3, 3), FIRST_ID), {})
    for segs, colors in ((named, [RED, RED]), (np.full((3, 3), FIRST_ID), [RED]), (MASKS, {0: RED, 1: RED})):
        with pytest.raises(TypeError, match="colors must map ids"):
            imagery_dask.composite_overlay(segs, colors)
    for bad in ((255, 0, 0), (-0.1, 0, 0), (1, 0), "red", 1, (None, 0, 0), (float("nan"), 0, 0)):
        with pytest.raises(ValueError, match="numbers from 0 to 1"):
            imagery_dask.composite_overlay(MASKS, [RED, bad])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"alpha": 1.5}, "alpha is a number from 0"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": "0.2"}, "alpha"),
        ({"width": 0}, "width is a whole number of pixels, 1 at least"),
        ({"width": 2.5}, "width"),
        ({"width": -1}, "width"),
        ({"side": "outside"}, "side must be 'out' or 'in'"),
        ({"dim": 3}, "dim is 0"),
        ({"dim": -1}, "dim"),
        ({"palette": "no such palette"}, "not a valid palette"),
        ({"l": 2}, "l is a number from 0 to 1"),
        ({"s": "1"}, "s is a number"),
        ({"h": float("inf")}, "h is a number"),
    ],
    ids=str,
)
def test_bad_overlay_arguments_are_errors(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        imagery_dask.composite_overlay(MASKS, **options)


def test_an_outline_of_width_zero_is_an_error() -> None:
    (flooded,) = pixels(imageryclient.composite_overlay(MASKS[:1], outline=True, width=0))
    np.testing.assert_array_equal(flooded[..., 3] > 0, ~MASKS[0].T)
    with pytest.raises(ValueError, match="1 at least"):
        imagery_dask.composite_overlay(MASKS[:1], outline=True, width=0)


def test_overlay_masks_and_imagery_must_have_one_shape() -> None:
    volume = [np.ones((6, 4, 2))]
    longer = np.zeros((6, 4, 9), dtype=np.uint8)
    assert len(imageryclient.composite_overlay(volume, imagery=longer)) == 2
    for segs, imagery in ((volume, longer), (MASKS, Image.new("L", (4, 6))), (MASKS, longer[..., 0].T)):
        with pytest.raises(ValueError, match="imagery"):
            imagery_dask.composite_overlay(segs, imagery=imagery)
    with pytest.raises(ValueError, match=r"one shape; got \(5, 4\), \(6, 4\)"):
        imagery_dask.composite_overlay([MASKS[0], MASKS[1][:5]])
    for shape in ((4,), (4, 4, 4, 3), (0, 4)):
        with pytest.raises(ValueError, match="axes x, y or x, y, z"):
            imagery_dask.composite_overlay([np.ones(shape)])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_overlay_imagery_must_be_8_bit(dtype: Any) -> None:
    imagery = np.full((6, 4), 0.9 if dtype in (np.float32, np.float64) else 400, dtype=dtype)
    (flat,) = pixels(imageryclient.composite_overlay([np.zeros((6, 4))], imagery=imagery))
    assert set(np.unique(flat[..., :3])) <= {0, 255}  # black, or white
    with pytest.raises(TypeError, match=f"imagery is uint8; got {imagery.dtype}"):
        imagery_dask.composite_overlay(MASKS, imagery=imagery)


def test_float_ids_of_an_overlay_are_refused() -> None:
    ids = np.array([[FIRST_ID, FIRST_ID + 1]], dtype=np.float64)
    assert len(np.unique(ids)) == 1
    with pytest.raises(TypeError, match="Ids are integers; got an array of float64"):
        imagery_dask.composite_overlay(ids)
    for segs in (7, "masks", None):
        with pytest.raises(TypeError, match="segs is a mapping"):
            imagery_dask.composite_overlay(segs)


def test_outlines_of_256_overlapping_masks_are_drawn() -> None:
    masks = [MASKS[0]] * 256
    colors = [RED] * 256
    (released,) = pixels(imageryclient.composite_overlay(masks, colors, outline=True, width=1))
    assert not released[..., 3].any()
    (ours,) = pixels(imagery_dask.composite_overlay(masks, colors, outline=True, width=1))
    (fewer,) = pixels(imageryclient.composite_overlay(masks[:9], colors[:9], outline=True, width=1))
    assert fewer[..., 3].any()
    np.testing.assert_array_equal(ours[..., 3] > 0, fewer[..., 3] > 0)


def test_overlays_need_no_seaborn() -> None:
    with mock.patch.dict("sys.modules", {"seaborn": None}):
        assert_as_released(MASKS)
        assert_as_released(MASKS, palette="hls")
        with pytest.raises(ImportError, match="pip install seaborn"):
            imagery_dask.composite_overlay(MASKS, palette="deep")


def test_overlays_do_not_change_their_input() -> None:
    masks, grey = [mask.copy() for mask in MASKS], np.full((6, 4), 9, dtype=np.uint8)
    ids = np.arange(24, dtype=np.uint64).reshape(6, 4) + np.uint64(FIRST_ID)
    kept = ids.copy()
    for outline in (False, True):
        imagery_dask.composite_overlay(masks, imagery=grey, outline=outline)
        imagery_dask.composite_overlay(ids, imagery=grey, outline=outline, merge_outline=False)
    np.testing.assert_array_equal(masks, MASKS)
    np.testing.assert_array_equal(ids, kept)
    assert (grey == 9).all()
