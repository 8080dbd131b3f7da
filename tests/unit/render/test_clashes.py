"""Colors of pictures: those of the ids, except where objects that touch would look alike."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.render.clashes import APART, colors_apart, touching
from imagery_dask.render.palettes import color_distance, color_of

ROOT = 864_691_135_000_000_000
# Ids whose own colors are hard to tell apart.
LIKE = next(root for root in range(ROOT + 1, ROOT + 1000) if color_distance(color_of(root), color_of(ROOT)) < 40)


def picture(seed: int, objects: int, size: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.uint64(ROOT) + rng.choice(2**40, objects, replace=False).astype(np.uint64)
    return np.kron(ids[rng.integers(0, objects, (size // 5, size // 5))], np.ones((5, 5), np.uint64))


def clashes(pairs, colors) -> int:
    return sum(color_distance(colors[a], colors[b]) < APART for a, b in pairs)


def test_touching_objects_are_found_across_membranes():
    labels = np.zeros((12, 3), np.uint64)
    labels[:4], labels[6:] = ROOT, ROOT + 1
    assert touching(labels) == {(ROOT, ROOT + 1)}
    assert touching(labels, reach=0) == set()
    far = np.zeros((30, 3), np.uint64)
    far[:4], far[-4:] = ROOT, ROOT + 1
    assert touching(far) == set()


def test_one_of_two_colors_that_clash_is_changed():
    both = np.array([[ROOT, LIKE]], np.uint64)
    colors = colors_apart([both])
    assert clashes([(ROOT, LIKE)], colors) == 0
    assert sum(colors[root] == color_of(root) for root in colors) == 1
    # Objects that do not touch keep their colors, each in its own plane or in one.
    assert colors_apart([both[:, :1], both[:, 1:]]) == {root: color_of(root) for root in (ROOT, LIKE)}


@pytest.mark.parametrize("objects", [2, 8, 30])
@given(seed=st.integers(0, 2**32))
def test_touching_objects_differ_and_few_colors_change(objects, seed):
    labels = picture(seed, objects)
    pairs, colors = touching(labels), colors_apart([labels])
    own = {root: color_of(root) for root in colors}
    changed = {root for root in colors if colors[root] != own[root]}
    clashing = {pair for pair in pairs if clashes([pair], own)}
    assert set(colors) == set(np.unique(labels).tolist())
    assert all(set(pair) & changed for pair in clashing)
    assert changed <= {root for pair in clashing for root in pair}
    if objects <= 8:  # with 29 neighbors each, 37 colors may not be enough
        assert clashes(pairs, colors) == 0
        fewest = next(
            n for n in range(9) if any(all(set(pair) & set(few) for pair in clashing)
            for few in combinations(sorted(own), n))
        )  # fmt: skip
        assert len(changed) <= fewest + 1  # greedy where clashes form cycles
        if len(clashing) < 3:
            assert len(changed) == fewest
    assert colors == colors_apart([labels[::-1].T])


@given(seed=st.integers(0, 2**32))
def test_settled_colors_stay_and_others_keep_apart_from_them(seed):
    first, second = picture(seed, 6), picture(seed + 1, 6)
    second = np.where(second == second[0, 0], first[0, 0], second)  # an object of both planes
    settled = colors_apart([first])
    colors = colors_apart([second], settled=settled)
    assert colors[first[0, 0]] == settled[first[0, 0]]
    assert clashes(touching(second), colors) == 0


def test_colors_are_those_of_other_processes():
    program = (
        "import numpy as np; from imagery_dask.render.clashes import colors_apart; "
        f"print(sorted(colors_apart([np.array([[{ROOT}, {LIKE}, {2**64 - 1}]], np.uint64)]).items()))"
    )
    printed = {subprocess.check_output([sys.executable, "-c", program], text=True) for _ in range(2)}
    assert printed == {f"{sorted(colors_apart([np.array([[ROOT, LIKE, 2**64 - 1]], np.uint64)]).items())}\n"}


def test_a_picture_without_objects_has_no_colors():
    assert colors_apart([np.zeros((4, 4), np.uint64)]) == {}
