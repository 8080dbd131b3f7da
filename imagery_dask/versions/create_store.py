"""Make a version store: the volume of supervoxels, their table, and their roots at a first version.

Each step is an export of its own, and the next begins when it is complete::

    lease -> creating.json -> volume.zarr -> supervoxels.parquet -> roots/NAME.parquet -> versions.json

So a process may be killed at any moment: the same call does what is left. ``creating.json`` holds what was asked for,
with "now" as a moment, and is removed at the end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from imagery_dask.annotations import JsonObject
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.lazy import lazy_dataarray, shared_block_edges
from imagery_dask.cards import Card
from imagery_dask.client.cave_queries import version_moment
from imagery_dask.config import config
from imagery_dask.errors import SourceError
from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import difference
from imagery_dask.export.core.provenance import PROGRAM
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.writer_arguments import describe_run
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.zarr.to_zarr import zarr_export
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.pyramid import Levels, pyramid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.chunkedgraph import ChunkedGraph, RootQuery
from imagery_dask.model.cutout import Cutout, whole_layer
from imagery_dask.model.graph_ids import SupervoxelIds
from imagery_dask.model.labels import LabelRequest
from imagery_dask.model.moments import Moment
from imagery_dask.records.runs import now
from imagery_dask.run import RunReport
from imagery_dask.serialization import json_object, to_json
from imagery_dask.sources import open_volume
from imagery_dask.sources.graph.graph_server import read_graph_info
from imagery_dask.sources.graph.table_footers import parquet
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.urls import redacted
from imagery_dask.validate import whole_number
from imagery_dask.versions.recorded import name_of
from imagery_dask.versions.store_options import StoreOptions
from imagery_dask.versions.store_places import DRAFT, VOLUME, StorePlaces, moment_of
from imagery_dask.versions.tables.root_changes import Lookup
from imagery_dask.versions.tables.root_table import RootsTable
from imagery_dask.versions.tables.supervoxel_table import SupervoxelTable, graph_blocks
from imagery_dask.versions.tables.table_export import write_table
from imagery_dask.versions.version_store import FACTS, StoreFacts, read_facts, write_facts

if TYPE_CHECKING:
    import xarray as xr

    from imagery_dask.client import ImageryClient

__all__ = ["NewStore", "VersionsReport", "create_versions", "new_store", "supervoxel_table"]

Stages = dict[str, RunReport]
# Exports are replaced by --overwrite; a store has versions that took hours each.
ANOTHER = "Choose another name, or remove it with all of its versions to start over."


@dataclass(frozen=True)
class VersionsReport:
    """What was written of a store.

    Parameters
    ----------
    url : str
        The store.
    version : str
        Name of the version that was added.
    stages : dict of str to RunReport
        The report of each file, by its name.
    notes : tuple of str
        Remarks, as sentences.
    """

    url: str
    version: str
    stages: Mapping[str, RunReport]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    @property
    def ids_sent(self) -> int:
        """Ids that were sent to the server of the graph."""
        return sum(report.counts.ids_sent for report in self.stages.values())

    def _card(self) -> Card:
        rows = [("version", self.version)]
        rows += [(name, f"{report.done:,} of {report.blocks:,} blocks") for name, report in self.stages.items()]
        rows += [("ids sent", f"{self.ids_sent:,}"), *(("note", note) for note in self.notes)]
        return Card(f"VersionsReport: {self.url}", rows)


@describe_run
def create_versions(
    client: ImageryClient,
    url: str | os.PathLike[str],
    bounds: ArrayLike,
    *,
    version: int | None = None,
    timestamp: Moment = None,
    stop_layers: Sequence[int] = (),
    image: bool = False,
    resolution: ArrayLike | None = None,
    image_mip: int | None = None,
    segmentation_mip: int | None = None,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | Literal["auto"] | None = "auto",
    levels: Levels = 1,
    codec: str = "auto",
    block_mib: float | None = None,
    max_missing: float | None = None,
    max_requests: int | None = None,
    report: str | os.PathLike[str] | None = None,
    cluster: Any = None,
    workers: int | Literal["auto"] | None = None,
    max_workers: int | None = None,
    progress: bool | Callable[[RunReport], None] = True,
) -> VersionsReport:
    """Make a version store of a dynamic segmentation: supervoxels once, and the roots of a first version.

    Further versions are added with `add_version`, and the store is read with `open_versions`, without a server. The
    same call resumes after an interruption, and does nothing when the store is complete.

    Parameters
    ----------
    client : ImageryClient
        Its segmentation is the dynamic one (``graphene://``).
    url : str or path
        Where to write: a local folder or a bucket.
    bounds : array-like, shape (2, 3)
        Lower corner (inclusive) and upper corner (exclusive), x, y, z in voxels of `resolution`. Bounds at edges of
        graph chunks make shards that agree with them.
    version : int, optional
        Materialization version to look up first.
    timestamp : datetime, str or number, optional
        Moment to look up first, in place of a version. By default that of the client, or else now.
    stop_layers : sequence of int
        Layers whose ids are recorded beside the roots of that version, 2 for L2 ids.
    image : bool
        Export the client's imagery too, on the grid of the finer of the two.
    resolution : array-like of 3 numbers, optional
        Resolution of `bounds`, nm per voxel; by default the client's.
    image_mip, segmentation_mip : int, optional
        Levels to read; by default the client's.
    chunks, shards, levels, codec
        As for `to_zarr`. By default, chunks are about cubes in nm, and shards agree with graph chunks.
    {parameters}

    Returns
    -------
    VersionsReport
        Prints as a table.

    Raises
    ------
    ValueError, TypeError
        The segmentation is flat, or arguments are not valid. Nothing has been written.
    FileExistsError
        There is something else at `url`, or a store of something else; the message names what differs.
    TargetBusyError
        Another process is writing to the store.
    SourceError, BlockFailedError, AccessRefusedError
        As for `to_zarr`. Call again with the same arguments to resume.
    """
    store = new_store(
        client, url, bounds, version=version, timestamp=timestamp, image=image, resolution=resolution,
        image_mip=image_mip, segmentation_mip=segmentation_mip, stop_layers=stop_layers,
        options=StoreOptions(chunks=chunks, shards=shards, levels=levels, codec=codec),
    )  # fmt: skip
    return store.write(RunOptions(
        cluster=cluster, workers=workers, max_workers=max_workers, progress=progress, block_mib=block_mib,
        max_missing=max_missing, max_requests=max_requests, report=report,
    ))  # fmt: skip


@dataclass(frozen=True)
class NewStore:
    """A store to make, or to go on with.

    Parameters
    ----------
    store : StorePlaces
        Where it is made.
    facts : StoreFacts
        What it is of.
    query : RootQuery
        The first version.
    data : xarray.Dataset
        Supervoxels, and imagery.
    options : ZarrOptions
        How they are written.
    request : dict
        What was asked for, as ``creating.json`` holds it.
    notes : tuple of str
        What is said of the bounds.
    stop_layers : tuple of int
        Layers whose ids are recorded too.
    """

    store: StorePlaces
    facts: StoreFacts
    query: RootQuery
    data: xr.Dataset
    options: ZarrOptions
    request: JsonObject
    notes: tuple[str, ...]
    stop_layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the first version."""
        return name_of(self.query.version, self.query.timestamp)

    @property
    def export(self) -> Export:
        """Export of the volume."""
        return zarr_export(self.data, self.store.volume, self.options)

    def rows(self) -> list[tuple[str, str]]:
        """Return what follows the export of the volume, as labels and text."""
        blocks, most = supervoxel_blocks(self.facts), config.get("graph.batch_ids")
        shape = " x ".join(map(str, blocks.largest))
        return [
            (
                "supervoxels",
                f"counted in {len(blocks):,} blocks of up to {shape} voxels",
            ),
            (
                "ids to send",
                f"all supervoxels, once, {most:,} in a request; how many there are is not known yet",
            ),
            *(("note", note) for note in self.notes),
        ]

    def write(self, options: RunOptions) -> VersionsReport:
        """Write what is left of the store.

        Raises
        ------
        FileExistsError
            There is something else, or a store of something else.
        """
        store, stages = self.store, Stages()
        refuse_other(store, self.request)
        with store.lease() as lease:
            if refuse_other(store, self.request):
                return VersionsReport(store.url, self.name, {}, (f"{store.url} is complete: nothing is left to do.",))
            store.files.put(DRAFT, json.dumps(self.request, indent=1).encode(), "application/json")
            stages["volume"] = execute(self.export, options)
            stages["volume"].raise_for_failures()
            lease.check()
            tables = replace(options, report=None, max_missing=None)
            stages["supervoxels"] = write_table(supervoxel_table(store, self.facts, options.block_bytes), tables)
            lease.check()
            rows = store.supervoxels.open().rows
            roots = RootsTable(
                store.roots(self.name), store.supervoxels, self.query, Lookup(rows, rows), store.roots, self.stop_layers
            )
            stages["roots"] = write_table(roots, tables)
            lease.check()
            write_facts(store.url, self.facts)
            store.files.delete([DRAFT])
        return VersionsReport(store.url, self.name, stages, self.notes)


def new_store(
    client: ImageryClient,
    url: str | os.PathLike[str],
    bounds: ArrayLike,
    *,
    version: int | None,
    timestamp: Moment,
    image: bool,
    resolution: ArrayLike | None,
    image_mip: int | None,
    segmentation_mip: int | None,
    options: StoreOptions,
    stop_layers: Sequence[int] = (),
) -> NewStore:
    """Return the store that a call of `create_versions` makes; nothing is written."""
    parquet()  # raises where it is not installed
    store, path = StorePlaces(url), client.segmentation_source
    settings = client._settings
    if path is None or settings.segmentation_layer().graph is None:
        raise ValueError(
            f"Versions are of a dynamic segmentation (graphene://...); {redacted(str(path))!r} is flat: it has one "
            "state, which imagery-dask export zarr writes."
        )
    if image:
        settings.image_layer()
    version, moment = _moment(client, *moment_of(version, timestamp))
    draft = _draft(store)
    if moment is None:  # "now" is that of the call that is resumed
        moment = int(draft["timestamp"]) if draft.get("now") else int(time.time())
        is_now = True
    else:
        is_now = False
    own = settings if image else replace(settings, image=None)
    # Supervoxels as they are now: pieces of those that were split have the roots of the whole at earlier moments.
    begun = int(draft.get("begun") or time.time())
    cutouts = own.present(
        bounds, (image_mip, segmentation_mip), LabelRequest(root_ids=None, timestamp=begun), order=0, bbox_size=None,
        resolution=resolution, scale_to_bounds=False,
    )  # fmt: skip
    supervoxels = cutouts["segmentation"]
    graph, info = read_graph_info(path)
    target = supervoxels.target
    facts = StoreFacts(
        graph, (target.start, target.stop), supervoxels.mip.level, target.resolution_nm, tuple(cutouts),
        begun, now(), PROGRAM, VOLUME,
        SupervoxelIds.from_info(path, info).chunk_bits, *_cave_of(client),
    )  # fmt: skip
    chunk, phase = _graph_grid(facts)
    layers = checked_layers(graph, stop_layers)
    request: JsonObject = to_json({
        **_place_of(facts), "version": version, "timestamp": moment, "now": is_now, "begun": facts.supervoxels_at,
        "options": options, "stop_layers": layers,
    })  # fmt: skip
    query = RootQuery(graph, moment, None, settings.dynamic.max_requests, version)
    return NewStore(
        store, facts, query, _dataset(cutouts), options.zarr(chunk, target.shape, target.resolution_nm), request,
        (*_notes(facts, chunk, phase), *_unread_levels(facts, options.levels)), layers,
    )  # fmt: skip


def checked_layers(graph: ChunkedGraph, stop_layers: Sequence[int]) -> tuple[int, ...]:
    """Return layers between supervoxels and roots, ascending; raise ValueError for others."""
    return tuple(sorted({whole_number("stop_layers", layer, 2, graph.layers - 1) for layer in stop_layers}))


def _moment(client: ImageryClient, version: int | None, timestamp: int | None) -> tuple[int | None, int | None]:
    """Return the version and its moment; those of the client where none is given, and None for now."""
    if version is not None:
        if client._client is None:
            raise ValueError(f"version={version} needs a client that was made from a CAVEclient; give a timestamp.")
        return version, version_moment(client._client, version)
    if timestamp is not None:
        return None, timestamp
    return client._settings.dynamic.version, client._settings.dynamic.moment


def _cave_of(client: ImageryClient) -> tuple[str | None, str | None]:
    """Return the datastack of a client, and the server that knows it."""
    cave = client._client
    return (None, None) if cave is None else (str(cave.datastack_name), str(cave.server_address))


def _dataset(cutouts: Mapping[str, Cutout]) -> xr.Dataset:
    import xarray as xr

    blocks = shared_block_edges(list(cutouts.values()))
    return xr.Dataset({name: lazy_dataarray(cutout, name, blocks) for name, cutout in cutouts.items()})


def _place_of(facts: StoreFacts) -> JsonObject:
    """Return what a store is of, by names that a user knows."""
    place: JsonObject = to_json({
        "server": facts.graph.server, "table": facts.graph.table, "bounds": facts.bounds,
        "resolution_nm": facts.resolution_nm, "mip": facts.mip, "layers": facts.layers,
    })  # fmt: skip
    return place


def _graph_grid(facts: StoreFacts) -> tuple[Vec3[int], Vec3[int]]:
    """Return the shape of graph chunks, and the voxels before the first edge between them, in voxels of the volume."""
    target = facts.grid
    chunks = facts.graph.chunks_at(target)
    if chunks is None:  # edges of graph chunks cut voxels: rows of supervoxels are added up
        return Vec3(512, 512, 512), Vec3(0, 0, 0)
    shape, origin = chunks
    return shape, (origin - target.start) % shape


def _notes(facts: StoreFacts, chunk: Vec3[int], phase: Vec3[int]) -> tuple[str, ...]:
    if not any(phase):
        return ()
    start = facts.grid.start - (chunk - phase) % chunk
    stop = start + (facts.grid.stop - start).ceil_div(chunk) * chunk
    return (
        f"The bounds do not begin at edges of graph chunks, so shards cut graph chunks. With bounds {tuple(start)} to "
        f"{tuple(stop)} (voxels of {tuple(facts.resolution_nm)} nm) they would not.",
    )


def _unread_levels(facts: StoreFacts, levels: Levels) -> tuple[str, ...]:
    """Say which levels begin within a voxel of theirs: cutouts of them are refused."""
    if levels == "source":
        return ()
    grid = facts.grid
    steps = [Vec3(1, 1, 1)]
    for level in pyramid(grid.shape, grid.resolution_nm, grid.start, levels)[1:]:
        steps.append(steps[-1] * level.step)
    unread = [number for number, step in enumerate(steps) if any(grid.start % step)]
    if not unread:
        return ()
    return (
        f"Levels from {unread[0]} on begin within a voxel, since the bounds begin at {tuple(grid.start)}, so that "
        f"at(level=...) refuses them; bounds that begin at multiples of {tuple(steps[-1])} would not.",
    )


def supervoxel_table(store: StorePlaces, facts: StoreFacts, block_bytes: int | None = None) -> SupervoxelTable:
    """Return the table of the supervoxels of a store, from its volume."""
    path = f"zarr3://{store.files.url}/{VOLUME}" + ("/labels/segmentation" if "image" in facts.layers else "")
    layer = open_volume(path, fresh=True).layer
    blocks = supervoxel_blocks(facts, block_bytes)
    source = CutoutArray(replace(whole_layer(layer, 0), target=layer.mips[0].grid))
    if (source.cutout.target.start, source.cutout.target.stop) != facts.bounds:
        raise SourceError(f"{path} has other voxels ({source.cutout.target}) than its store says ({facts.grid}).")
    return SupervoxelTable(store.supervoxels, source, facts.ids, blocks, _place_of(facts))


def supervoxel_blocks(facts: StoreFacts, block_bytes: int | None = None) -> BlockPlan:
    """Return the blocks in which supervoxels are counted."""
    chunk, phase = _graph_grid(facts)
    return graph_blocks(facts.grid.shape, chunk, phase, (block_bytes or config.get("export.block_bytes")) // 8)


# --------------------------------------------------------------------------- a store that exists, or was begun


def _draft(store: StorePlaces) -> JsonObject:
    """Return what was asked for by the call that began a store; empty if there is none."""
    with clear_errors(store.url):
        return json_object(store.files.get(DRAFT)) or {}


def refuse_other(store: StorePlaces, request: JsonObject) -> bool:
    """Return True if the store that was asked for is complete.

    Raises
    ------
    FileExistsError
        There is something else, or a store of something else.
    """
    decides = {name: value for name, value in request.items() if name not in ("begun", "now")}
    with clear_errors(store.url):
        is_complete = store.files.get(FACTS) is not None
    if is_complete:
        before = _place_of(read_facts(store.url))
        _refuse(store, before, {name: decides[name] for name in before}, ANOTHER)
        name = name_of(request["version"], request["timestamp"])
        if not request["now"] and not store.roots(name).exists:
            raise FileExistsError(f"{store.url} is a complete store without version {name}; versions add adds it.")
        return True
    draft = _draft(store)
    if draft:
        remedy = "Repeat the arguments that it was begun with, or remove it."
        _refuse(store, {name: draft.get(name) for name in decides}, decides, remedy)
        return False
    others = (name for name in store.files.names() if name != "lease.json" and ".partial" not in name)
    if (other := next(others, None)) is not None:
        raise FileExistsError(
            f"{store.url} exists, and is not a version store: it holds {other!r}. Choose another name."
        )
    return False


def _refuse(store: StorePlaces, before: JsonObject, asked: JsonObject, remedy: str) -> None:
    if before != asked:
        raise FileExistsError(f"{store.url} is a store of something else: {difference(before, asked)}. {remedy}")
