"""Figures and the widget show a dynamic segmentation at its moment, with root and supervoxel ids."""

from __future__ import annotations

import numpy as np
import pytest
from support.dynamic import SOME, bounds, expected

from imagery_dask import ImageryClient
from imagery_dask.geometry.vec import Vec3
from imagery_dask.render.palettes import color_of
from imagery_dask.testing.cave import CaveServer, World


@pytest.mark.parametrize("name", ["created", "merge_2", "split_1"])
def test_a_click_names_root_and_supervoxel_at_the_moment(
    client: ImageryClient, server: CaveServer, world: World, name: str
) -> None:
    pytest.importorskip("anywidget", reason="needs anywidget: pip install 'imagery_dask[notebooks]'")
    moment = world.times[name]
    roots, supervoxels = (expected(world, moment, SOME, keep=keep) for keep in ("all", None))
    shown = [int(np.unique(roots)[1])]
    widget = client.browse(bounds(world, SOME), shown, timestamp=moment, read_ahead=0)
    for column, row in [(0, 0), (40, 30), (71, 60), *np.argwhere(roots[..., 13] == shown[0])[:2].tolist()]:
        widget._clicked(widget, {"column": column, "row": row, "index": 13}, [])
        assert "error" not in widget.picked
        assert widget.ids == {
            "root id": int(roots[column, row, 13]), "supervoxel id": int(supervoxels[column, row, 13])
        }  # fmt: skip
        assert widget.voxel == Vec3.of(bounds(world, SOME)[0].tolist()) + Vec3(column, row, 13)
    widget.close()


def test_a_figure_shows_the_moment(client: ImageryClient, world: World) -> None:
    for name in ("created", "split_1"):
        roots = expected(world, world.times[name], SOME)[..., 13]
        root = int(np.unique(roots)[-1])
        figure = client.show(bounds(world, SOME), [root], timestamp=world.times[name], alpha=1)
        page = figure.axes[0].images[0].get_array()
        np.testing.assert_array_equal(page[..., 3] == 255, (roots == root).T)
        assert page[(roots == root).T][0].tolist() == [*color_of(root), 255]
