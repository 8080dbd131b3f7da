"""Requests resolve to exact cutouts, or raise errors that name the argument, the values and the remedy."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.arguments import bounds_from_center
from imagery_dask.model.cutout import (
    Cutout,
    CutoutRequest,
    dimensions_in,
    resolve,
    resolve_pair,
    triple,
    whole_layer,
)
from imagery_dask.model.labels import LabelRule, label_rule
from imagery_dask.model.layer import Layer
from imagery_dask.serialization import from_json, to_json

EM = (8.0, 8.0, 40.0)
BOX = [[100, 200, 10], [140, 260, 15]]
ROOT = 864691135000000001


def layer(kind: str = "image", finest: float = 8, mips: int = 3, placeholder: bool = False) -> Layer:
    scales = [
        {
            "key": f"placeholder_{mip}" if placeholder and mip == 0 else f"mip{mip}",
            "size": [4096 >> mip, 4096 >> mip, 300],
            "voxel_offset": [64 >> mip, 0, -20],
            "resolution": [finest * 2**mip, finest * 2**mip, 40],
            "chunk_sizes": [[64, 64, 16]],
            "encoding": "raw",
        }
        for mip in range(mips)
    ]
    dtype = "uint8" if kind == "image" else "uint64"
    info = {"type": kind, "data_type": dtype, "num_channels": 1, "scales": scales}
    return Layer.from_info(f"precomputed://gs://bucket/{kind}", info)


def cut(bounds: Any = BOX, source: Layer | None = None, **fields: Any) -> Any:
    options = {name: fields.pop(name) for name in ("missing", "order", "labels") if name in fields}
    request = CutoutRequest(**{"bounds": bounds, "default_mip": 0, "resolution": EM} | fields)
    return resolve(request, source or layer(), **options)


def assert_refused(error: type[Exception], words: list[Any], **fields: Any) -> None:
    """Assert that a request raises an error whose message has all the words, in any case."""
    with pytest.raises(error) as caught:
        cut(**fields)
    assert type(caught.value) is error  # not a subclass such as UnicodeError or an error of numpy
    for word in words:
        assert str(word).lower() in str(caught.value).lower(), f"{word!r} is not in {caught.value}"


# -------------------------------------------------------------------------------------------------- bad input

TOO_MANY = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
RAGGED = [[1, 2], [3]]


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([[140, 200, 10], [100, 260, 15]], ["inverted or empty along x:", "lower one"]),
        ([[140, 260, 15], [100, 200, 10]], ["inverted or empty along x, y, z", "lower one"]),
        ([[100, 200, 10], [140, 200, 15]], ["inverted or empty along y:", "exclusive"]),
        (np.array([[1, 2, 3], [4, 5, 3]]), ["inverted or empty along z:", "exclusive"]),
        ([[np.nan, 200, 10], [140, 260, 15]], ["finite"]),
        ([[100, 200, 10], [140, np.inf, 15]], ["finite"]),
        ([[-np.inf, 200, 10], [140, 260, 15]], ["finite"]),
        ([[None, 200, 10], [140, 260, 15]], ["finite"]),
        ([1, 2, 3], ["two corners (2 x 3)", "give bbox_size or image_size"]),
        ([[1, 2], [3, 4]], ["two corners (2 x 3)", "shape (2, 2)"]),
        (TOO_MANY, ["two corners (2 x 3)", "shape (3, 3)"]),
        ([1, 2, 3, 4, 5, 6], ["two corners (2 x 3)", "shape (6,)"]),
        (7, ["two corners (2 x 3)", "shape ()"]),
        ([], ["two corners (2 x 3)", "shape (0,)"]),
    ],
)
def test_bad_bounds_are_refused(bounds: Any, words: list[str]) -> None:
    assert_refused(ValueError, ["bounds", repr(bounds), *words], bounds=bounds)


@pytest.mark.parametrize("bounds", [RAGGED, "here", [["a", 2, 3], [4, 5, 6]], object(), {"lower": (0, 0, 0)}])
def test_bounds_that_are_not_numbers_are_refused(bounds: Any) -> None:
    assert_refused(TypeError, ["bounds must be two corners of three numbers", repr(bounds)], bounds=bounds)


def test_missing_bounds_are_refused() -> None:
    assert_refused(ValueError, ["bounds are needed", "bbox_size or image_size"], bounds=None)


def test_bounds_smaller_than_a_voxel_are_refused() -> None:
    words = ["bounds", "(5, 5, 0)", "(7, 7, 1)", "(8, 8, 40) nm", "no voxel along x, y:", "(32, 32, 40) nm", "larger"]
    assert_refused(ValueError, words, bounds=[[5, 5, 0], [7, 7, 1]], mip=2)


@pytest.mark.parametrize("size", [(64, 64, 4), (64, 64)])
def test_bbox_size_and_image_size_exclude_each_other(size: Any) -> None:
    words = ["bbox_size", "image_size", "not both", "64"]
    assert_refused(ValueError, words, bounds=[100, 100, 10], bbox_size=size, image_size=size)


@pytest.mark.parametrize("name", ["bbox_size", "image_size"])
@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((0, 64, 4), ["positive"]),
        ((64, -1), ["positive"]),
        ((64, np.nan, 4), ["finite"]),
        ((64, np.inf), ["finite"]),
        ((64,), ["2 or 3 numbers"]),
        ((64, 64, 4, 1), ["2 or 3 numbers"]),
        (64, ["2 or 3 numbers"]),
        (TOO_MANY, ["2 or 3 numbers"]),
        (RAGGED, ["2 or 3 numbers", repr(RAGGED)]),
        ("64", ["2 or 3 numbers", "'64'"]),
    ],
)
def test_bad_sizes_are_refused(name: str, size: Any, words: list[str]) -> None:
    value = "64" if isinstance(size, tuple) else size
    assert_refused(
        TypeError if size is RAGGED else ValueError, [name, value, *words], bounds=[100, 100, 10], **{name: size}
    )


@pytest.mark.parametrize("name", ["bbox_size", "image_size"])
def test_sizes_that_are_not_numbers_are_refused(name: str) -> None:
    assert_refused(TypeError, [name, "numbers", "wide"], bounds=[100, 100, 10], **{name: ("wide", "high", 3)})


def test_a_fractional_image_size_is_refused() -> None:
    assert_refused(ValueError, ["image_size", "64.5", "whole"], bounds=[100, 100, 10], image_size=(64.5, 64))


@pytest.mark.parametrize("name", ["bbox_size", "image_size"])
@pytest.mark.parametrize("center", [BOX, [1, 2], [1, 2, np.nan], None])
def test_a_center_must_be_one_point(name: str, center: Any) -> None:
    word = "finite" if center == [1, 2, np.nan] else "three numbers"
    assert_refused(ValueError, ["bounds", "center", repr(center), word], bounds=center, **{name: (64, 64)})


@pytest.mark.parametrize("mip", [3, -1, 2**40])
def test_a_mip_that_does_not_exist_is_refused(mip: int) -> None:
    assert_refused(ValueError, [f"mip {mip} does not exist", "gs://bucket/image", "mips 0 to 2"], mip=mip)
    assert_refused(ValueError, [f"mip {mip} does not exist"], default_mip=mip)


def test_a_placeholder_mip_is_refused() -> None:
    words = ["mip 0", "placeholder", "first mip with data is 1"]
    assert_refused(ValueError, words, source=layer(placeholder=True), mip=0)


@pytest.mark.parametrize("mip", [True, False, np.True_, 1.0, "1"])
def test_a_mip_that_is_not_an_integer_is_refused(mip: Any) -> None:
    assert_refused(TypeError, ["mip must be a whole number", repr(mip)], mip=mip)


@pytest.mark.parametrize("missing", ["zero", None, True])
def test_bad_values_of_missing_are_refused(missing: Any) -> None:
    assert_refused(ValueError, ["missing must be 'fill' or 'error'", repr(missing)], missing=missing)


@pytest.mark.parametrize("order", [2, -1, "linear", None])
def test_bad_values_of_order_are_refused(order: Any) -> None:
    assert_refused(ValueError, ["order must be 0 (nearest) or 1 (linear)", repr(order)], order=order)


def test_an_unknown_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="bbox_sise"):
        CutoutRequest(bounds=BOX, default_mip=0, resolution=EM, bbox_sise=(1, 1))  # type: ignore[call-arg]


@pytest.mark.parametrize("root_ids", ["none", "All", "", str(ROOT), b"all"])
def test_an_unknown_root_ids_string_is_refused(root_ids: Any) -> None:
    with pytest.raises(ValueError, match="root_ids must be 'all', None or a sequence of ids") as caught:
        label_rule(root_ids, as_int64=True)
    assert repr(root_ids) in str(caught.value)


@pytest.mark.parametrize("root_ids", [ROOT, np.uint64(ROOT), 1.5, np.array(ROOT)])
def test_a_single_id_without_a_list_is_refused(root_ids: Any) -> None:
    with pytest.raises(TypeError, match="root_ids must be .*Put one id in a list") as caught:
        label_rule(root_ids, as_int64=True)
    assert repr(root_ids) in str(caught.value)


@pytest.mark.parametrize("value", [float(ROOT), np.float64(ROOT), str(ROOT), None, [ROOT], np.nan])
def test_ids_that_are_not_integers_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"root_ids must be integers.*2\*\*53") as caught:
        label_rule([ROOT, value], as_int64=True)
    assert repr(value) in str(caught.value)
    assert type(value).__name__ in str(caught.value)


def test_an_array_of_float_ids_is_refused() -> None:
    with pytest.raises(TypeError, match="a float has already rounded them"):
        label_rule(np.array([ROOT], dtype=np.float64), as_int64=True)


@pytest.mark.parametrize("value", [-1, -ROOT, 2**64, np.int64(-5), True])
def test_ids_out_of_range_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"root_ids must be integers from 0 to 2\*\*64 - 1") as caught:
        label_rule([value], as_int64=True)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("error", "value", "words"),
    [
        (ValueError, [8, 8], ["three numbers x, y, z", "[8, 8]", "(2,)"]),
        (ValueError, [8, 8, np.nan], ["finite"]),
        (ValueError, [8, 8, 0], ["positive", "[8, 8, 0]"]),
        (ValueError, [8, -8, 40], ["positive", "[8, -8, 40]"]),
        (TypeError, "fine", ["three numbers", "'fine'"]),
        (TypeError, RAGGED, ["three numbers", "[[1, 2], [3]]"]),
    ],
)
def test_a_resolution_that_is_not_three_positive_numbers_is_refused(
    error: type[Exception], value: Any, words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        triple("resolution", value, positive=True)
    assert all(word in str(caught.value) for word in ["resolution must be", *words])


@pytest.mark.parametrize(
    ("error", "center"),
    [(ValueError, [1, 2]), (ValueError, [1, 2, np.inf]), (ValueError, None), (TypeError, "x"), (TypeError, RAGGED)],
)
def test_bounds_from_a_bad_center_are_refused(error: type[Exception], center: Any) -> None:
    with pytest.raises(error, match="ctr must be") as caught:
        bounds_from_center(center)
    assert repr(center) in str(caught.value)


# ------------------------------------------------------------------------------------------------- good input


@pytest.mark.parametrize(
    ("fields", "scales"),
    [
        ({}, True),
        ({"mip": 0}, False),
        ({"image_size": (9, 9)}, False),
        ({"scale_to_bounds": False}, False),
        ({"mip": 0, "scale_to_bounds": True}, True),
        ({"image_size": (9, 9), "scale_to_bounds": True}, True),
    ],
)
def test_a_cutout_is_scaled_by_default_without_a_mip(fields: dict[str, Any], scales: bool) -> None:
    assert CutoutRequest(bounds=BOX, default_mip=0, resolution=EM, **fields).scales is scales


def test_a_scaled_cutout_is_on_the_grid_of_the_bounds() -> None:
    cutout = cut(default_mip=1)
    assert cutout.mip.level == 1
    assert cutout.target == VoxelGrid((100, 200, 10), (40, 60, 5), EM)


def test_a_cutout_with_a_mip_is_on_the_grid_of_the_mip() -> None:
    assert cut(mip=1).target == VoxelGrid((50, 100, 10), (20, 30, 5), (16, 16, 40))
    scaled = cut(mip=1, resolution=(4, 4, 40), scale_to_bounds=True)
    assert scaled.target == VoxelGrid((100, 200, 10), (40, 60, 5), (4, 4, 40))


def test_a_center_and_a_size_give_the_grid() -> None:
    assert cut([100, 100, 10], bbox_size=(20, 10, 4)).target == VoxelGrid((90, 95, 8), (20, 10, 4), EM)
    assert cut([100, 100, 10], bbox_size=(5, 5)).target == VoxelGrid((98, 98, 10), (5, 5, 1), EM)
    coarse = (32.0, 32.0, 40.0)
    assert cut([100, 100, 10], image_size=(8, 4), mip=2).target == VoxelGrid((21, 23, 10), (8, 4, 1), coarse)
    assert cut([100, 100, 10], image_size=(8, 4, 3), mip=2).target == VoxelGrid((21, 23, 9), (8, 4, 3), coarse)


def test_image_size_is_kept_where_rounded_corners_would_be_equal() -> None:
    assert cut([1, 1, 1], image_size=(1, 1), mip=2, resolution=(5.5, 7, 33.3)).target.shape == (1, 1, 1)


def test_dimensions_are_converted_to_another_resolution() -> None:
    assert dimensions_in((256, 128), (32, 32, 40), EM) == (1024, 512, 1)
    assert dimensions_in((256, 128, 3), (32, 32, 20), EM) == (1024, 512, 1.5)
    assert dimensions_in(np.array([10, 10]), (4.3, 4.3, 40), (8.6, 8.6, 40)) == (5, 5, 1)


def test_dtypes_are_known_without_reading() -> None:
    ids = layer("segmentation")
    assert cut().dtype == np.uint8
    assert cut(source=ids, labels=LabelRule()).dtype == np.uint64
    converted = cut(source=ids, labels=LabelRule(as_int64=True))
    assert converted.dtype == np.int64
    mask = converted.mask(ROOT)
    assert mask.dtype == bool
    assert mask.labels == LabelRule(mask_of=ROOT)
    assert mask.target == converted.target


def test_cutouts_are_picklable_and_hashable() -> None:
    cutout = cut(source=layer("segmentation"), labels=label_rule([ROOT], as_int64=True))
    assert pickle.loads(pickle.dumps(cutout)) == cutout
    assert hash(cutout) == hash(cut(source=layer("segmentation"), labels=label_rule([ROOT], as_int64=True)))
    assert cutout != cut(source=layer("segmentation"), labels=label_rule([ROOT + 1], as_int64=True))


@pytest.mark.parametrize("root_ids", [None, "all"])
def test_all_and_none_keep_every_id(root_ids: Any) -> None:
    assert label_rule(root_ids, as_int64=True) == LabelRule(keep=None, as_int64=True)


def test_listed_ids_are_plain_sorted_and_unique() -> None:
    expected = LabelRule(keep=(ROOT, ROOT + 1, 2**64 - 1))
    for ids in ([ROOT + 1, 2**64 - 1, ROOT, ROOT], np.array([ROOT, ROOT + 1, 2**64 - 1], np.uint64), {*expected.keep}):  # type: ignore[misc]
        rule = label_rule(ids, as_int64=False)
        assert rule == expected
        assert all(type(value) is int for value in rule.keep or ())
    assert label_rule([], as_int64=False).keep == ()


def test_a_whole_layer_has_the_grid_of_its_mip() -> None:
    cutout = whole_layer(layer(), 1, missing="error")
    assert cutout.target == cutout.mip.grid == VoxelGrid((32, 0, -20), (2048, 2048, 300), (16, 16, 40))
    assert cutout.missing == "error"


def pair(bounds: Any = BOX, mips: Any = (None, None), finest: Any = (8, 16), **options: Any) -> Any:
    fields = {name: options.pop(name) for name in ("resolution", "scale_to_bounds", "bbox_size") if name in options}
    request = CutoutRequest(**{"bounds": bounds, "default_mip": 0, "resolution": EM} | fields)
    layers = layer("image", finest[0]), layer("segmentation", finest[1])
    return resolve_pair(request, *layers, mips, default_mips=(0, 0), labels=LabelRule(as_int64=True), **options)


def test_a_pair_shares_the_finer_grid() -> None:
    image, ids = pair(scale_to_bounds=False)
    assert image.target == ids.target == VoxelGrid((100, 200, 10), (40, 60, 5), EM)
    assert (image.mip.grid.resolution_nm, ids.mip.grid.resolution_nm) == (EM, (16, 16, 40))
    image, ids = pair(finest=(8, 4), scale_to_bounds=False)
    assert image.target == ids.target == VoxelGrid((200, 400, 10), (80, 120, 5), (4, 4, 40))


def test_a_scaled_pair_is_on_the_grid_of_the_bounds() -> None:
    image, ids = pair(resolution=(32, 32, 40))
    assert image.target == ids.target == VoxelGrid((100, 200, 10), (40, 60, 5), (32, 32, 40))


def test_a_pair_without_resizing_keeps_both_grids() -> None:
    image, ids = pair(mips=(0, 0), resize=False)
    assert image.target == VoxelGrid((100, 200, 10), (40, 60, 5), EM)
    assert ids.target == VoxelGrid((50, 100, 10), (20, 30, 5), (16, 16, 40))


def test_a_pair_interpolates_only_imagery() -> None:
    image, ids = pair(order=1)
    assert (image.order, ids.order) == (1, 0)
    assert (image.labels, ids.labels) == (None, LabelRule(as_int64=True))


@pytest.mark.parametrize("finest", [(8, 16), (16, 8), (8, 64)])
@pytest.mark.parametrize("options", [{}, {"mips": (0, 0)}, {"scale_to_bounds": True}])
def test_a_pair_may_be_smaller_than_a_coarse_voxel(finest: Any, options: dict[str, Any]) -> None:
    """The result is on the finer layer's grid, so that the bounds need not contain a voxel of the coarser layer."""
    image, ids = pair([[100, 200, 10], [101, 201, 11]], finest=finest, **options)
    assert image.target == ids.target == VoxelGrid((100, 200, 10), (1, 1, 1), EM)


