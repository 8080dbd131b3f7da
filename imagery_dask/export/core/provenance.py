"""Attributes of an export that tell where its voxels come from. They contain no token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from imagery_dask.annotations import JsonObject
from imagery_dask.model.labels import LabelRule
from imagery_dask.run import RunReport
from imagery_dask.sources import ReadCounts
from imagery_dask.storage.store_files import KEY, ROOT_IDS

if TYPE_CHECKING:
    from imagery_dask.export.core.inputs import Volume

__all__ = ["KEY", "PROGRAM", "provenance", "root_of_regions", "what_was_missing"]

IDS_LISTED = 1000
# Read once, at import.
PROGRAM = version("imagery_dask")


def provenance(volume: Volume) -> JsonObject:
    """Return source, mip, bounds, resolution, timestamp, objects, version and date as JSON values."""
    attributes: JsonObject = {"version": PROGRAM, "created": _now()}
    if volume.relabel:
        attributes["relabel"] = {"dtype": "uint32", "table": ROOT_IDS}
    if volume.source is None:
        return attributes
    from imagery_dask.arrays.lazy import described

    cutout = volume.source.cutout
    target = cutout.target
    attributes |= described(cutout) | {
        "bounds_voxels": [list(target.start), list(target.stop)],
        "source_resolution_nm": list(cutout.mip.grid.resolution_nm),
        "missing_rule": cutout.missing,
    }
    return attributes | ({} if cutout.labels is None else _objects(cutout.labels))


def root_of_regions(names: Sequence[str]) -> JsonObject:
    """Return the attribute of the group of named regions."""
    return {"version": PROGRAM, "created": _now(), "regions": list(names)}


def what_was_missing(report: RunReport, volume: str) -> JsonObject:
    """Return the numbers of missing chunks, supervoxels without a root, and failed blocks of a finished run."""
    counts = report.counts_of.get(volume, ReadCounts())
    unsaid = counts.refused_or_absent
    return {
        "finished": _now(),
        "source_chunks_missing": counts.missing,
        "source_chunks_missing_first": counts.missing_keys[:10],
        **({"source_chunks_refused_or_absent": unsaid} if unsaid else {}),
        "supervoxels_without_root": counts.zero_roots,
        "blocks_failed": report.failures,
    }


def _objects(rule: LabelRule) -> JsonObject:
    """Return which objects were kept: ids as text, which JSON readers do not round, or the hash of many ids."""
    kept: JsonObject = {}
    if rule.query is not None and rule.query.stop_layer is not None:
        kept["stop_layer"] = rule.query.stop_layer
    if rule.keep is None:
        return kept | {"root_ids": "all"}
    listed = [str(value) for value in rule.keep]
    if len(listed) <= IDS_LISTED:
        return kept | {"root_ids": listed}
    digest = hashlib.sha256("\n".join(listed).encode()).hexdigest()
    return kept | {"root_ids_count": len(listed), "root_ids_sha256": digest}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
