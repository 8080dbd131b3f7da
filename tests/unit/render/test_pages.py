"""Pages and their bytes, read back with Pillow and imageio; names and plans of slice exports."""

from __future__ import annotations

import io
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from imagery_dask import kernels
from imagery_dask.export.images import slice_plan
from imagery_dask.export.images.slice_files import SliceNames
from imagery_dask.render import pages
from imagery_dask.render.pages import Window, encode_page, imagery_page, label_page, mask_page, values_of

ROOT = 864691135000000001


def voxels(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", ["png", "tiff"])
@pytest.mark.parametrize(
    ("shape", "dtype", "mode"),
    [
        ((5, 7), "uint8", "L"), ((1, 1), "uint8", "L"), ((1, 300), "uint16", "I;16"), ((5, 7), "uint16", "I;16"),
        ((5, 7, 3), "uint8", "RGB"), ((5, 7, 4), "uint8", "RGBA"),
    ],
)  # fmt: skip
def test_other_libraries_read_what_is_written(
    shape: tuple[int, ...], dtype: str, mode: str, form: Any, flat: bool
) -> None:
    page = voxels(shape, dtype)
    content = encode_page(page, form, flat)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == form.upper()
        assert image.mode == mode
        image.load()  # with Pillow's own checks of checksums and lengths
        np.testing.assert_array_equal(np.asarray(image), page)
    np.testing.assert_array_equal(imageio.imread(content), page)


def test_large_png_files_have_several_data_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "IDAT_BYTES", 1000)
    page = voxels((100, 90))
    content = encode_page(page)
    assert content.count(b"IDAT") > 8
    np.testing.assert_array_equal(imageio.imread(content), page)


def test_png_without_zlib_ng(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.imagecodecs.ZLIBNG, "available", False)
    page = np.zeros((50, 60, 4), np.uint8)
    np.testing.assert_array_equal(imageio.imread(encode_page(page, flat=True)), page)


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_the_second_axis(order: Any) -> None:
    plane = np.array(voxels((7, 5)), order=order)
    np.testing.assert_array_equal(imagery_page(plane), plane.T)
    color = np.array(voxels((7, 5, 3)), order=order)
    np.testing.assert_array_equal(imagery_page(color), color.swapaxes(0, 1))
    np.testing.assert_array_equal(imagery_page(plane > 99), np.where(plane.T > 99, 255, 0))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint16", "uint8"])
def test_a_window_scales(dtype: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "WINDOW_VOXELS", 50)
    plane = voxels((20, 30), "uint8").astype(dtype)
    window = Window(50, 180, bits)
    top = 2**bits - 1
    expected = np.rint(np.clip((plane.astype(float) - 50) / 130, 0, 1) * top).T
    page = imagery_page(plane, window)
    assert page.dtype == np.dtype(f"uint{bits}")
    np.testing.assert_array_equal(page, expected)


def test_a_window_of_what_is_no_number() -> None:
    plane = np.array([[np.nan, np.inf, -np.inf, 0.5, 0.0, 1.0]])
    assert Window(0, 1).apply(plane).tolist() == [[0, 255, 0, 128, 0, 255]]
    for low, high in ((1, 1), (2, 1), (np.nan, 1), (0, np.inf)):
        with pytest.raises(ValueError, match="low < high"):
            Window(low, high)
    with pytest.raises(ValueError, match="8 or 16 bits"):
        Window(0, 1, 12)


def test_masks_have_one_color() -> None:
    plane = np.asfortranarray(np.where(voxels((8, 6)) > 128, np.uint64(ROOT), np.uint64(0)))
    page = mask_page((6, 8), kernels.places_of(plane)[ROOT], (9, 8, 7, 6))
    np.testing.assert_array_equal(page, np.where((plane.T != 0)[..., np.newaxis], (9, 8, 7, 6), 0))


