"""Figures of planes: every voxel is where its nm are, upright, in the proportions of nm; only planes are computed."""

from __future__ import annotations

import io
from typing import Any

import dask.array as da
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.render.pages import contrast
from imagery_dask.render.palettes import color_of
from imagery_dask.render.show import Look, Picture, show_orthoviews, show_planes

ROOT = 864_691_135_000_000_001
GRID = VoxelGrid((100, -20, 7), (9, 6, 4), (8, 8, 40))
VOXELS = np.random.default_rng(0).permutation(256)[: 9 * 6 * 4].astype(np.uint8).reshape(9, 6, 4)


def pixel(figure: Figure, panel: Any, nm: tuple[float, float]) -> list[int]:
    """Return the pixel at a position of a panel, given in nm."""
    figure.canvas.draw()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=figure.dpi)
    page = np.asarray(Image.open(content))
    column, row = panel.transData.transform(nm)
    return page[page.shape[0] - 1 - int(row), int(column), :3].tolist()


@pytest.mark.parametrize(("axis", "right", "down"), [(2, 0, 1), ("y", 0, 2), ("x", 2, 1)])
def test_each_voxel_is_drawn_at_its_nm(axis: Any, right: int, down: int) -> None:
    across = 3 - right - down
    figure = show_planes(VOXELS, None, GRID, axis=axis, planes=[1], look=Look(scale_bar=False))
    (panel,) = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == (f"{'xyz'[right]} (nm)", f"{'xyz'[down]} (nm)")
    assert panel.get_xlim()[0] < panel.get_xlim()[1]
    assert panel.get_ylim()[0] > panel.get_ylim()[1]
    for at in [(0, 0, 0), (GRID.shape[0] - 1, 0, 0), (0, 4, 2), (2, 5, 3)]:
        voxel = list(at)
        voxel[across] = 1
        nm = [(GRID.start[n] + voxel[n] + 0.5) * GRID.resolution_nm[n] for n in range(3)]
        shown = pixel(figure, panel, (nm[right], nm[down]))
        assert abs(shown[0] - int(VOXELS[tuple(voxel)])) <= 1  # matplotlib's resampling may round down


def test_titles_name_voxels_and_nm() -> None:
    for own, text in ((None, "z = 8 (340 nm)"), ((4, 4, 20), "z = 17 (340 nm)")):
        figure = show_planes(VOXELS, None, GRID, planes=[1], voxel_nm=own)
        assert figure.axes[0].get_title() == text


def test_panels_of_orthoviews_have_one_scale() -> None:
    figure = show_orthoviews(VOXELS, None, GRID, (4, 2, 3))
    figure.canvas.draw()
    scales = []
    for panel in figure.axes[:3]:
        (x0, y0), (x1, y1) = panel.transData.transform([(0, 0), (100, 100)])
        scales += [x1 - x0, y0 - y1]
    np.testing.assert_allclose(scales, scales[0], rtol=0.02)
    assert [panel.get_title()[0] for panel in figure.axes[:3]] == ["z", "x", "y"]


