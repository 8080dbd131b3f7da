"""`VersionStore`: the versions of a segmentation as lazy arrays and tables, from files alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from imagery_dask.arrays.lazy import lazy_dataarray, shared_block_edges
from imagery_dask.cards import Card, CardTable
from imagery_dask.errors import OutdatedRootsError
from imagery_dask.export.core.writer_arguments import describe_run
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.arguments import corners
from imagery_dask.model.chunkedgraph import SUPERVOXEL_LAYER, RootQuery
from imagery_dask.model.cutout import Cutout, CutoutRequest, resolve, whole_layer
from imagery_dask.model.labels import LabelRule, RootIds, label_rule
from imagery_dask.model.layer import Layer
from imagery_dask.model.moments import Moment, describe_moment
from imagery_dask.sources import normalize_path, open_volume
from imagery_dask.sources.graph.root_tables import IdTable, column_of_layer, id_table
from imagery_dask.storage.atomic_files import Files
from imagery_dask.urls import redacted
from imagery_dask.validate import expanded_path, root_id, triple, whole_number
from imagery_dask.versions.differences import Difference, difference
from imagery_dask.versions.object_tables import ObjectPlace, objects_of, place_of
from imagery_dask.versions.recorded import Recorded, Version, find, recorded_in
from imagery_dask.versions.stale_roots import check_listed_roots, describe_stale
from imagery_dask.versions.version_store import SUPERVOXELS, read_facts

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from imagery_dask.client.cave_queries import StaleRoots
    from imagery_dask.export.zarr.zarr_options import OmeVersion
    from imagery_dask.geometry.pyramid import Levels
    from imagery_dask.run import RunReport
    from imagery_dask.versions.zarr_view import VersionZarr
    from imagery_dask.viewer.loopback import View
    from imagery_dask.viewer.served import ServedVolume

__all__ = ["VersionStore", "open_versions"]

LISTED = 10


class VersionStore:
    """Versions of a segmentation that are read from files, without a server. Small and picklable.

    Parameters
    ----------
    url : str or path
        The store: a local folder, or a URL such as ``s3://bucket/versions``.

    Attributes
    ----------
    url : str
        Where it is.
    facts : StoreFacts
        Graph, bounds, resolution and layers.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = Files.at(url).url
        self.facts = read_facts(self.url)

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    @property
    def versions(self) -> pd.DataFrame:
        """The recorded versions, earliest first.

        By the name of their table: ``version``, the materialization version (missing for a bare moment);
        ``timestamp``, UTC; ``roots`` and ``supervoxels``, how many; ``layers``, the layers that are recorded besides
        root ids; ``made_from``, the version from which a version was made by its edits; ``requests`` and ``ids_sent``,
        what making it took.
        """
        import pandas as pd

        recorded = recorded_in(self.url)
        facts = [one.about.facts for one in recorded]
        return pd.DataFrame(
            {
                "version": pd.array([one.version for one in recorded], dtype="Int64"),
                "timestamp": pd.to_datetime([one.timestamp for one in recorded], unit="s", utc=True),
                "roots": [int(of_table["roots"]) for of_table in facts],
                "supervoxels": [one.about.rows for one in recorded],
                "layers": [_layers_of(one.about.columns) for one in recorded],
                "made_from": [of_table.get("made_from") for of_table in facts],
                "requests": [int(of_table.get("requests", 0)) for of_table in facts],
                "ids_sent": [int(of_table.get("ids_sent", 0)) for of_table in facts],
            },
            index=pd.Index([one.name for one in recorded], name="name", dtype=object),
        )

    def at(
        self,
        version: Version | None = None,
        timestamp: Moment = None,
        *,
        bounds: ArrayLike | None = None,
        root_ids: RootIds = "all",
        level: int = 0,
        stop_layer: int | None = None,
        resolution: ArrayLike | None = None,
        convert_to_int64: bool = False,
        stale_roots: StaleRoots = "error",
    ) -> xr.Dataset:
        """Return a version as lazy arrays: stored supervoxels, mapped to ids as they are read. No server is asked.

        Parameters
        ----------
        version : int or str, optional
            A recorded materialization version, or the name of a recorded version.
        timestamp : datetime, str or number, optional
            A recorded moment, in place of `version`.
        bounds : array-like, shape (2, 3), optional
            Lower (inclusive) and upper (exclusive) corner, x, y, z in voxels of `resolution`; by default all of the
            store. Voxels outside of the store are 0.
        root_ids : sequence of int, None or "all"
            Objects to keep, all others become 0; None returns supervoxels.
        level : int
            Level of the stored volume; 0 is the finest.
        stop_layer : int, optional
            Layer of the ids to return, 2 for L2 ids, where it is recorded; root ids by default.
        resolution : array-like of 3 numbers, optional
            Resolution of `bounds`, nm per voxel (x, y, z). By default that of level 0.
        convert_to_int64 : bool
            Return ids as int64; an id that does not fit is an error when its block is computed.
        stale_roots : {"error", "warn"}
            Whether `root_ids` that no supervoxel of the store has at that version raise an error that names their
            successors, or only a warning; they then match no voxel.

        Returns
        -------
        xarray.Dataset
            Lazy variables ``segmentation``, and ``image`` if the store has it, as of `ImageryClient.dataset`: dims x,
            y, z, voxel centers in nm as coordinates, source, timestamp and version in ``attrs``.

        Raises
        ------
        ValueError
            If there is no such version; the message names the nearest ones. If the level or layer does not exist.
        OutdatedRootsError
            If `root_ids` are of another version.

        Notes
        -----
        A block raises `MissingChunkError` if a file of the volume is lost in which the tables have supervoxels.
        """
        cutouts = self.cutouts(
            find(self.url, version, timestamp), bounds, root_ids, level, stop_layer, resolution, convert_to_int64,
            stale_roots,
        )  # fmt: skip
        import xarray as xr

        from imagery_dask.xarrays import accessor as accessor  # registers `em`

        blocks = shared_block_edges(list(cutouts.values()))
        return xr.Dataset({name: lazy_dataarray(cutout, name, blocks) for name, cutout in cutouts.items()})

    def roots(self, version: Version) -> pd.DataFrame:
        """Return the objects of a version.

        Parameters
        ----------
        version : int, str or datetime
            A recorded materialization version, moment, or name.

        Returns
        -------
        pandas.DataFrame
            By root id: ``supervoxels`` and ``voxels`` (of level 0), how many; the box of the object, ``x_start`` to
            ``z_stop``, in voxels of level 0. Supervoxels without a root at that time are left out.
        """
        return objects_of(self.supervoxels, find(self.url, version).table)

    def where(self, root: int, version: Version) -> ObjectPlace:
        """Return where an object is, without reading voxels.

        Parameters
        ----------
        root : int
            A root id of the version.
        version : int, str or datetime
            A recorded materialization version, moment, or name.

        Raises
        ------
        OutdatedRootsError
            If no supervoxel of the store has this root then; the message names its successors.
        """
        recorded, wanted = find(self.url, version), root_id("root", root)
        place = place_of(self.supervoxels, recorded.table, wanted) if wanted else None
        if place is None:
            raise OutdatedRootsError(describe_stale([wanted], 1, self.url, recorded))
        return place

    def diff(self, a: Version, b: Version) -> Difference:
        """Compare two versions: a voxel differs if its root id does.

        An edit gives every object that it touches a new root id, so that all voxels of the object differ.

        Parameters
        ----------
        a, b : int, str or datetime
            Recorded materialization versions, moments, or names.

        Returns
        -------
        Difference
            ``table``, which roots became which; ``chunks``, where; ``layer()``, a lazy array that is True where
            voxels differ; ``picture()``, before, after, changed.
        """
        return difference(self, self.supervoxels, find(self.url, a), find(self.url, b))

    def zarr_store(
        self,
        version: Version | None = None,
        timestamp: Moment = None,
        *,
        root_ids: RootIds = "all",
        stop_layer: int | None = None,
        stale_roots: StaleRoots = "error",
    ) -> VersionZarr:
        """Return a version as a zarr store that is only read, for everything that opens zarr with zarr-python.

        Chunks are mapped to ids when they are read, and are not compressed; nothing is copied. The store is an
        OME-Zarr image with the levels, and the imagery, of the stored volume: the ids are its arrays ``"0"``, ``"1"``,
        ..., or, beside imagery, ``"labels/segmentation/0"``, ...

        Parameters
        ----------
        version, timestamp, root_ids, stop_layer, stale_roots
            As of `at`.

        Returns
        -------
        VersionZarr
            A `zarr.abc.store.Store`: ``zarr.open_group(store.zarr_store(1078), mode="r")``,
            ``dask.array.from_zarr(store.zarr_store(1078), component="0")``.

        Raises
        ------
        ValueError, OutdatedRootsError
            As `at`.
        """
        from imagery_dask.versions.zarr_view import VersionZarr

        recorded = find(self.url, version, timestamp)
        rule = self.rule(recorded, root_ids, stop_layer)
        check_listed_roots(rule, self.url, recorded, stale_roots)
        return VersionZarr(f"{self.url}/{self.facts.volume}", "image" in self.facts.layers, self.layer(), rule)

    def view(
        self,
        *versions: Version,
        bounds: ArrayLike | None = None,
        root_ids: Sequence[int] = (),
        browser: bool = True,
    ) -> View:
        """Show versions in Neuroglancer, side by side if there are several; chunks are mapped to ids on demand.

        Parameters
        ----------
        *versions : int, str or datetime
            Recorded materialization versions, moments, or names.
        bounds : array-like, shape (2, 3), optional
            Box to show, x, y, z in voxels of level 0. By default all of the store.
        root_ids : sequence of int
            Objects to select, in each version.
        browser : bool
            Open a browser. Without one on this machine, the address of the page is printed.

        Returns
        -------
        View
            The page; it serves until ``view.stop()`` or the end of the process.

        Raises
        ------
        ImportError
            If the neuroglancer package is not installed.
        ValueError
            If there is no version to show, or no such version.
        """
        from imagery_dask.viewer.launch import launch
        from imagery_dask.viewer.states import Place

        served, panels = self.served(versions)
        place = None
        if bounds is not None:
            lower, upper = corners(bounds)
            place = Place.of_bounds(Vec3.of(lower), Vec3.of(upper), Vec3.of(self.facts.resolution_nm))
        return launch(served, place, root_ids, browser=browser, panels=panels if len(panels) > 1 else [])

    def served(self, versions: Sequence[Version], name: str = "") -> tuple[list[ServedVolume], list[list[str]]]:
        """Return the layers that show versions, named after `name`, and which of them are shown side by side."""
        from imagery_dask.viewer.served import volume_of_layer

        if not versions:
            recorded = ", ".join(one.name for one in recorded_in(self.url)) or "none"
            raise ValueError(f"Say which versions of {redacted(self.url)} to show; it has {recorded}.")
        found = [find(self.url, version) for version in versions]
        titles = [f"{name} {one.title}".strip() for one in found]
        layers = [
            volume_of_layer(title, self.layer(), self.rule(one)) for title, one in zip(titles, found, strict=True)
        ]
        below: list[ServedVolume] = []
        if "image" in self.facts.layers:
            below = [volume_of_layer(f"{name} image".strip(), self.layer("image"))]
        panels = [[*(one.name for one in below), title] for title in titles]
        return [*below, *layers], panels

    @describe_run
    def materialize(
        self,
        version: Version,
        url: str | os.PathLike[str],
        *,
        image: bool = False,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal["auto"] | None = "auto",
        levels: Levels = "auto",
        codec: str = "auto",
        ome_version: OmeVersion = "0.5",
        block_mib: float | None = None,
        overwrite: bool = False,
        repair: bool = False,
        report: str | os.PathLike[str] | None = None,
        cluster: Any = None,
        workers: int | Literal["auto"] | None = None,
        max_workers: int | None = None,
        progress: bool | Callable[[RunReport], None] = True,
    ) -> RunReport:
        """Write a version as an ordinary OME-Zarr, or let a copy of another version become it.

        A copy that this method has written of another version is updated: blocks in which an id changes, and what is
        made of them in coarser levels, are written again, and all others are kept. A reader sees each file as it was
        or as it becomes. A call that was interrupted goes on when it is repeated; a call for a third version does,
        too. The result has the bytes of a copy that is written anew, but for its dates.

        Parameters
        ----------
        version : int, str or datetime
            A recorded materialization version, moment, or name.
        url : str or path
            Where to write: a local folder, or a bucket.
        image : bool
            Copy the imagery too, if the store has it.
        chunks : sequence of 3 int, optional
            Chunk shape x, y, z. By default chunks and shards are those of the store.
        shards, levels, codec, ome_version
            As of `imagery_dask.to_zarr`.
        {parameters}

        Returns
        -------
        RunReport
            ``before`` of its ``blocks`` were kept.

        Raises
        ------
        FileExistsError
            There is something else at `url`, and `overwrite` is False.
        ValueError
            There is no such version, or no record of the version that the copy is of, or the options are invalid.
        """
        from imagery_dask.export.core.run_options import RunOptions
        from imagery_dask.export.execution.execute import execute
        from imagery_dask.versions.copy_options import CopyOptions
        from imagery_dask.versions.materialize import prepare_copy

        options = CopyOptions(chunks=chunks, shards=shards, levels=levels, codec=codec, ome_version=ome_version)
        run_options = RunOptions(
            cluster=cluster, workers=workers, max_workers=max_workers, progress=progress, overwrite=overwrite,
            repair=repair, block_mib=block_mib, report=report,
        )  # fmt: skip
        recorded = find(self.url, version)
        export, notes = prepare_copy(self, recorded, url, options, image=image, overwrite=overwrite)
        made = execute(export, run_options)
        made.notes += notes
        return made

    # ------------------------------------------------------------------ what other modules of this folder need

    def layer(self, name: str = "segmentation") -> Layer:
        """Return a layer of the stored volume; of the segmentation, supervoxels."""
        location = f"{self.url}/{self.facts.volume}"
        if name == "segmentation" and "image" in self.facts.layers:
            location += "/labels/segmentation"
        return open_volume(normalize_path(f"zarr3://{location}")).layer

    def rule(
        self, recorded: Recorded, root_ids: RootIds = "all", stop_layer: int | None = None, as_int64: bool = False
    ) -> LabelRule:
        """Return the rule that maps supervoxels to the ids of a version; for ``root_ids=None``, to themselves."""
        graph, columns = self.facts.graph, recorded.about.columns
        if stop_layer is not None:
            whole_number("stop_layer", stop_layer, 1, graph.layers)
            column = column_of_layer(None if stop_layer == graph.layers else stop_layer)
            if stop_layer > 1 and column not in columns:
                raise ValueError(
                    f"stop_layer={stop_layer} is not recorded of {recorded.title}, which has "
                    f"{', '.join(map(str, _layers_of(columns))) or 'root ids alone'}. 'imagery-dask versions add' "
                    "records layers if they are asked for."
                )
        if root_ids is None:  # with the tables all the same, which tell what is lost of the volume
            root_ids, stop_layer = "all", SUPERVOXEL_LAYER
        layer = None if stop_layer == graph.layers else stop_layer
        graph = replace(graph, chunk_bits=self.facts.chunk_bits)
        query = RootQuery(graph, recorded.timestamp, layer, version=recorded.version, stored=recorded.url)
        return label_rule(root_ids, as_int64=as_int64, query=query)

    def cutouts(
        self,
        recorded: Recorded,
        bounds: ArrayLike | None = None,
        root_ids: RootIds = "all",
        level: int = 0,
        stop_layer: int | None = None,
        resolution: ArrayLike | None = None,
        as_int64: bool = False,
        stale_roots: StaleRoots = "error",
    ) -> dict[str, Cutout]:
        """Return the cutouts of `at`, by the name of their layer."""
        rule = self.rule(recorded, root_ids, stop_layer, as_int64)
        check_listed_roots(rule, self.url, recorded, stale_roots)
        cutouts: dict[str, Cutout] = {}
        for name in ("image", "segmentation"):
            if name not in self.facts.layers:
                continue
            layer, labels = self.layer(name), rule if name == "segmentation" else None
            whole_number("level", level, 0, len(layer.mips) - 1)
            if bounds is None:
                cutouts[name] = whole_layer(layer, level, labels=labels)
                continue
            nm = self.facts.resolution_nm if resolution is None else triple("resolution", resolution, positive=True)
            x, y, z = nm
            request = CutoutRequest(bounds=bounds, default_mip=level, resolution=(x, y, z), scale_to_bounds=False)
            cutouts[name] = self._inside(resolve(request, layer, labels=labels))
        return cutouts

    @property
    def supervoxels(self) -> IdTable:
        """The supervoxels of the volume: graph chunks, sizes, boxes."""
        return id_table(f"{self.url}/{SUPERVOXELS}")

    def _inside(self, cutout: Cutout) -> Cutout:
        if cutout.share_outside == 1:
            raise ValueError(
                f"The bounds lie outside of the store {redacted(self.url)!r}: {cutout.where}. Check the resolution in "
                "which they are given."
            )
        return cutout

    def _card(self) -> Card:
        facts, grid = self.facts, self.facts.grid
        recorded = recorded_in(self.url)
        rows = [
            ("at", self.url),
            ("graph", f"{facts.graph.table} at {facts.graph.server}"),
            ("voxels", f"{' x '.join(f'{n:,}' for n in grid.shape)} of "
             f"{' x '.join(f'{nm:g}' for nm in grid.resolution_nm)} nm, from {tuple(grid.start)}"),
            ("layers", ", ".join(facts.layers)),
            ("supervoxels", f"{self.supervoxels.rows:,}, of {describe_moment(facts.supervoxels_at)}"),
            ("versions", f"{len(recorded):,}" + (
                f": {', '.join(one.name for one in recorded[-LISTED:])}" if recorded else "")),
        ]  # fmt: skip
        cells = [
            [one.name, describe_moment(one.timestamp), f"{int(one.about.facts['roots']):,}"] for one in recorded
        ]  # fmt: skip
        return Card("VersionStore", rows, [CardTable("versions", ["name", "moment", "roots"], cells)])


def open_versions(url: str | os.PathLike[str]) -> VersionStore:
    """Open a version store: versions of a segmentation as lazy arrays and tables, without a server.

    Parameters
    ----------
    url : str or path
        The store, as ``imagery-dask versions create`` makes it: a local folder, or a URL such as
        ``s3://bucket/versions``.

    Returns
    -------
    VersionStore
        ``store.versions`` lists the versions, ``store.at(version=N)`` returns one as a lazy `xarray.Dataset`.

    Raises
    ------
    FileNotFoundError
        If there is no version store.
    ValueError
        If its facts are damaged, or of a later format.
    ImportError
        If pyarrow is not installed: ``pip install 'imagery_dask[versions]'``.
    """
    return VersionStore(expanded_path(url) if "://" not in os.fspath(url) else url)


def _layers_of(columns: Sequence[str]) -> tuple[int, ...]:
    """Return the layers that a table has besides root ids."""
    return tuple(int(name.removeprefix("layer_")) for name in columns if name.startswith("layer_"))
