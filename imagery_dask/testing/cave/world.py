"""A small dynamic segmentation on disk: volumes, a chunked graph over them, and a history of edits."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tinybrain
from cloudvolume import CloudVolume

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.geometry.vec import Vec3
from imagery_dask.testing.cave.graph import ChunkedGraph, GraphError
from imagery_dask.testing.cave.graph_layout import GraphLayout, Ids, Triple
from imagery_dask.testing.cave.history import to_ms
from imagery_dask.testing.cave.split_store import SplitForm, SplitStore
from imagery_dask.testing.cave.supervoxels import cut_supervoxels
from imagery_dask.testing.volume import synthesize

__all__ = ["Version", "World", "make_world", "world_from_arrays"]

CREATED = 1_704_067_200.0  # 2024-01-01 00:00 UTC
_DAY = 86_400.0
TABLE = "demo_v1"


class Version(NamedTuple):
    """A materialization version: frozen at ``timestamp``, kept until ``expires`` (unix seconds).

    A version that is no longer ``valid`` is listed only if expired versions are requested.
    """

    timestamp: float
    expires: float
    valid: bool = True


@dataclass(slots=True)
class World:
    """A dynamic segmentation with the metadata that a CAVE server serves.

    Attributes
    ----------
    graph : ChunkedGraph
        The objects of the supervoxels over time. It may be edited while it is served.
    image_source, watershed_source : str
        Precomputed volumes of the form ``precomputed://file:///...``.
    watershed_info : dict
        The watershed's info file.
    mips : list of numpy.ndarray
        The supervoxels at each mip, as the latest split left them: uint64 (x, y, z), Fortran-ordered. Before any split,
        they are those of the watershed.
    voxel_offset, resolution : tuple of int
        Offset of the watershed at mip 0 in voxels, and its resolution in nm.
    image_resolution : tuple of int
        Resolution of the image at mip 0, in nm; positions in the datastack are in this resolution.
    times : dict
        Unix seconds by name: ``created``, and a name for each edit.
    versions : dict
        The materialization versions.
    datastack, aligned_volume, table : str
        Names of the dataset, its image and its graph.
    splits : SplitStore or None
        The supervoxels that were split; None if none can be.
    """

    graph: ChunkedGraph
    image_source: str
    watershed_source: str
    mips: list[Ids] = field(repr=False)
    watershed_info: JsonObject = field(repr=False)
    voxel_offset: Triple
    resolution: Triple
    image_resolution: Triple
    times: dict[str, float]
    versions: dict[int, Version]
    datastack: str = "demo_datastack"
    aligned_volume: str = "demo_volume"
    table: str = TABLE
    splits: SplitStore | None = None
    _states: list[tuple[int, list[Ids]]] = field(default_factory=list, repr=False)  # until when, in ns
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def supervoxels(self) -> Ids:
        """The supervoxels at mip 0: uint64 (x, y, z), the first voxel of which is at `voxel_offset`."""
        return self.mips[0]

    @property
    def split_info(self) -> JsonObject:
        """What the info of the graph says of split supervoxels."""
        return {} if self.splits is None else self.splits.info

    def supervoxels_at(self, timestamp: float, mip: int = 0) -> Ids:
        """Return the supervoxels of a mip as the splits that were committed up to a time (unix seconds) left them."""
        ns = round(timestamp * 1e6) * 1000
        return next((mips for until, mips in self._states if ns < until), self.mips)[mip]

    def split_supervoxel(
        self,
        supervoxel: int,
        seeds: npt.ArrayLike,
        timestamp: float | None = None,
        together: npt.ArrayLike = (),
    ) -> Ids:
        """Split a supervoxel, and its object: the first piece becomes an object of its own.

        The voxels are committed to the store after the time of the edit, as in the service.

        Parameters
        ----------
        supervoxel : int
            A current supervoxel.
        seeds : array_like
            Absolute voxels of mip 0, shape (n, 3), n >= 2: each voxel goes to the piece of the nearest.
        timestamp : float, optional
            Time of the edit, as in `ChunkedGraph.split`.
        together : array_like
            Other supervoxels of the object that go with the first piece.

        Returns
        -------
        numpy.ndarray
            uint64 (n,): the pieces, in the order of the seeds.

        Raises
        ------
        GraphError
            If the world has no store for splits, or the supervoxel cannot be split at the seeds.
        """
        if self.splits is None:
            raise GraphError(
                "supervoxels of this graph cannot be split: it has no OCDBT store (make_world(splits=...))"
            )
        with self._lock:
            moment = timestamp if timestamp is not None else max(to_ms(None), to_ms(self.graph.edited) + 1) / 1000
            at = np.argwhere(self.mips[0] == np.uint64(supervoxel))
            near = np.asarray(seeds, float).reshape(-1, 3) - self.voxel_offset
            piece = np.argmin(((at[:, None] - near) ** 2).sum(axis=2), axis=1)
            if len(np.unique(piece)) < max(2, len(near)):
                raise GraphError(f"{supervoxel} has no voxel next to one of the {len(near)} seeds")
            root = int(self.graph.roots([supervoxel])[0])
            with_first = np.asarray(together, np.uint64).tolist()
            if not set(with_first) <= set(self.graph.leaves(root).tolist()):
                raise GraphError(f"supervoxels that go with a piece are not of the object {root}: {with_first}")
            if to_ms(moment) <= to_ms(self.graph.edited):
                raise GraphError(f"edits must be in order: {moment} is not after the last edit, at {self.graph.edited}")
            new = self.graph.split_supervoxel(supervoxel, len(near))
            fine = self.mips[0].copy(order="F")
            fine[tuple(at.T)] = new[piece]
            mips = _with_coarser(fine, len(self.mips))
            boxes = [(at.min(axis=0) // step, at.max(axis=0) // step + 1) for step in _steps(len(mips))]
            committed = self.splits.write(mips, boxes)
            self.graph.split(root, [int(new[0]), *with_first], moment)
            self._states.append((committed, self.mips))
            self.mips = mips
            return new

    def roots_volume(self, timestamp: float | None = None, mip: int = 0, stop_layer: int | None = None) -> Ids:
        """Look up the root of every voxel, without any server.

        Parameters
        ----------
        timestamp, stop_layer
            As in `ChunkedGraph.roots`.
        mip : int
            A mip of the watershed.

        Returns
        -------
        numpy.ndarray
            uint64 (x, y, z), Fortran-ordered; the first voxel is at the watershed's voxel offset.
        """
        supervoxels, voxels = np.unique(self.mips[mip], return_inverse=True)
        roots = self.graph.roots(supervoxels, timestamp, stop_layer)
        return np.asfortranarray(roots[voxels.reshape(self.mips[mip].shape)])


def make_world(folder: str | Path, shape: Triple = (256, 256, 32), seed: int = 0, **options: Any) -> World:
    """Make a world of synthetic tissue, in about a second.

    Parameters
    ----------
    folder : path
        Receives the volumes.
    shape : tuple of int
        Shape of the image, as in `imagery_dask.testing.volume.synthesize`; the segmentation has half of it in x and y.
    seed : int
        The same shape, seed and options give the same world, ids included.
    **options
        As in `world_from_arrays`.

    Returns
    -------
    World
        A world with a history of four edits and three materialization versions.
    """
    image, objects = synthesize(shape, seed)
    return world_from_arrays(folder, objects, image, seed=seed, **options)


def world_from_arrays(
    folder: str | Path,
    objects: npt.NDArray[np.integer],
    image: Array | None = None,
    *,
    chunk_size: Triple = (32, 32, 16),
    storage_chunk: Triple = (32, 32, 16),
    voxel_offset: Triple = (6144, 4096, 1024),
    resolution: Triple = (16, 16, 40),
    n_mips: int = 3,
    pieces: int = 2,
    seed: int = 0,
    n_layers: int | None = None,
    created: float = CREATED,
    edited: bool = True,
    splits: SplitForm | None = None,
    populated: bool = False,
) -> World:
    """Make a world from given objects.

    Parameters
    ----------
    folder : path
        Receives the folders ``image`` and ``watershed``.
    objects : numpy.ndarray
        Labels (x, y, z) of the initial objects; 0 is background.
    image : numpy.ndarray, optional
        Its shape is the objects' shape times an integer along each axis; by default gray values made from the objects.
    chunk_size, storage_chunk : tuple of int
        Chunk size of the graph, and of the volumes' files, in voxels.
    voxel_offset, resolution : tuple of int
        Offset of the objects in voxels, and their resolution in nm; those of the image are derived from them.
    n_mips : int
        Mips of the watershed and the image, each half as fine in x and y as the one before.
    pieces : int
        Largest number of supervoxels of an object in a graph chunk.
    seed : int
        Seed of the division into supervoxels.
    n_layers : int, optional
        Layers of the graph; by default the fewest possible.
    created : float
        Time of the graph's creation, in unix seconds.
    edited : bool
        True to add a history of edits.
    splits : {"spec", "path"}, optional
        Let supervoxels be split (`World.split_supervoxel`), and have the info name the store in this form; needs
        tensorstore.
    populated : bool
        True for a store that has the whole watershed, not only what was split.

    Returns
    -------
    World
        A world for `CaveServer`.

    Raises
    ------
    ValueError
        If the image's shape does not fit the objects', or there are fewer than 4 objects to edit.
    """
    layout = GraphLayout.for_volume(objects.shape, chunk_size, voxel_offset, n_layers)
    cut = cut_supervoxels(objects, layout, pieces, seed)
    graph = ChunkedGraph(layout, cut.ids, cut.objects, created)
    if image is None:
        image = (np.asarray(objects) % 251).astype(np.uint8)
    zoom = _zoom(image.shape, objects.shape)
    image_resolution, image_offset = Vec3.of(resolution) // zoom, Vec3.of(voxel_offset) * zoom
    mips = _with_coarser(cut.volume, n_mips)
    image_mips = [image, *tinybrain.downsample_with_averaging(image, (2, 2, 1), num_mips=n_mips - 1)]
    image_source = _write(Path(folder) / "image", image_mips, "raw", image_resolution, image_offset, storage_chunk)
    watershed = _write(
        Path(folder) / "watershed", mips, "compressed_segmentation", resolution, voxel_offset, storage_chunk
    )
    return World(
        splits=None if splits is None else SplitStore(Path(folder) / "watershed", TABLE, mips, splits, populated),
        graph=graph,
        image_source=image_source,
        watershed_source=watershed,
        watershed_info=CloudVolume(watershed, progress=False).info,
        mips=mips,
        voxel_offset=voxel_offset,
        resolution=resolution,
        image_resolution=image_resolution,
        times=_edit(graph, created) if edited else {"created": created},
        versions=_versions(created),
    )


def _with_coarser(fine: Ids, n_mips: int) -> list[Ids]:
    """Return supervoxels at several mips."""
    return [fine, *tinybrain.downsample_segmentation(fine, (2, 2, 1), num_mips=n_mips - 1)]


def _steps(n_mips: int) -> list[npt.NDArray[np.int64]]:
    """Return the voxels of mip 0 in a voxel of each mip, along x, y, z."""
    return [np.array((2**mip, 2**mip, 1)) for mip in range(n_mips)]


def _zoom(image: tuple[int, ...], objects: tuple[int, ...]) -> Vec3[int]:
    """Return the number of image voxels per voxel of the objects, along each axis."""
    zoom = Vec3.of(image) // Vec3.of(objects)
    if zoom * Vec3.of(objects) != image:
        raise ValueError(f"an image of shape {image} does not fit objects of shape {objects}")
    return zoom


def _edit(graph: ChunkedGraph, created: float) -> dict[str, float]:
    """Merge and split the largest objects on four days, at times that are not all whole seconds."""
    ranked = _ranked_roots(graph, created)
    if len(ranked) < 4:
        raise ValueError(f"a history of edits needs 4 objects or more, not {len(ranked)}: pass edited=False")
    times = {
        "created": created,
        "merge_1": created + _DAY + 0.25,
        "split_1": created + 2 * _DAY,
        "merge_2": created + 3 * _DAY + 0.999,
        "split_2": created + 4 * _DAY + 0.5,
    }
    merged = graph.merge(ranked[0], ranked[1], times["merge_1"])
    supervoxels = graph.leaves(ranked[2])  # in the order of chunks, x slowest, so that the first half is one end
    _, end = graph.split(ranked[2], supervoxels[: len(supervoxels) // 2], times["split_1"])
    graph.merge(end, ranked[3], times["merge_2"])
    graph.split(merged, graph.leaves(merged)[::2], times["split_2"])  # also splits nodes within chunks
    return times


def _ranked_roots(graph: ChunkedGraph, timestamp: float) -> list[int]:
    """Sort the roots by their number of supervoxels, largest first."""
    roots, sizes = np.unique(graph.roots(graph.supervoxels, timestamp), return_counts=True)
    return [int(root) for root in roots[np.argsort(-sizes, kind="stable")]]


def _versions(created: float) -> dict[int, Version]:
    kept = created + 3650 * _DAY
    return {
        1: Version(created + 1.5 * _DAY + 0.25, created + 30 * _DAY, valid=False),
        2: Version(created + 2.5 * _DAY + 0.123456, kept),
        3: Version(created + 4.5 * _DAY, kept),
    }


def _write(
    folder: Path, mips: list[Array], encoding: str, resolution: Triple, offset: Triple, chunk_size: Triple
) -> str:
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="image" if encoding == "raw" else "segmentation",
        data_type=str(mips[0].dtype),
        encoding=encoding,
        resolution=resolution,
        voxel_offset=offset,
        volume_size=mips[0].shape[:3],
        chunk_size=chunk_size,
        max_mip=len(mips) - 1,
    )
    source = f"precomputed://file://{folder.resolve()}"
    CloudVolume(source, info=info, progress=False).commit_info()
    for mip, voxels in enumerate(mips):
        CloudVolume(source, mip=mip, progress=False)[:] = voxels
    return source
