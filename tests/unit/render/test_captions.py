"""Pictures side by side keep their pixels; texts are around them."""

import numpy as np

from imagery_dask.render.captions import Panel, side_by_side


def test_pictures_keep_their_pixels_and_legends_their_colors() -> None:
    pages = [np.full((60, 200, 3), value, np.uint8) for value in (10, 90)]
    legends = [[((1, 2, 3), "one"), ((4, 5, 6), "two")], []]
    panels = [Panel(page, "A caption", legend) for page, legend in zip(pages, legends, strict=True)]
    sheet = side_by_side(panels, "A note", nm_per_pixel=20)
    assert sheet.shape == (22 + 20 + 60 + 3 * 22, 2 * 210 + 10, 3)
    np.testing.assert_array_equal(sheet[27:87, 10:210], pages[0])
    assert (sheet[27:55, 220:420] == 90).all()
    assert (sheet[75, 361:410] == 255).all()  # the scale bar: 1000 nm are 50 pixels
    for color in legends[0]:
        assert (sheet[87:] == color[0]).all(axis=2).sum() == 13 * 13
