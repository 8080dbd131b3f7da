"""Let a store follow supervoxels that were split since it was made: graph chunks with splits are read again.

Pieces of a split supervoxel have the roots of the whole at earlier moments, so that all versions of the store get rows
for the pieces before their voxels appear. What is written, in this order, leaves the store readable at any moment::

    rows of the pieces in the table of each version  ->  shards with their voxels, each at once
    ->  the table of supervoxels  ->  versions.json, with the moment that all of this is of

Until the last step, the moment is the former one, and whoever comes next does all of it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.lazy import lazy_dataarray
from imagery_dask.cluster import cores
from imagery_dask.errors import SourceError
from imagery_dask.export.core.inputs import Volume, as_volumes
from imagery_dask.export.core.plans import data_of, described_volume
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.run_states import DAMAGED, plan_in
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.registry import run_at
from imagery_dask.export.zarr.to_zarr import zarr_export
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.geometry.grid import Region, region_between, start_of, stop_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.chunkedgraph import SETTLED_S, RootQuery
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.labels import LabelRule
from imagery_dask.run import RunReport
from imagery_dask.sources import changed_supervoxel_chunks, collect_counts, look_up_roots, open_volume
from imagery_dask.versions.recorded import Recorded, recorded_in
from imagery_dask.versions.store_places import StorePlaces
from imagery_dask.versions.tables.supervoxel_table import COLUMNS, ROW, counted, merged
from imagery_dask.versions.tables.table_files import ColumnsHash, TableWriter, groups_of, regrouped
from imagery_dask.versions.version_store import StoreFacts, write_facts

__all__ = ["Splits", "follow_splits", "splits_since"]

Ids = NDArray[np.uint64]
SEGMENTATION = "segmentation"


@dataclass(frozen=True)
class Splits:
    """Graph chunks in which supervoxels were split since a store was made, or followed splits last.

    Parameters
    ----------
    moment : int
        Up to when, in seconds since 1970.
    cutout : Cutout
        The supervoxels of the store, as the splits up to then left them.
    regions : tuple of Region
        The graph chunks, in voxels of the store's volume.
    chunks : ndarray of uint64
        Their ids.
    """

    moment: int
    cutout: Cutout
    regions: tuple[Region, ...]
    chunks: Ids


def splits_since(store: StorePlaces, facts: StoreFacts, timestamp: int, now: int) -> Splits | None:
    """Return the graph chunks with splits that a version at a moment may show; None if there are none.

    Raises
    ------
    SourceError
        The records of the volume are gone, or its voxels are not whole parts of graph chunks.
    """
    path = f"graphene://{facts.graph.server}/segmentation/table/{facts.graph.table}"
    graph = open_volume(path, fresh=True).layer.graph
    if graph is None or not graph.splits_supervoxels or timestamp + SETTLED_S <= facts.supervoxels_at:
        return None
    cutout = _cutout_of(store)
    box = cutout.target.at(cutout.mip.grid.resolution_nm)
    changed = changed_supervoxel_chunks(cutout.path, cutout.mip.level, box, facts.supervoxels_at, now)
    if not changed:
        return None
    grid = facts.graph.chunks_at(cutout.target)
    if grid is None:
        raise SourceError(
            f"Supervoxels of {store.url} were split since it was made, and its voxels of {facts.resolution_nm} nm are "
            "cut by edges of graph chunks, so that no part can be read again. Make another store, of a finer mip."
        )
    shape, origin = grid
    found: dict[Vec3[int], Region] = {}
    for chunk in changed:
        part = chunk.at(cutout.target.resolution_nm).intersection(cutout.target)
        low, high = (part.start - origin) // shape, (part.stop - origin).ceil_div(shape)
        for index in np.ndindex(*(high - low)):
            at = low + Vec3.of(index)
            start = (at * shape + origin - cutout.target.start).maximum(0)
            stop = ((at + 1) * shape + origin - cutout.target.start).minimum(cutout.target.shape)
            found[at] = region_between(start, stop)
    labels = replace(cutout.labels or LabelRule(), moment=now)
    ids = np.array([facts.ids.chunk_id(at) for at in found], np.uint64)
    return Splits(now, replace(cutout, labels=labels), tuple(found.values()), np.sort(ids))


def follow_splits(store: StorePlaces, facts: StoreFacts, splits: Splits, options: RunOptions) -> RunReport:
    """Write what splits have changed, and the moment; return the report of the shards."""
    source = CutoutArray(splits.cutout)
    with ThreadPoolExecutor(cores()) as threads:
        rows = merged(list(threads.map(lambda region: counted(source, region), splits.regions)))
    for version in recorded_in(store.url):
        _add_rows(store, facts, version, rows["supervoxel"])
    report = _write_voxels(store, splits, options)
    _write_supervoxels(store, facts, splits, rows)
    write_facts(store.url, replace(facts, supervoxels_at=splits.moment))
    return report


def _cutout_of(store: StorePlaces) -> Cutout:
    """Return the cutout of the supervoxels, from the records of the volume."""
    try:
        plan = plan_in(run_at(store.volume))
    except FileNotFoundError as error:
        raise SourceError(
            f"Supervoxels may have been split since {store.url} was made, and its records, {store.volume}.receipts, "
            "are gone: they say from what it was read. Make another store."
        ) from error
    return _segmentation(zarr_export(data_of(plan.volumes), store.volume, ZarrOptions.from_json(plan.options)).volumes)


def _segmentation(volumes: Sequence[Volume]) -> Cutout:
    (source,) = (volume.source for volume in volumes if volume.name == SEGMENTATION)
    assert source is not None  # exports of stores are of cutouts
    return source.cutout


# ----------------------------------------------------------------------------------------------- tables of versions


def _add_rows(store: StorePlaces, facts: StoreFacts, version: Recorded, ids: Ids) -> None:
    """Add the supervoxels to a version that it does not have, with their roots at its moment."""
    table = version.table
    known, _ = table.rows_of(ids, ["root"])
    fresh = ids[~known]
    if not len(fresh):
        return
    query = RootQuery(facts.graph, version.timestamp, None, version=version.version)
    added: dict[str, Array] = {"supervoxel": fresh, "chunk": facts.ids.chunks_of(fresh)}
    with collect_counts() as counts:
        for name in table.columns[len(added) :]:
            layer = None if name == "root" else int(name.removeprefix("layer_"))
            added[name] = look_up_roots(replace(query, stop_layer=layer), fresh)
    names, hashed, distinct = list(table.columns), ColumnsHash(["supervoxel", "root"]), np.zeros(0, np.uint64)
    with TableWriter(store.roots(version.name), dict.fromkeys(names, np.uint64), names[1:]) as writer:
        for group in regrouped(_inserted(groups_of(table, names), added)):
            writer.write(group)
            hashed.add(group)
            distinct = np.union1d(distinct, group["root"])
        said: JsonObject = table.facts | {
            "rows": writer.rows, "roots": int((distinct != 0).sum()), "hash": hashed.hexdigest(),
            "supervoxels_hash": hashed.of("supervoxel"), "ids_sent": table.facts["ids_sent"] + counts.ids_sent,
            "requests": table.facts["requests"] + counts.root_requests,
        }  # fmt: skip
        writer.publish(said)


def _inserted(groups: Iterator[dict[str, Array]], added: dict[str, Array]) -> Iterator[dict[str, Array]]:
    """Yield row groups with further rows, all sorted by supervoxel, of which none is in both."""
    begin = 0
    for group in groups:
        end = int(np.searchsorted(added["supervoxel"], group["supervoxel"][-1])) if len(group["supervoxel"]) else begin
        both = {name: np.concatenate([rows, added[name][begin:end]]) for name, rows in group.items()}
        order = np.argsort(both["supervoxel"], kind="stable")
        yield {name: rows[order] for name, rows in both.items()}
        begin = end
    yield {name: rows[begin:] for name, rows in added.items()}


# ------------------------------------------------------------------------------------------ voxels, and their table


def _write_voxels(store: StorePlaces, splits: Splits, options: RunOptions) -> RunReport:
    """Write the blocks again that have touched graph chunks, and coarser levels, as a repair of the volume's export."""
    record = run_at(store.volume)
    plan = plan_in(record)
    described: list[Any] = []
    for volume in plan.volumes:
        if volume["name"] == SEGMENTATION:
            (made,) = as_volumes(lazy_dataarray(splits.cutout, SEGMENTATION))
            volume = volume | {"cutout": described_volume(made)["cutout"]}
        described.append(volume)
    export = zarr_export(data_of(described), store.volume, ZarrOptions.from_json(plan.options))
    blocks = [
        first + number
        for first, part in plan.parts if part.volume == SEGMENTATION and part.doing != "downsample"
        for number, (_, block) in enumerate(part.blocks)
        if any(_overlap(block, region) for region in splits.regions)
    ]  # fmt: skip
    record.records.put(DAMAGED, {"blocks": [], "source_changed": blocks, "digests": {}})
    record.saved(plan=replace(plan, volumes=described, fingerprint_fields=export.fingerprint_fields).to_json())
    report = execute(export, replace(options, repair=True))
    report.raise_for_failures()
    return report


