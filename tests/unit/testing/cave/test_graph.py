"""The chunked graph of the local CAVE server agrees with a model of sets of supervoxels."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.testing.cave import ChunkedGraph, GraphError, GraphLayout
from imagery_dask.testing.cave.history import to_ms
from imagery_dask.testing.cave.supervoxels import cut_supervoxels

CREATED = 1_700_000_000.5
OFFSET = (40, 24, 8)
CHUNK = (4, 4, 2)


class Snapshot(NamedTuple):
    """The objects from ``time`` on, each a set of supervoxels."""

    time: float
    objects: set[frozenset[int]]


class Case(NamedTuple):
    graph: ChunkedGraph
    labels: Any
    volume: Any
    snapshots: list[Snapshot]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw random objects in random chunks, and random edits of them."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 10), st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corners = rng.integers(0, draw(st.integers(1, 8)), size=[-(-n // 3) for n in shape])
    labels = np.kron(corners, np.ones((3, 3, 3), np.int64))[tuple(map(slice, shape))]
    labels[rng.random(shape) < 0.1] = 0
    layout = GraphLayout.for_volume(shape, CHUNK, OFFSET)
    cut = cut_supervoxels(labels, layout, pieces=draw(st.integers(1, 3)), seed=draw(st.integers(0, 3)))
    graph = ChunkedGraph(layout, cut.ids, cut.objects, CREATED)
    groups: dict[int, set[int]] = {}
    for sv, name in zip(cut.ids.tolist(), cut.objects.tolist(), strict=True):
        groups.setdefault(name, set()).add(sv)
    snapshots = [Snapshot(CREATED, {frozenset(group) for group in groups.values()})]
    ms = round(CREATED * 1000)
    for _ in range(draw(st.integers(0, 6))):
        ms += draw(st.sampled_from([1, 250, 1000, 86_400_000]))
        edited = edit(draw, graph, snapshots[-1].objects, ms / 1000)
        if edited is not None:
            snapshots.append(Snapshot(ms / 1000, edited))
    return Case(graph, labels, cut.volume, snapshots)


def edit(
    draw: st.DrawFn, graph: ChunkedGraph, objects: set[frozenset[int]], moment: float
) -> set[frozenset[int]] | None:
    ordered = sorted(objects, key=min)
    if len(ordered) > 1 and draw(st.booleans()):
        first, second = draw(st.permutations(ordered))[:2]
        graph.merge(root_of(graph, first, moment), root_of(graph, second, moment), moment)
        return objects - {first, second} | {first | second}
    divisible = [group for group in ordered if len(group) > 1]
    if not divisible:
        return None
    whole = draw(st.sampled_from(divisible))
    part = frozenset(draw(st.sets(st.sampled_from(sorted(whole)), min_size=1, max_size=len(whole) - 1)))
    new = graph.split(root_of(graph, whole, moment), sorted(part), moment)
    assert new == (root_of(graph, part, moment), root_of(graph, whole - part, moment))
    return objects - {whole} | {part, whole - part}


def root_of(graph: ChunkedGraph, supervoxels: frozenset[int], moment: float) -> int:
    return int(graph.roots([min(supervoxels)], moment)[0])


def nodes_of(graph: ChunkedGraph) -> list[int]:
    return list(graph.history.created)


@given(cases())
def test_roots_are_exact_to_the_millisecond_of_an_edit(case: Case) -> None:
    ids = case.graph.supervoxels
    for snapshot, following in itertools.pairwise([*case.snapshots, Snapshot(4e9, set())]):
        for moment in (snapshot.time, (snapshot.time + following.time) / 2, following.time - 0.001):
            roots = case.graph.roots(ids, moment)
            objects = {frozenset(ids[roots == root].tolist()) for root in np.unique(roots)}
            assert objects == snapshot.objects
            assert (case.graph.layout.layers(roots) == case.graph.layout.n_layers).all()


@given(cases())
def test_leaves_are_the_inverse_of_roots(case: Case) -> None:
    graph = case.graph
    for snapshot in case.snapshots:
        for group in snapshot.objects:
            root = root_of(graph, group, snapshot.time)
            assert graph.leaves(root).tolist() == sorted(group)
            assert graph.history.are_latest([root], snapshot.time).all()
            assert not graph.history.are_latest([root], graph.history.created[root] / 1000 - 0.001).any()
            for layer in range(2, graph.layout.n_layers + 1):
                between = graph.leaves(root, stop_layer=layer)
                assert set(graph.layout.layers(between).tolist()) <= {layer}
                assert (graph.roots(between, snapshot.time) == root).all()
                below = [sv for node in between.tolist() for sv in graph.leaves(node).tolist()]
                assert len(below) == len(set(below))
                assert set(below) <= group
                assert layer not in (2, graph.layout.n_layers) or set(below) == group


@given(cases())
def test_ids_encode_layer_and_chunk(case: Case) -> None:
    layout = case.graph.layout
    assert len(set(nodes_of(case.graph))) == len(nodes_of(case.graph))
    for node in nodes_of(case.graph):
        layer = int(layout.layers(node))
        inside = case.graph.leaves(node)
        assert layer == node >> 56
        assert len(inside)
        assert (layout.chunks(inside) >> (layer - 2) == layout.chunks(node)).all()
        assert all(int(layout.layers(child)) < layer for child in case.graph.children(node))
        # In other layers, nodes with a single child are skipped.
        assert layer in (2, layout.n_layers) or len(case.graph.children(node)) > 1
        assert int(layout.encode(layer, layout.chunks(node), 0)) == int(layout.chunk_ids(node))


@given(cases())
def test_supervoxels_are_pieces_of_objects_within_chunks(case: Case) -> None:
    np.testing.assert_array_equal(case.volume != 0, case.labels != 0)
    np.testing.assert_array_equal(np.unique(case.volume[case.volume != 0]), case.graph.supervoxels)
    at = np.argwhere(case.volume)
    ids = case.volume[tuple(at.T)]
    np.testing.assert_array_equal(case.graph.layout.chunks(ids), at // CHUNK)
    labels = case.labels[tuple(at.T)]
    assert all(len(set(labels[ids == sv].tolist())) == 1 for sv in case.graph.supervoxels)


@given(cases(), st.data())
def test_stop_layers_lie_between_a_supervoxel_and_its_root(case: Case, data: st.DataObject) -> None:
    graph, moment = case.graph, data.draw(st.sampled_from(case.snapshots)).time
    below = graph.supervoxels
    for layer in range(2, graph.layout.n_layers + 1):
        above = graph.roots(graph.supervoxels, moment, layer)
        assert (graph.layout.layers(above) >= layer).all()
        np.testing.assert_array_equal(graph.roots(below, moment, layer), above)
        np.testing.assert_array_equal(graph.roots(above, moment), graph.roots(graph.supervoxels, moment))
        below = above
    np.testing.assert_array_equal(graph.roots(graph.supervoxels, moment, 1), graph.supervoxels)


@given(cases(), st.data())
def test_bounds_select_whole_chunks(case: Case, data: st.DataObject) -> None:
    graph = case.graph
    corners = [sorted(data.draw(st.tuples(st.integers(o - 9, o + 20), st.integers(o - 9, o + 20)))) for o in OFFSET]
    low, high = np.array([(a, b + 1) for a, b in corners]).T
    position = np.argwhere(case.volume) + OFFSET
    in_box = ((position >= low) & (position < high)).all(axis=1)
    ids = case.volume[case.volume != 0]
    touched = {tuple(chunk) for chunk in ((position[in_box] - OFFSET) // CHUNK).tolist()}
    for root in np.unique(graph.roots(graph.supervoxels)).tolist():
        everything, selected = graph.leaves(root), graph.leaves(root, [low, high])
        assert set(np.unique(ids[in_box & np.isin(ids, everything)]).tolist()) <= set(selected.tolist())
        inside = [tuple(chunk) in touched for chunk in graph.layout.chunks(everything).tolist()]
        assert set(everything[inside].tolist()) <= set(selected.tolist()) <= set(everything.tolist())
        chunk_low = (graph.layout.chunks(selected)) * CHUNK + OFFSET
        assert ((chunk_low < high) & (chunk_low + CHUNK > low)).all()


@given(cases())
def test_the_lineage_of_a_root_leads_to_roots_that_share_its_supervoxels(case: Case) -> None:
    graph, history = case.graph, case.graph.history
    for root in (node for node in nodes_of(graph) if node >> 56 == graph.layout.n_layers):
        born = history.created[root] / 1000
        for moment in [snapshot.time for snapshot in case.snapshots if snapshot.time >= born]:
            latest = history.latest(root, moment)
            assert history.are_latest(latest.tolist(), moment).all()
            assert set(np.unique(graph.roots(graph.leaves(root), moment)).tolist()) <= set(latest.tolist())
            lineage = history.lineage([root], born, moment)
            then = {node["id"] for node in lineage["nodes"] if node["timestamp"] <= moment}
            left = {link["source"] for link in lineage["links"] if link["target"] in then}
            assert then - left == set(latest.tolist())
        replaced = history.ended(root, case.snapshots[-1].time)
        assert replaced == born or history.are_latest([root], replaced - 0.001).all()
    created = {new for operation in history.operations for new in operation.new}
    assert created == set(history.delta(0.0)[1])
    assert len(history.operations) == len(case.snapshots) - 1


@given(cases())
def test_later_edits_do_not_change_earlier_moments(case: Case) -> None:
    graph, last = case.graph, case.snapshots[-1]
    before = {moment: graph.roots(graph.supervoxels, moment).copy() for moment, _ in case.snapshots}
    leaves = {node: graph.leaves(node).tolist() for node in nodes_of(graph)}
    if len(last.objects) < 2:
        return
    first, second = sorted(last.objects, key=min)[:2]
    graph.merge(root_of(graph, first, last.time), root_of(graph, second, last.time), last.time + 5)
    for moment, roots in before.items():
        np.testing.assert_array_equal(graph.roots(graph.supervoxels, moment), roots)
    assert all(graph.leaves(node).tolist() == before_edit for node, before_edit in leaves.items())


def small_graph(**options: Any) -> ChunkedGraph:
    """Make a graph of objects 1 to 4, bars along x: 1 and 4 in four chunks, 2 and 3 in eight; 1 and 3 share none."""
    labels = np.repeat(np.arange(1, 5), 3)[None, :, None] * np.ones((16, 1, 2), np.int64)
    layout = GraphLayout.for_volume(labels.shape, CHUNK, OFFSET)
    cut = cut_supervoxels(labels, layout, **options)
    return ChunkedGraph(layout, cut.ids, cut.objects, CREATED)


def test_ids_are_their_own_roots_before_the_graph_was_created() -> None:
    graph = small_graph()
    ids = np.append(graph.supervoxels, np.uint64(7))
    np.testing.assert_array_equal(graph.roots(ids, CREATED - 0.001), ids)
    after = graph.roots(ids, CREATED)
    assert after[-1] == 0
    assert after[:-1].all()


def test_unknown_ids_are_zero_among_supervoxels_and_otherwise_themselves() -> None:
    graph = small_graph()
    known, unknown = int(graph.supervoxels[0]), int(graph.supervoxels[-1]) + 1
    root = int(graph.roots([known])[0])
    assert graph.roots([known, unknown, 0]).tolist() == [root, 0, 0]
    assert graph.roots([unknown, 0]).tolist() == [unknown, 0]
    assert graph.roots([root, root + 100, known]).tolist() == [root, root + 100, root]
    assert graph.roots([]).tolist() == []
    assert graph.roots([[known], [0]]).tolist() == [[root], [0]]
    assert graph.leaves(unknown).tolist() == graph.leaves(known).tolist() == []
    assert graph.exist([known, root, unknown], CREATED) == [True, True, False]
    assert graph.exist([known, root], CREATED - 1) == [False, False]


def test_an_edit_replaces_only_the_nodes_that_it_changes() -> None:
    graph = small_graph()
    first, second, third, _ = np.unique(graph.roots(graph.supervoxels)).tolist()
    old = set(graph.leaves(first, stop_layer=2).tolist()) | set(graph.leaves(third, stop_layer=2).tolist())
    apart = graph.merge(first, third, CREATED + 1)  # no chunk has both, so that the two nearest nodes are replaced
    new = set(graph.leaves(apart, stop_layer=2).tolist())
    assert (len(old - new), len(new - old), len(new)) == (2, 2, 12)
    one, other = graph.split(apart, graph.leaves(apart)[:3], CREATED + 2)
    both = {*graph.leaves(one, stop_layer=2).tolist(), *graph.leaves(other, stop_layer=2).tolist()}
    assert len(new - both) == len(both - new) <= 2
    assert graph.history.latest(first).tolist() == sorted([one, other])
    joined = graph.merge(other, second, CREATED + 3)
    chunks = graph.layout.chunk_ids(graph.leaves(joined, stop_layer=2))
    assert len(np.unique(chunks)) == len(chunks)


def test_a_chunk_lists_all_its_past_nodes_of_layer_2() -> None:
    graph = small_graph(pieces=3)
    first, second = np.unique(graph.roots(graph.supervoxels)).tolist()[:2]
    node = int(graph.leaves(first, stop_layer=2)[0])
    before = graph.level2_children(node, CREATED)
    assert before[node] == tuple(graph.leaves(node).tolist())
    joined = graph.merge(first, second, CREATED + 1)
    assert graph.level2_children(node, CREATED + 0.999) == before
    after = graph.level2_children(node)
    new = set(after) - set(before)
    assert before.items() < after.items()
    assert new == set(graph.leaves(joined, stop_layer=2).tolist()) & set(after)
    assert graph.level2_children(node, CREATED - 1) == {}


def test_invalid_edits_are_refused_and_change_nothing() -> None:
    graph = small_graph()
    first, second, *_ = np.unique(graph.roots(graph.supervoxels)).tolist()
    leaves = graph.leaves(first)
    with pytest.raises(GraphError, match="must be in order"):
        graph.merge(first, second, CREATED)
    for roots in [(first, first), (first, 5), (first, int(leaves[0]))]:
        with pytest.raises(GraphError, match="distinct roots"):
            graph.merge(*roots)
    for some in ([], leaves, graph.leaves(second), [leaves[0], graph.leaves(second)[0]]):
        with pytest.raises(GraphError, match="needs some of the"):
            graph.split(first, some)
    with pytest.raises(GraphError, match="stop_layer"):
        graph.roots(leaves, stop_layer=graph.layout.n_layers + 1)
    with pytest.raises(GraphError, match="layer 2"):
        graph.level2_children(first)
    assert graph.history.operations == ()
    merged = graph.merge(first, second)
    with pytest.raises(GraphError, match="up to date"):
        graph.merge(first, merged)


def test_edits_without_a_time_happen_now_in_order() -> None:
    graph = small_graph()
    first, second, third, fourth = np.unique(graph.roots(graph.supervoxels)).tolist()
    started = time.time()
    last = graph.merge(graph.merge(graph.merge(first, second), third), fourth)
    times = [operation.ms / 1000 for operation in graph.history.operations]
    assert times == sorted(set(times))
    assert started - 0.001 <= times[0] <= times[-1] <= time.time() + 0.003
    assert graph.roots(graph.supervoxels, times[-1]).tolist() == [last] * len(graph.supervoxels)


@pytest.mark.parametrize(
    ("timestamp", "ms"), [(1.0, 1000), (1, 1000), (1704067200.007, 1704067200007), (0.0019994, 1), (0.0009, 0)]
)
def test_times_are_kept_in_milliseconds(timestamp: float, ms: int) -> None:
    assert to_ms(timestamp) == ms


def test_layers_and_bits_follow_the_number_of_chunks() -> None:
    layout = GraphLayout.for_volume((128, 128, 32), (32, 32, 16))
    assert (layout.n_chunks, layout.n_layers) == ((4, 4, 2), 4)
    assert layout.bit_masks == {"1": 10, "2": 10, "3": 1, "4": 1}
    assert GraphLayout.for_volume((1, 1, 1), (32, 32, 16)).n_layers == 3
    assert GraphLayout.for_volume((33, 1, 1), (32, 32, 16)).n_layers == 3
    assert GraphLayout.for_volume((32 * 5, 1, 1), (32, 32, 16)).n_layers == 5
    assert GraphLayout.for_volume((128, 128, 32), (32, 32, 16), n_layers=9).bit_masks["3"] == 6
    for arguments in [((4, 4, 2), 3), ((1, 1, 1), 2), ((1, 1, 1), 20)]:
        with pytest.raises(ValueError, match=r"layers|spatial"):
            GraphLayout(CHUNK, OFFSET, *arguments)


def test_a_hundred_thousand_ids_take_milliseconds() -> None:
    labels = np.random.default_rng(0).integers(1, 2**20, size=(128, 128, 64)).astype(np.uint64)
    layout = GraphLayout.for_volume(labels.shape, (32, 32, 16))
    cut = cut_supervoxels(labels, layout)
    graph = ChunkedGraph(layout, cut.ids[:200_000], np.arange(200_000, dtype=np.uint64) // 50, CREATED)
    ids = np.random.default_rng(1).choice(graph.supervoxels, 100_000)
    graph.roots(ids)
    took = []
    for _ in range(5):
        started = time.process_time()
        graph.roots(ids)
        took.append(time.process_time() - started)
    assert min(took) < 0.2  # about 20 ms without a loop over ids; CPU time does not depend on other processes


def test_queries_during_edits_never_see_half_an_edit() -> None:
    graph = small_graph()
    roots = np.unique(graph.roots(graph.supervoxels)).tolist()
    stop, seen = threading.Event(), []

    def query() -> None:
        while not stop.is_set():
            seen.append(len(np.unique(graph.roots(graph.supervoxels))))

    threads = [threading.Thread(target=query) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            merged = graph.merge(roots[0], roots[1])
            roots[0], roots[1] = graph.split(merged, graph.leaves(merged)[::2])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(seen) <= {3, 4}


def test_pieces_of_a_supervoxel_have_its_parents_at_all_times() -> None:
    layout = GraphLayout.for_volume((8, 8, 4), CHUNK, OFFSET)
    cut = cut_supervoxels(np.arange(1, 5).repeat(64).reshape(4, 8, 8)[:, :, :4].repeat(2, axis=0), layout, pieces=2)
    graph = ChunkedGraph(layout, cut.ids, cut.objects, CREATED)
    old = int(cut.ids[3])
    first = int(graph.roots([old])[0])
    merged = graph.merge(first, next(int(r) for r in np.unique(graph.roots(cut.ids)) if r != first), CREATED + 10)
    tables = {(at, stop): int(graph.roots([old], CREATED + at, stop)[0]) for at in (0, 9, 10, 20) for stop in (2, None)}
    chunk = cut.ids[layout.chunk_ids(cut.ids) == layout.chunk_ids(old)]

    new = graph.split_supervoxel(old, 3)

    assert len(new) == 3
    assert (layout.chunk_ids(new) == layout.chunk_ids(old)).all()
    assert (layout.layers(new) == 1).all()
    assert new.min() > chunk.max()
    for (at, stop), node in tables.items():
        assert graph.roots(new, CREATED + at, stop).tolist() == [node] * 3
        assert set(new.tolist()) <= set(graph.leaves(node).tolist())
        assert old not in graph.leaves(node)
    assert graph.roots([old], CREATED + 20).tolist() == [merged]
    assert graph.exist([old, *new.tolist(), int(new.max()) + 1]) == [True] * 4 + [False]
    assert set(graph.supervoxels.tolist()) == {*cut.ids.tolist(), *new.tolist()} - {old}
    apart, rest = graph.split(merged, new[:1], CREATED + 30)
    assert graph.roots(new, CREATED + 30).tolist() == [apart, rest, rest]
    assert graph.roots(new, CREATED + 29).tolist() == [merged] * 3
    again = graph.split_supervoxel(int(new[0]), 2)
    assert again.min() > new.max()
    assert graph.roots(again, CREATED).tolist() == [first] * 2


@pytest.mark.parametrize(("supervoxel", "pieces"), [(5, 2), ("known", 1), ("split", 2)])
def test_only_current_supervoxels_are_split_into_several(supervoxel: Any, pieces: int) -> None:
    layout = GraphLayout.for_volume((8, 8, 4), CHUNK, OFFSET)
    cut = cut_supervoxels(np.ones((8, 8, 4), np.int64), layout)
    graph = ChunkedGraph(layout, cut.ids, cut.objects, CREATED)
    graph.split_supervoxel(int(cut.ids[1]), 2)
    given = {"known": int(cut.ids[0]), "split": int(cut.ids[1])}.get(supervoxel, supervoxel)
    before = graph.supervoxels.tolist()
    with pytest.raises(GraphError, match=rf"{given} cannot be split into {pieces}"):
        graph.split_supervoxel(given, pieces)
    assert graph.supervoxels.tolist() == before
