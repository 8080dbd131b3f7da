"""Names of regions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.model.arguments import check_region_names


@given(st.lists(st.from_regex(r"\A[a-z0-9_][a-z0-9_.-]{0,20}\Z").map(lambda name: f"{name}x"), min_size=1, unique=True))
def test_folder_names_are_taken(names: list[str]) -> None:
    check_region_names(names)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "a b", "a\\b", "-a", "a\n", "a.receipts", 3, None, "a,b"])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="must be letters, digits"):
        check_region_names(["fine", name])


def test_no_names_and_two_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="no regions"):
        check_region_names([])
    with pytest.raises(ValueError, match="'a' is the name of two regions"):
        check_region_names(["a", "b", "a"])
    with pytest.raises(ValueError, match="'A' and 'a' are one folder on some disks"):
        check_region_names(["a", "A"])
