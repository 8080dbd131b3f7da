"""Pages and their encodings, which Pillow and imageio read."""

from __future__ import annotations

import io
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from imagery_dask import kernels
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
def test_other_libraries_read_encoded_pages(
    shape: tuple[int, ...], dtype: str, mode: str, form: Any, flat: bool
) -> None:
    page = voxels(shape, dtype)
    content = encode_page(page, form, flat)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == form.upper()
        assert image.mode == mode
        image.load()  # checks checksums and lengths
        np.testing.assert_array_equal(np.asarray(image), page)
    np.testing.assert_array_equal(imageio.imread(content), page)


def test_large_png_files_have_several_data_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "IDAT_BYTES", 1000)
    page = voxels((100, 90))
    content = encode_page(page)
    assert content.count(b"IDAT") > 8
    np.testing.assert_array_equal(imageio.imread(content), page)


def test_png_is_encoded_without_zlib_ng(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.imagecodecs.ZLIBNG, "available", False)
    page = np.zeros((50, 60, 4), np.uint8)
    np.testing.assert_array_equal(imageio.imread(encode_page(page, flat=True)), page)


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_a_page_are_the_second_axis(order: Any) -> None:
    plane = np.array(voxels((7, 5)), order=order)
    np.testing.assert_array_equal(imagery_page(plane), plane.T)
    color = np.array(voxels((7, 5, 3)), order=order)
    np.testing.assert_array_equal(imagery_page(color), color.swapaxes(0, 1))
    np.testing.assert_array_equal(imagery_page(plane > 99), np.where(plane.T > 99, 255, 0))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint16", "uint8"])
def test_a_window_scales_values_to_bits(dtype: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "WINDOW_VOXELS", 50)
    plane = voxels((20, 30), "uint8").astype(dtype)
    window = Window(50, 180, bits)
    top = 2**bits - 1
    expected = np.rint(np.clip((plane.astype(float) - 50) / 130, 0, 1) * top).T
    page = imagery_page(plane, window)
    assert page.dtype == np.dtype(f"uint{bits}")
    np.testing.assert_array_equal(page, expected)


def test_a_window_maps_nan_to_zero_and_clips_infinity() -> None:
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
def test_values_of_ids_are_their_positions_in_the_table(dtype: str, complete: bool) -> None:
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


def test_labels_are_packed_into_16_or_24_bits() -> None:
    values = np.array([[0, 1], [65_535, 65_536], [70_000, 2**24 - 1]], np.uint64)
    assert label_page(values[:2, :1], False).dtype == np.uint16
    page = label_page(values, True).astype(int)
    np.testing.assert_array_equal(page[..., 0] * 65_536 + page[..., 1] * 256 + page[..., 2], values.T)