@pytest.mark.parametrize("dtype", ["uint64", "int64", "uint8", "int8"])
@pytest.mark.parametrize("complete", [True, False])
def test_values_of_ids(dtype: str, complete: bool) -> None:
    base = ROOT if np.iinfo(dtype).bits == 64 else 1
    wide = "int64" if dtype.startswith("int") else "uint64"
    table = np.array([base, base + 1, base + 100], wide)
    plane = np.array([[0, base + 1], [base + 100, base], [base + 1, base + 1]], dtype)
    assert values_of(plane, table, complete).tolist() == [[0, 2], [3, 1], [2, 2]]
    plane[0, 0] = base + 2
    if complete:
        with pytest.raises(ValueError, match=f"Id {base + 2} is not in the table"):
            values_of(plane, table, complete)
    else:
        assert values_of(plane, table, complete).tolist() == [[0, 2], [3, 1], [2, 2]]
        assert not values_of(plane, table[:0], complete).any()


def test_labels_are_packed() -> None:
    values = np.array([[0, 1], [65_535, 65_536], [70_000, 2**24 - 1]], np.uint64)
    assert label_page(values[:2, :1], False).dtype == np.uint16
    page = label_page(values, True).astype(int)
    np.testing.assert_array_equal(page[..., 0] * 65_536 + page[..., 1] * 256 + page[..., 2], values.T)


def names(axis: int = 2, start: Any = None, tiled: bool = False, shape: Any = (100, 80, 40)) -> SliceNames:
    return SliceNames("em", axis, shape, start, tiled, "png")


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (names(), "em_slice_3_imagery.png"),
        (names(shape=(9, 9, 1)), "em_imagery.png"),
        (names(tiled=True), "em_slice_3_imagery_y20_x10.png"),
        (names(0, tiled=True), "em_slice_3_imagery_z20_y10.png"),
        (names(1, tiled=True), "em_slice_3_imagery_z20_x10.png"),
        (names(start=(0, 0, 21_357)), "em_imagery_z021360.png"),
        (names(1, (0, 7, 0)), "em_imagery_y000010.png"),
        (names(start=(-15, 5, 9_999_990), tiled=True), "em_imagery_z09999993_y000025_x-000005.png"),
        (names(start=(0, 0, -5)), "em_imagery_000003_z-000002.png"),
        (names(start=(0, 0, 5), shape=(9, 9, 1)), "em_imagery_z000008.png"),
    ],
)
def test_names(called: SliceNames, expected: str) -> None:
    index = 3 if called.shape[called.axis] > 1 or called.start else 0
    assert called.name("imagery", index, (10, 20)) == expected


@pytest.mark.parametrize("first", [0, 7, 999_995, -5, -20, -1_000_005])
def test_absolute_names_sort_as_slices_do(first: int) -> None:
    called = names(start=(0, 0, first), shape=(9, 9, 20))
    listed = [called.name("imagery", index) for index in range(20)]
    assert sorted(listed) == listed
    assert [int(name.rpartition("_z")[2].removesuffix(".png")) for name in listed] == list(range(first, first + 20))


def test_slabs_are_as_deep_as_chunks() -> None:
    edges = ([0, 30, 94, 158, 200], [0, 64, 100], [0, 8, 24, 40, 45])
    assert slice_plan.plan_slices(edges, 2, None, 1).edges == ((0, 200), (0, 100), (0, 8, 24, 40, 45))
    assert slice_plan.plan_slices(edges, 2, None, 200 * 100 * 30).edges[2] == (0, 24, 45)
    assert slice_plan.plan_slices(edges, 2, 128, 1).edges[:2] == ((0, 94, 200), (0, 100))
    # A tile that is smaller than a chunk cuts it into equal parts.
    assert slice_plan.plan_slices(edges, 2, 40, 1).edges[1] == (0, 32, 64, 100)
    assert slice_plan.plan_slices(edges, 0, None, 1).edges == ((0, 30, 94, 158, 200), (0, 100), (0, 45))


def test_a_slab_that_does_not_fit_is_refused_with_the_tile_that_does() -> None:
    edges = (range(0, 32_769, 64), range(0, 32_769, 64), range(0, 129, 64))
    memory = 4 * 10**9
    with pytest.raises(ValueError, match=r"32,768x32,768x64 voxels .* 206 GB .* 4 GB .* tile=4096 \(--tile\)"):
        slice_plan.refuse_too_large(slice_plan.plan_slices(edges, 2, None, 2**25), 2, 1, memory)
    slice_plan.refuse_too_large(slice_plan.plan_slices(edges, 2, 4096, 2**25), 2, 1, memory)
    slice_plan.refuse_too_large(slice_plan.plan_slices(edges, 2, None, 2**25), 2, 1, None)
