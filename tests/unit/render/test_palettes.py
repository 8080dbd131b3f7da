"""Colors of objects: the same for an id everywhere, and easy to tell apart."""

from __future__ import annotations

import numpy as np

from imagery_dask.render.palettes import colors_of

ROOT = 720575940621234567


def test_colors_depend_on_the_id_alone() -> None:
    ids = np.array([[ROOT, ROOT + 1], [2**64 - 1, ROOT]], dtype=np.uint64)
    colors = colors_of(ids)
    assert colors.shape == (2, 2, 3)
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors[0, 0], colors[1, 1])
    np.testing.assert_array_equal(colors_of(ids[1:])[0, 0], colors[1, 0])
    np.testing.assert_array_equal(colors_of(ids[:1].astype(np.int64)), colors[:1])


def test_neighbouring_ids_have_different_bright_colors() -> None:
    colors = colors_of(np.arange(ROOT, ROOT + 100, dtype=np.uint64)).astype(int)
    assert len({tuple(color) for color in colors.tolist()}) > 95
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 60
    assert colors.max(axis=1).min() == 255
