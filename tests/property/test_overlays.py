"""Pages of labels equal the overlays of their masks and the union of their tiles; growth equals scipy's dilation."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from imagery_dask import composite_overlay
from imagery_dask.render import canvas
from imagery_dask.render.overlays import overlay_halo, overlay_page
from imagery_dask.render.palettes import colors_of

FIRST_ID = 2**60 + 1

styles = st.fixed_dictionaries(
    {
        "alpha": st.one_of(st.sampled_from([0.0, 0.2, 1.0]), st.floats(0, 1)),
        "outline": st.booleans(),
        "merge_outline": st.booleans(),
        "width": st.integers(1, 12),
        "side": st.sampled_from(["out", "in"]),
    }
)


@st.composite
def pages(draw: st.DrawFn) -> NDArray[Any]:
    """Draw blocks of labels: 0, and neighbouring ids beyond 2**53."""
    x, y, size = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    few = rng.integers(0, draw(st.integers(1, 9)), (-(-x // size), -(-y // size))).astype(np.uint64)
    few = few.repeat(size, 0).repeat(size, 1)[:x, :y]
    labels = np.where(few > 0, few + np.uint64(FIRST_ID), few).astype(draw(st.sampled_from([np.uint64, np.int64])))
    return np.array(labels, order=draw(st.sampled_from(["C", "F"])))


def grey(labels: NDArray[Any]) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, labels.shape, dtype=np.uint8)


@given(labels=pages(), style=styles, over=st.booleans(), cell=st.integers(3, 50))
def test_a_page_equals_the_overlay_of_its_masks(
    labels: NDArray[Any], style: dict[str, Any], over: bool, cell: int
) -> None:
    ids = [int(root_id) for root_id in np.unique(labels) if root_id]
    masks = {root_id: labels == root_id for root_id in ids}
    bytes_ = {root_id: (root_id % 251, root_id % 7 * 36, 255) for root_id in ids[::2]}
    by_id = {root_id: colors_of(np.array(root_id, dtype=labels.dtype)).tolist() for root_id in ids}
    # Add half a step, so that truncation gives the byte.
    fractions = {root_id: [min((value + 0.5) / 255, 1) for value in (by_id | bytes_)[root_id]] for root_id in ids}
    image = grey(labels)
    expected = np.asarray(composite_overlay(masks, fractions, imagery=image, **style))
    if over:
        with mock.patch.object(canvas, "CELL", cell):
            page = overlay_page(labels, image, colors=bytes_, **style)
        np.testing.assert_array_equal(page, expected[..., :3])
        assert (expected[..., 3] == 255).all()
    elif masks:
        with mock.patch.object(canvas, "CELL", cell):
            page = overlay_page(labels, colors=bytes_, **style)
        np.testing.assert_array_equal(page, np.asarray(composite_overlay(masks, fractions, **style)))


@given(labels=pages(), style=styles, tile=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_tiles_with_a_halo_equal_the_page(labels: NDArray[Any], style: dict[str, Any], tile: tuple[int, int]) -> None:
    image = grey(labels)
    whole = overlay_page(labels, image, **style)
    halo = overlay_halo(style["outline"], style["width"])
    for x in range(0, labels.shape[0], tile[0]):
        for y in range(0, labels.shape[1], tile[1]):
            left, top = min(x, halo), min(y, halo)
            near = slice(x - left, x + tile[0] + halo), slice(y - top, y + tile[1] + halo)
            page = overlay_page(labels[near], image[near], **style)[top : top + tile[1], left : left + tile[0]]
            np.testing.assert_array_equal(page, whole[y : y + tile[1], x : x + tile[0]])


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), width=st.integers(1, 40), seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.005, 0.05, 0.5]),
)  # fmt: skip
def test_growth_equals_dilation(shape: tuple[int, int], width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    before = mask.copy()
    np.testing.assert_array_equal(canvas.grown(mask, width), ndimage.binary_dilation(mask, iterations=width))
    np.testing.assert_array_equal(mask, before)
