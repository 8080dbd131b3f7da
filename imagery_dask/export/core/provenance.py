"""What an export says of where its voxels come from, in its own attributes. No token is in any of it."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from imagery_dask.arrays.lazy import described
from imagery_dask.export.core.inputs import Volume
from imagery_dask.model.labels import LabelRule
from imagery_dask.run import RunReport
from imagery_dask.sources import ReadCounts

__all__ = ["KEY", "PROGRAM", "provenance", "what_was_missing", "without_user"]

# The attribute of groups, and of precomputed provenance, that holds it.
KEY = "imagery_dask"
IDS_LISTED = 1000
# Read once, where the package is sure to be found.
PROGRAM = version("imagery_dask")


def provenance(volume: Volume) -> dict[str, Any]:
    """Source, mip, bounds, resolution, moment, objects, program and date, in plain values."""
    found: dict[str, Any] = {"version": PROGRAM, "created": _now()}
    if volume.source is None:
        return found
    cutout = volume.source.cutout
    target = cutout.target
    found |= described(cutout) | {
        "source": without_user(cutout.path),
        "bounds_voxels": [list(target.start), list(target.stop)],
        "source_resolution_nm": list(cutout.mip.grid.resolution_nm),
        "missing_rule": cutout.missing,
    }
    return found | ({} if cutout.labels is None else _objects(cutout.labels))


def what_was_missing(report: RunReport, volume: str) -> dict[str, Any]:
    """Say what a finished run did not find: storage chunks, roots, blocks."""
    counts = report.counts_of.get(volume, ReadCounts())
    return {
        "finished": _now(),
        "source_chunks_missing": counts.missing,
        "source_chunks_missing_first": counts.missing_keys[:10],
        "supervoxels_without_root": counts.zero_roots,
        "blocks_failed": report.failures,
    }


def without_user(path: str) -> str:
    """Leave out a name and password before a URL's host: an export may be shown to others."""
    return re.sub(r"://[^/@]*@", "://", path)


def _objects(rule: LabelRule) -> dict[str, Any]:
    """Which objects were kept: their ids as text, which JSON readers do not round; many of them by a hash."""
    found: dict[str, Any] = {}
    if rule.query is not None and rule.query.stop_layer is not None:
        found["stop_layer"] = rule.query.stop_layer
    if rule.keep is None:
        return found | {"root_ids": "all"}
    listed = [str(value) for value in rule.keep]
    if len(listed) <= IDS_LISTED:
        return found | {"root_ids": listed}
    digest = hashlib.sha256("\n".join(listed).encode()).hexdigest()
    return found | {"root_ids_count": len(listed), "root_ids_sha256": digest}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
