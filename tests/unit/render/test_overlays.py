"""Pages of overlays with known pixels: axes, colors, widths, sides, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imagery_dask.render.overlays import composite_overlay, overlay, overlay_halo, overlay_page
from imagery_dask.render.palettes import color_of, colors_of

A, B = 2**60 + 1, 2**60 + 2  # equal as floats
RED, BLUE = (255, 0, 0), (0, 0, 255)
COLORS = {A: RED, B: BLUE}


def row(*ids: int) -> np.ndarray:
    """Return labels of one row, of shape (x, 1)."""
    return np.array(ids, dtype=np.uint64)[:, np.newaxis]


def drawn(page: np.ndarray) -> str:
    """Return the first row of an RGBA page as text: 'r' is red, 'b' is blue, '.' is transparent."""
    letters = {RED: "r", BLUE: "b"}
    return "".join(letters.get(tuple(pixel[:3]), "?") if pixel[3] else "." for pixel in page[0].tolist())


def test_rows_of_a_page_are_y_and_columns_are_x() -> None:
    labels = np.zeros((5, 3), dtype=np.uint64)
    labels[4, 1] = A
    page = overlay_page(labels, colors=COLORS, alpha=0.5)
    assert (page.shape, page.dtype) == ((3, 5, 4), np.uint8)
    assert page[1, 4].tolist() == [255, 0, 0, 127]
    page[1, 4] = 0
    assert not page.any()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_page_over_an_image_blends_colors(order: Any) -> None:
    labels = np.array([[A, 0, B]] * 2, dtype=np.uint64, order=order)
    image = np.array([[100, 100, 100], [50, 60, 70]], dtype=np.uint8, order=order)
    page = overlay_page(labels, image, colors=COLORS, alpha=0.2)
    assert page.shape == (3, 2, 3)
    assert page.flags.c_contiguous
    assert page[0, 0].tolist() == [131, 80, 80]
    assert page[1].tolist() == [[100] * 3, [60] * 3]
    assert page[2, 1].tolist() == [56, 56, 107]


@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.uint32, np.uint8])
def test_ids_without_a_color_get_the_color_of_their_id(dtype: Any) -> None:
    labels = np.array([[0, 5, 7], [7, 7, 0]], dtype=dtype)
    page = overlay_page(labels, colors={5: (1, 2, 3, 4)}, alpha=1)
    assert page[1, 0].tolist() == [1, 2, 3, 255]
    seven = colors_of(np.array(7, dtype=dtype)).tolist()
    assert page[0, 1].tolist() == page[1, 1].tolist() == page[2, 0].tolist() == [*seven, 255]


def test_neighbouring_ids_have_different_pixels() -> None:
    assert float(A) == float(B)
    assert drawn(overlay_page(row(A, B, 0, B, A), colors=COLORS)) == "rb.br"
    other = overlay_page(row(A, B))[0]
    assert (other[0] != other[1]).any()
    top = row(2**64 - 1, 2**63)
    assert drawn(overlay_page(top, colors={2**64 - 1: RED, 2**63: BLUE})) == "rb"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"width": 1}, ".r....b."),
        ({"width": 2}, "rr....bb"),
        ({"width": 1, "merge_outline": False}, ".r.br.b."),
        ({"side": "in", "width": 1}, "..r..b.."),
        ({"side": "in", "width": 1, "merge_outline": False}, "..rrbb.."),
        ({"side": "in", "width": 5}, "..rrbb.."),
    ],
    ids=str,
)
def test_outlines_have_known_pixels(options: dict[str, Any], expected: str) -> None:
    labels = row(0, 0, A, A, B, B, 0, 0)
    assert drawn(overlay_page(labels, colors=COLORS, outline=True, alpha=1, **options)) == expected


def test_later_ids_are_drawn_over_earlier_ones() -> None:
    labels = row(A, 0, B)
    assert drawn(overlay_page(labels, colors=COLORS, outline=True, alpha=1, width=1)) == ".b."
    swapped = {A: BLUE, B: RED}
    assert drawn(overlay_page(labels[::-1], colors=swapped, outline=True, alpha=1, width=1)) == ".r."


def test_the_edge_of_a_page_has_no_outline() -> None:
    labels = np.full((6, 5), A, dtype=np.uint64)
    for side in ("in", "out"):
        assert not overlay_page(labels, outline=True, side=side).any()
        assert not overlay_page(labels, outline=True, side=side, merge_outline=False).any()


def test_a_page_without_objects_is_the_image() -> None:
    nothing, image = np.zeros((4, 3), dtype=np.int64), np.arange(12, dtype=np.uint8).reshape(4, 3)
    for options in ({}, {"outline": True}, {"outline": True, "side": "in"}):
        assert not overlay_page(nothing, **options).any()
        np.testing.assert_array_equal(overlay_page(nothing, image, **options), np.stack([image.T] * 3, axis=2))
    ids = np.full((4, 3), A)
    np.testing.assert_array_equal(overlay_page(ids, image, alpha=0), np.stack([image.T] * 3, axis=2))


def test_the_halo_is_the_width_of_outlines() -> None:
    assert overlay_halo(False, 10) == 0
    assert overlay_halo(True, 7) == 7
    assert overlay_halo(True) == 10
    with pytest.raises(ValueError, match="width"):
        overlay_halo(True, 0)


def test_overlays_do_not_change_their_input() -> None:
    labels, image = row(A, 0, B, B), np.full((4, 1), 8, dtype=np.uint8)
    labels.setflags(write=False)
    image.setflags(write=False)
    for options in ({}, {"outline": True}, {"outline": True, "side": "in", "merge_outline": False}):
        overlay_page(labels, image, **options)[...] = 1
    assert labels.ravel().tolist() == [A, 0, B, B]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"labels": np.zeros((2, 2, 2), dtype=int)}, ValueError, "axes x and y"),
        ({"labels": np.zeros((0, 2), dtype=int)}, ValueError, "a pixel at least"),
        ({"labels": np.zeros((2, 2))}, TypeError, "Ids are integers"),
        ({"image": np.zeros((2, 4), dtype=np.uint8)}, ValueError, r"shape \(2, 4\)"),
        ({"image": np.zeros((4, 2))}, TypeError, "imagery is uint8; got float64"),
        ({"colors": {A: (256, 0, 0)}}, ValueError, "0 to 255"),
        ({"colors": {A: (1, 0)}}, ValueError, "0 to 255"),
        ({"alpha": 2}, ValueError, "alpha"),
        ({"width": 0, "outline": True}, ValueError, "width"),
        ({"side": "both"}, ValueError, "side"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        overlay_page(**{"labels": np.full((4, 2), A), **arguments})


def test_an_overlay_blends_labels_only() -> None:
    image = np.array([[100, 200, 0], [0, 50, 255]], dtype=np.uint8)
    labels = np.array([[0, 2**60, 0], [2**60 + 1, 0, 0]], dtype=np.uint64)
    picture = overlay(image, labels, alpha=0.5)
    assert picture.shape == (3, 2, 3)  # rows are y
    assert picture.dtype == np.uint8
    plain = labels.T == 0
    np.testing.assert_array_equal(picture[plain], np.repeat(image.T[plain][:, np.newaxis], 3, axis=1))
    mixed = (0.5 * 200 + 0.5 * colors_of(labels)[0, 1]).astype(np.uint8)
    np.testing.assert_array_equal(picture[1, 0], mixed)
    np.testing.assert_array_equal(overlay(image, labels, alpha=0), np.stack([image.T] * 3, axis=2))


def test_the_palette_of_ids_keeps_colors_between_pictures() -> None:
    first, second = np.array([[A, 0, 0, B]]), np.array([[0, B]])
    masks = {root: first == root for root in (A, B)}
    pages = [np.asarray(composite_overlay(segs, palette="ids", alpha=1)) for segs in (first, masks, second)]
    assert pages[0][0, 0].tolist() == pages[1][0, 0].tolist() == [*color_of(A), 255]
    assert pages[0][3, 0].tolist() == pages[2][1, 0].tolist() == [*color_of(B), 255]
    with pytest.raises(ValueError, match="sequence of masks does not have"):
        composite_overlay(list(masks.values()), palette="ids")
