"""Versions that are added in any order, by deltas, equal fresh lookups, whatever the history of edits."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dynamic import WHOLE, client_of, forget_roots, served
from support.made_stores import assert_roots, create

from imagery_dask import add_version
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.testing.cave import World, make_world
from imagery_dask.testing.cave.history import RootHistory, to_ms

pytestmark = pytest.mark.long

EDITS = 6
DAY = 86_400.0


def edit(world: World, choices: list[tuple[bool, int, int]], gaps: list[int]) -> list[int]:
    """Merge and split objects; return whole seconds before, at and after each edit."""
    moment, moments = world.times["created"], [int(world.times["created"]) + 1]
    for (merges, first, second), gap in zip(choices, gaps, strict=True):
        moment += gap / 1000  # edits have milliseconds
        ids = world.graph.supervoxels
        roots = np.unique(world.graph.roots(ids, moment))
        one, other = int(roots[first % len(roots)]), int(roots[second % len(roots)])
        leaves = world.graph.leaves(one)
        if merges and one != other:
            world.graph.merge(one, other, moment)
        elif len(leaves) > 1:
            world.graph.split(one, leaves[: 1 + second % (len(leaves) - 1)], moment)
        moments += [int(moment), int(np.ceil(moment)), int(moment) + 1]
    return sorted({at for at in moments if at >= world.times["created"]})


Roots = tuple[list[int], list[int]]


def of_log(history: RootHistory, past: float, future: float | None = None) -> Roots:
    """Answer as services that read their log: edits at exactly the end do not count."""
    window = [op for op in history.operations if to_ms(past) <= op.ms < to_ms(future)]
    return [old for op in window for old in op.old], [new for op in window for new in op.new]


def of_rows(history: RootHistory, past: float, future: float | None = None) -> Roots:
    """Answer as services that read rows of roots: those that began and ended in the interval are in no list."""
    window = [op for op in history.operations if to_ms(past) <= op.ms <= to_ms(future)]
    ended = {old for op in window for old in op.old}
    old = [root for root in ended if history.created[root] < to_ms(past)]
    return old, [new for op in window for new in op.new if new not in ended]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 999), st.integers(0, 999)), min_size=1, max_size=EDITS),
    st.lists(st.sampled_from([1, 500, 1000, 1001, 2500, 3_600_000]), min_size=EDITS, max_size=EDITS),
    st.sampled_from([RootHistory.delta, of_log, of_rows]),
    st.data(),
)
def test_versions_in_any_order_equal_fresh_lookups(choices, gaps, delta, data) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(RootHistory, "delta", delta)
        world = make_world(Path(folder) / "world", (64, 64, 16), edited=False, chunk_size=(16, 16, 8))
        moments = edit(world, choices, gaps[: len(choices)])
        order = data.draw(st.lists(st.sampled_from(moments), min_size=2, max_size=4, unique=True))
        out, box = Path(folder) / "out", (WHOLE[0], world.supervoxels.shape)
        with served(world) as server:
            client_of(server)  # its token is remembered
            names = [create(server, out, order[0], box).version]
            for moment in order[1:]:
                forget_roots()
                server.reset()
                names.append(add_version(out, timestamp=moment, progress=False).version)
                assert server.count("delta_roots") > 0
        forget_tables()
        for name, moment in zip(names, order, strict=True):
            assert_roots(out, name, world, moment, box)