@pytest.mark.parametrize(
    ("center", "size", "expected"),
    [
        ((100, 100, 10), (4, 4, 1), [[98, 98, 10], [102, 102, 11]]),
        ((100, 100, 10), (5, 3, 2), [[98, 99, 9], [103, 102, 11]]),
        ((-3, 0, 0), (2, 2, 2), [[-4, -1, -1], [-2, 1, 1]]),
        ((0.5, 1, 2), (2, 2, 1), [[-0.5, 0, 2], [1.5, 2, 3]]),
    ],
)
def test_bounds_are_computed_from_a_center(center: Any, size: Any, expected: Any) -> None:
    bounds = bounds_from_center(center, *size)
    np.testing.assert_array_equal(bounds, expected)
    assert bounds.dtype == (np.int64 if all(isinstance(value, int) for value in center) else np.float64)


def test_bounds_from_center_keeps_large_whole_numbers() -> None:
    assert bounds_from_center((10**9 + 1, 5, 5)).tolist() == [[10**9 + 1, 5, 5], [10**9 + 2, 6, 6]]


def test_the_next_level_of_a_cutout_covers_what_is_left() -> None:
    whole = whole_layer(layer(), 1)
    coarser = whole.coarser((2, 2, 1))
    assert coarser.target == VoxelGrid((16, 0, -20), (1024, 1024, 300), (32, 32, 40))
    assert coarser.downsampled
    assert from_json(Cutout, to_json(coarser)) == coarser
    assert "downsampled" not in to_json(whole)
    odd = replace(whole, target=VoxelGrid((3, 0, 0), (5, 4, 3), whole.target.resolution_nm))
    assert odd.coarser((1, 2, 2)).target == VoxelGrid((3, 0, 0), (5, 2, 2), (16, 32, 80))
    with pytest.raises(ValueError, match=r"would begin within a voxel: \(3, 0, 0\) is not a multiple of \(2, 2, 1\)"):
        odd.coarser((2, 2, 1))
    with pytest.raises(ValueError, match="as they are stored"):
        coarser.coarser((2, 2, 1))