def _overlap(one: Region, other: Region) -> bool:
    return start_of(one).all_lt(stop_of(other)) and start_of(other).all_lt(stop_of(one))


def _write_supervoxels(store: StorePlaces, facts: StoreFacts, splits: Splits, rows: Array) -> None:
    """Replace the rows of touched graph chunks in the table of supervoxels."""
    columns: dict[str, Array] = {name: np.ascontiguousarray(rows[name]) for name in ROW.names or ()}
    columns["chunk"] = facts.ids.chunks_of(columns["supervoxel"])
    table, hashed, voxels = store.supervoxels.open(), ColumnsHash(list(COLUMNS)), 0

    def kept() -> Iterator[dict[str, Array]]:
        for group in groups_of(table, list(COLUMNS)):
            stays = ~np.isin(group["chunk"], splits.chunks)
            yield {name: values[stays] for name, values in group.items()}

    with TableWriter(store.supervoxels, COLUMNS, ["chunk"]) as writer:
        for group in regrouped(_inserted(kept(), {name: columns[name] for name in COLUMNS})):
            writer.write(group)
            hashed.add(group)
            voxels += int(group["voxels"].sum(dtype=np.uint64))
        said: JsonObject = {
            "rows": writer.rows, "voxels": voxels, "hash": hashed.hexdigest(),
            "supervoxels_hash": hashed.of("supervoxel"),
        }  # fmt: skip
        writer.publish(said)
