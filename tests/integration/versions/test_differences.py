"""What differs between versions, compared with voxels of the whole volume."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from imagery_dask import open_versions
from imagery_dask.testing.cave import World
from imagery_dask.versions.opened_versions import VersionStore

Moments = dict[str, tuple[float, int | None]]
NAMES = ["1", "2024-01-03T00-00-00Z", "2", "3"]


@pytest.mark.parametrize(("a", "b"), list(permutations(NAMES, 2)))
def test_the_tables_count_every_voxel_whose_root_differs(
    store: VersionStore, world: World, moments: Moments, a: str, b: str
) -> None:
    before, after = (world.roots_volume(moments[name][0]) for name in (a, b))
    changed = before != after
    pairs, counts = np.unique(np.stack([before[changed], after[changed]]), axis=1, return_counts=True)
    difference = store.diff(a, b)
    assert difference.table[["root_a", "root_b"]].to_numpy().T.tolist() == pairs.tolist()
    assert difference.table["voxels"].tolist() == counts.tolist()
    assert difference.voxels == changed.sum()
    assert difference.supervoxels == len(np.unique(world.supervoxels[changed])) == difference.table["supervoxels"].sum()
    chunks, voxels = np.unique(world.graph.layout.chunk_ids(world.supervoxels[changed]), return_counts=True)
    assert difference.chunks.index.tolist() == chunks.tolist()
    assert difference.chunks["voxels"].tolist() == voxels.tolist()
    places = np.argwhere(changed) + world.voxel_offset
    if len(places):
        assert [difference.chunks[f"{axis}_start"].min() for axis in "xyz"] == places.min(axis=0).tolist()
        assert [difference.chunks[f"{axis}_stop"].max() for axis in "xyz"] == (places.max(axis=0) + 1).tolist()


def test_the_layer_is_true_where_roots_differ(store: VersionStore, world: World, moments: Moments) -> None:
    for level in (0, 1):
        before, after = (world.roots_volume(moments[name][0], level) for name in ("1", "3"))
        layer = store.diff(1, 3).layer(level=level)
        assert layer.dtype == bool
        np.testing.assert_array_equal(layer, before != after)
        assert layer.attrs["from"] < layer.attrs["to"]
    start = np.array(world.voxel_offset) + (10, 20, 5)
    part = store.diff(1, 3).layer([start, start + (30, 20, 10)])
    expected = world.roots_volume(moments["1"][0]) != world.roots_volume(moments["3"][0])
    np.testing.assert_array_equal(part, expected[10:40, 20:40, 5:15])


def test_a_version_does_not_differ_from_itself(store: VersionStore) -> None:
    difference = store.diff(2, "2")
    assert (difference.voxels, len(difference.table), len(difference.chunks)) == (0, 0, 0)
    assert "0 became 0" in repr(difference)
    assert not difference.layer().to_numpy().any()
    with pytest.raises(ValueError, match="No voxel differs between version 2 and version 2"):
        difference.picture()


def test_a_difference_describes_itself(store: VersionStore) -> None:
    difference = store.diff(1, 3)
    text, html = repr(difference), difference._repr_html_()
    assert f"{difference.voxels:,}" in text
    assert "version 1 (2024-" in text
    assert str(difference.table.sort_values("voxels")["root_b"].iloc[-1]) in html


@pytest.mark.parametrize("image", [False, True])
def test_a_picture_shows_before_after_and_what_changed(
    out: Path, with_image: Path, world: World, moments: Moments, image: bool, no_network: None
) -> None:
    difference = open_versions(with_image if image else out).diff(1, 3)
    z = int(world.voxel_offset[2]) + 12
    start = np.array(world.voxel_offset)
    whole = [start, start + world.supervoxels.shape]
    page = np.asarray(difference.picture(z, whole))
    assert page.shape[2] == 3
    panels = [page[27 : 27 + 256 : 2, left : left + 256 : 2] for left in (10, 276, 542)]  # of two pixels a voxel
    changed = (world.roots_volume(moments["1"][0]) != world.roots_volume(moments["3"][0]))[:, :, 12].T
    assert 0 < changed.sum() < changed.size
    differ = (panels[0] != panels[1]).any(axis=2)
    assert not differ[~changed].any()
    assert differ[changed].mean() > 0.95
    reds = panels[2][..., 0].astype(int) - panels[2][..., 2]
    above = slice(0, 110)  # the scale bar is below
    assert (reds[above][changed[above]] > 60).all()
    assert not reds[above][~changed[above]].any()
    own = difference.picture()
    assert own.size[0] > 300
    with pytest.raises(ValueError, match="is outside of the store"):
        difference.picture(5)