def test_only_planes_that_are_shown_are_computed() -> None:
    read = []

    def block(voxels: Any, block_info: Any = None) -> Any:
        read.append(block_info[0]["chunk-location"][2])
        return voxels

    lazy = da.from_array(VOXELS, chunks=(9, 6, 1))
    image = lazy.map_blocks(block, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    read.clear()
    figure = show_planes(image, None, GRID, planes=[0, 3])
    assert sorted(read) == [0, 3]
    assert [panel.get_title() for panel in figure.axes] == ["z = 7 (300 nm)", "z = 10 (420 nm)"]


def test_objects_are_drawn_over_imagery() -> None:
    labels = np.zeros(GRID.shape, np.uint64)
    labels[2:6, 1:5] = ROOT
    grey = np.full(GRID.shape, 100, np.uint8)
    at = ((GRID.start[0] + 2.5) * 8, (GRID.start[1] + 1.5) * 8)
    middle = ((GRID.start[0] + 4) * 8, (GRID.start[1] + 3) * 8)
    for look, edge, inner in (
        (Look(alpha=1), color_of(ROOT), color_of(ROOT)),
        (Look(outline=True, width=1), color_of(ROOT), (100, 100, 100)),
        (Look(alpha=1, colors={ROOT: (1, 2, 3)}), (1, 2, 3), (1, 2, 3)),
        (Look(alpha=0), (100, 100, 100), (100, 100, 100)),
    ):
        figure = show_planes(grey, labels, GRID, look=look)
        assert [pixel(figure, figure.axes[0], nm) for nm in (at, middle)] == [list(edge), list(inner)]
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [str(ROOT)]
    assert show_planes(grey, labels, GRID, look=Look(legend=False)).axes[0].get_legend() is None
    assert len(show_planes(grey, labels, GRID, planes=[0, 1]).legends) == 1
    assert show_planes(None, labels, GRID).axes


def test_scale_bars_are_round_numbers_of_nm() -> None:
    for nm, text in ((1, "2 nm"), (64, "100 nm"), (1000, "2 µm")):
        figure = show_planes(VOXELS, None, VoxelGrid((0, 0, 0), GRID.shape, (nm, nm, nm)))
        (label,) = figure.axes[0].texts
        (bar,) = figure.axes[0].patches
        assert label.get_text() == text
        number, unit = text.split()
        assert bar.get_width() == float(number) * {"nm": 1, "µm": 1000}[unit]


def test_imagery_of_more_bits_is_shown_between_its_extremes() -> None:
    deep = np.linspace(10_000, 20_000, 1000).astype(np.uint16).reshape(10, 100)
    window = contrast([deep])
    assert (round(window.low, -2), round(window.high, -2)) == (10_000, 19_900)
    assert contrast([deep], (0, 65535)).high == 65535
    assert contrast([deep.astype(np.uint8)]) is None
    assert contrast([np.full((2, 2), np.nan, np.float32)]).apply(np.ones((2, 2))).max() == 255
    assert contrast([np.full((2, 2), 7, np.uint16)]).low == 7


def test_three_channels_are_colors_and_other_numbers_show_the_first() -> None:
    color = np.zeros((*GRID.shape, 3), np.uint8)
    color[..., 1] = 200
    nm = (GRID.start[0] * 8 + 4, GRID.start[1] * 8 + 4)
    figure = show_planes(color, None, GRID)
    assert pixel(figure, figure.axes[0], nm) == [0, 200, 0]
    figure = show_planes(color[..., 1:], None, GRID)
    assert pixel(figure, figure.axes[0], nm) == [200, 200, 200]


@pytest.mark.parametrize("planes", [[1], [0, 1, 2]])
def test_nothing_is_cut_off_at_the_edges_of_a_figure(planes: list[int]) -> None:
    labels = np.full(GRID.shape, ROOT, np.uint64)
    figure = show_planes(VOXELS, labels, GRID, planes=planes)
    figure.savefig(io.BytesIO())
    used = figure.get_tightbbox()
    assert used.x0 >= 0
    assert used.y0 >= 0
    assert used.x1 <= figure.get_figwidth()
    assert used.y1 <= figure.get_figheight()


def test_a_figure_is_a_picture_in_jupyter_and_draws_into_given_axes() -> None:
    figure = show_planes(VOXELS, None, GRID)
    assert isinstance(figure, Picture)
    assert Image.open(io.BytesIO(figure._repr_png_())).format == "PNG"
    ax = Figure().subplots()
    assert show_planes(VOXELS, None, GRID, ax=ax) is None
    assert len(ax.images) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Look(alpha=2), "alpha"),
        (lambda: Look(width=0), "width"),
        (lambda: Look(window=(5, 5)), r"window is two numbers, black below white; got \(5, 5\)"),
        (lambda: Look(colors={1: (256, 0, 0)}), "256"),
        (lambda: Look(colors="red"), "colors is a mapping of ids to colors"),
        (lambda: show_planes(VOXELS, None, GRID, axis="t"), "axis"),
        (lambda: show_planes(VOXELS, None, GRID, planes=[4]), "from 0 to 3 along z; got 4"),
        (lambda: show_planes(VOXELS, None, GRID, planes=[0, 1], ax=Figure().subplots()), "2 planes"),
        (lambda: show_planes(VOXELS[:2], None, GRID), r"image has shape \(2, 6, 4\)"),
        (lambda: show_planes(None, None, GRID), "neither"),
    ],
)  # fmt: skip
def test_bad_arguments_are_errors(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
