"""Root ids that no supervoxel has at a version: what became of them since another version of the store."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imagery_dask.errors import OutdatedRootsError
from imagery_dask.model.labels import LabelRule
from imagery_dask.model.moments import describe_moment
from imagery_dask.validate import choice
from imagery_dask.versions.object_tables import roots_among, supervoxels_of, unmatched
from imagery_dask.versions.recorded import Recorded, recorded_in

if TYPE_CHECKING:
    from imagery_dask.client.cave_queries import StaleRoots

__all__ = ["check_listed_roots", "describe_stale"]

IDS_NAMED = 5


def check_listed_roots(rule: LabelRule, store: str, recorded: Recorded, stale: StaleRoots) -> None:
    """Raise, or warn, if no supervoxel has one of the root ids that a rule keeps.

    Parameters
    ----------
    rule : LabelRule
        Keeps the root ids that a user asked for; rules without a list are not checked.
    store : str
        URL of the store, whose other versions are searched for ids that are absent.
    recorded : Recorded
        The version.
    stale : {"error", "warn"}
        What to do with ids that no supervoxel has.

    Raises
    ------
    OutdatedRootsError
        If there are such ids, with "error"; the message names the ids that they became.
    """
    choice("stale_roots", stale, ("error", "warn"))
    keep = [value for value in rule.keep or () if value]
    absent = unmatched(recorded.table, keep) if keep and rule.query is not None else []
    if absent:
        message = describe_stale(absent, len(keep), store, recorded)
        if stale == "error":
            raise OutdatedRootsError(message)
        warnings.warn(message, stacklevel=4)


def describe_stale(absent: Sequence[int], count: int, store: str, recorded: Recorded) -> str:
    """Say of root ids, `count` of which were asked for, that no supervoxel has them, and what they became."""
    named = "; ".join(_successors(value, store, recorded) for value in absent[:IDS_NAMED])
    omitted = f" (and {len(absent) - IDS_NAMED} more)" if len(absent) > IDS_NAMED else ""
    return (
        f"root_ids: {len(absent)} of {count} have no supervoxel in this store at {recorded.title} "
        f"({describe_moment(recorded.timestamp)}): {named}{omitted}. Use ids of that version, or pass "
        "stale_roots='warn' to leave them out."
    )


def _successors(root: int, store: str, recorded: Recorded) -> str:
    """Return ``id -> ids``: the roots at a version of the supervoxels that an object has in another version."""
    others = sorted(recorded_in(store), key=lambda one: abs(one.timestamp - recorded.timestamp))
    for other in others:
        found = [roots_among(recorded.table, ids) for ids in supervoxels_of(other.table, [root])]
        if found:
            now = np.unique(np.concatenate(found))
            now = now[now != 0]
            text = ", ".join(map(str, now[:IDS_NAMED].tolist())) or "none"
            more = f" and {len(now) - IDS_NAMED} more" if len(now) > IDS_NAMED else ""
            return f"{root} (of {other.title}) -> {text}{more}"
    return f"{root} (in no version of this store)"
