"""Choice of patches of a client's layers: at random, on a grid, around objects and around points."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imagery_dask.annotations import JsonObject
from imagery_dask.arrays.points import voxels_of
from imagery_dask.client import ImageryClient
from imagery_dask.client.cave_queries import check_root_ids
from imagery_dask.geometry.grid import VoxelGrid, edge_at_or_after, voxel_bounds
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.arguments import Triple, corners
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.labels import LabelRequest, RootIds, label_rule
from imagery_dask.model.moments import Moment
from imagery_dask.sampling.boxes import grid_starts, named_regions, random_starts, split_boxes
from imagery_dask.sampling.foreground import ForegroundTest, kept
from imagery_dask.sampling.object_voxels import VoxelsOfObjects, centres_in, mip_to_search
from imagery_dask.sampling.patches import Patches
from imagery_dask.sampling.tables import points_of
from imagery_dask.serialization import to_json
from imagery_dask.validate import axis, whole_number, whole_triple

__all__ = ["Sampler"]

# Candidates that are looked at for each patch that is wanted, at most.
TRIES = 50
Place = tuple[int, Vec3[int]]
_logger = logging.getLogger("imagery_dask")


class Sampler:
    """Chooses patches of fixed shape of a client's imagery and segmentation, on the grid of the finer of them.

    Parameters
    ----------
    client : ImageryClient
        What is read; a client with one layer gives patches of that layer.
    shape : sequence of 3 int
        Voxels of a patch along x, y, z.
    regions : array-like (2, 3), sequence or mapping of these, optional
        Bounds of one or several regions (named, in a mapping), in voxels of `resolution`: lower corner inclusive, upper
        corner exclusive. By default all voxels that the layers have in common.
    split : mapping of str, optional
        Disjoint parts of the regions by name; no patch crosses their borders. Either shares of each region, which is
        cut into slabs (``{"train": 0.8, "val": 0.1, "test": 0.1}``), or bounds of one or several boxes each.
    split_axis : {"x", "y", "z", 0, 1, 2}, optional
        Axis along which shares are cut. By default that along which most patches fit into a region.
    image_mip, segmentation_mip : int, optional
        Levels to read. By default the client's.
    root_ids : sequence of int, None or 'all'
        Objects to keep, as in `ImageryClient.dataset`.
    resolution : array-like of 3 numbers, optional
        Resolution of bounds and points, nm per voxel (x, y, z). By default the client's.
    timestamp : datetime, str or number, optional
        State of a dynamic segmentation; resolved now, so that all patches show the same state.

    Raises
    ------
    ValueError, TypeError
        An argument is invalid, a patch does not fit into a region, a region is not wholly inside of the volume, or
        splits overlap.

    Examples
    --------
    >>> from imagery_dask.sampling import Sampler
    >>> sampler = Sampler(client, (64, 64, 16), split={"train": 0.8, "test": 0.2})  # doctest: +SKIP
    >>> patches = sampler.random({"train": 1000, "test": 100}, seed=1, foreground=0.5)  # doctest: +SKIP
    >>> patches.save("patches.json")  # doctest: +SKIP
    """

    def __init__(
        self,
        client: ImageryClient,
        shape: Sequence[int],
        regions: Any = None,
        *,
        split: Mapping[str, Any] | None = None,
        split_axis: int | str | None = None,
        image_mip: int | None = None,
        segmentation_mip: int | None = None,
        root_ids: RootIds = "all",
        resolution: ArrayLike | None = None,
        timestamp: Moment = None,
    ) -> None:
        if not isinstance(client, ImageryClient):
            raise TypeError(f"client must be an ImageryClient; got {client!r}.")
        settings = replace(client._settings, outside="fill")  # said here: regions are inside of the volume
        self._settings = settings
        self.shape = Vec3.of(whole_triple("shape", shape))
        self._resolution = settings.resolution_or(resolution)
        along = None if split_axis is None else axis("split_axis", split_axis)
        named = {"all": None} if regions is None else named_regions(regions)
        name, first = next(iter(named.items()))
        mips = (image_mip, segmentation_mip)
        bounds, bounds_nm = (
            self._extent(*mips) if first is None else (_corners(f"regions[{name!r}]", first), self._resolution)
        )
        found = settings.present(
            bounds, mips, LabelRequest(root_ids, False, timestamp), order=0, resolution=bounds_nm,
            scale_to_bounds=False,
        )  # fmt: skip
        self._nm = next(iter(found.values())).target.resolution_nm
        volume = reduce(VoxelGrid.intersection, (_voxels_in(cutout, self._nm) for cutout in found.values()))
        grids = {
            name: volume if box is None else self._region(f"regions[{name!r}]", box, volume)
            for name, box in named.items()
        }
        self.boxes = split_boxes(grids, split, along, self.shape, self._grid)
        starts, stops = zip(*((box.grid.start, box.grid.stop) for box in self.boxes), strict=True)
        hull = VoxelGrid.between(np.min(starts, axis=0).tolist(), np.max(stops, axis=0).tolist(), self._nm)
        self.cutouts = {name: _over(cutout, hull) for name, cutout in found.items()}

    def __repr__(self) -> str:
        return (
            f"<Sampler of {self.shape} voxels of {self._nm} nm, {' and '.join(self.cutouts)}, {len(self.boxes)} boxes>"
        )

    def random(
        self,
        count: int | Mapping[str, int],
        *,
        seed: int = 0,
        foreground: float | tuple[float, float] | None = None,
        tries: int | None = None,
    ) -> Patches:
        """Choose patches at random; every position in the regions is equally likely.

        Parameters
        ----------
        count : int or mapping of str to int
            Number of patches, in all or by split.
        seed : int
            The same seed gives the same patches.
        foreground : float or pair of float, optional
            Least share of voxels that are not 0 in the segmentation (with `root_ids`, of these objects), or least and
            largest share, from 0 to 1. A patch is first judged at the coarsest mip at which it still has eight voxels
            along each axis, and refused there if its share is off by more than 0.1; the others are read at the mip of
            the patches.
        tries : int, optional
            Candidates that are looked at, at most (of each split, if counts are by split). By default 50 for each
            patch. If they do not suffice, there are fewer patches, and a warning says so.

        Raises
        ------
        ValueError
            An argument is invalid, or no candidate has the wanted share.
        """
        whole_number("seed", seed, 0)
        test = self._test(foreground)
        places: list[Place] = []
        tried = 0
        for index, (name, wanted) in enumerate(self._counts(count).items()):
            boxes = [number for number, box in enumerate(self.boxes) if name is None or box.split == name]
            draws = random_starts([self.boxes[n] for n in boxes], self.shape, np.random.default_rng([seed, index]))
            candidates = ((boxes[number], start) for number, start in draws)
            most = whole_number("tries", TRIES * wanted if tries is None else tries, 0) if test else wanted
            own, looked_at = self._choose(islice(candidates, most), test, wanted)
            tried += looked_at
            if len(own) < wanted:
                of = "" if name is None else f" of split {name!r}"
                if not own:
                    raise ValueError(f"None of {looked_at} patches{of} has foreground={foreground!r}; lower it.")
                _logger.warning(
                    "Only %d of %d patches%s were found among %d candidates with foreground=%r. Raise tries, or lower "
                    "foreground.", len(own), wanted, of, looked_at, foreground,
                )  # fmt: skip
            places += own
        chosen = {"by": "random", "seed": seed, "count": count, "foreground": foreground, "tries": tries}
        return self._patches(places, chosen, tried)

    def grid(
        self, stride: Sequence[int] | None = None, *, foreground: float | tuple[float, float] | None = None
    ) -> Patches:
        """Choose the patches of a regular grid that begins at the start of each region (and split).

        Parameters
        ----------
        stride : sequence of 3 int, optional
            Voxels from a patch to the next along x, y, z. By default the shape, so that patches do not overlap. Voxels
            at the ends that do not fill a patch are left out.
        foreground : float or pair of float, optional
            As in `random`.
        """
        step = self.shape if stride is None else Vec3.of(whole_triple("stride", stride))
        starts = ((n, start) for n, box in enumerate(self.boxes) for start in grid_starts(box, self.shape, step))
        places, tried = self._choose(starts, self._test(foreground), None)
        return self._patches(places, {"by": "grid", "stride": step, "foreground": foreground}, tried)

    def around_objects(
        self, root_ids: Sequence[int], count: int = 1, *, seed: int = 0, search_mip: int | None = None
    ) -> Patches:
        """Choose patches around random voxels of objects.

        The regions are read once, at a coarse mip; each voxel of an object is equally likely. Near the border of a
        region a patch is moved inward, so that the voxel is not its centre.

        Parameters
        ----------
        root_ids : sequence of int
            Objects.
        count : int
            Patches of each object; fewer for objects with fewer voxels at the mip that is searched.
        seed : int
            The same seed gives the same patches.
        search_mip : int, optional
            Mip of the segmentation to search. By default the finest at which the regions have at most 2**27 voxels, or
            the coarsest; thin objects may be missing there.

        Raises
        ------
        ValueError
            An object has no voxel in the regions at that mip, or the client has no segmentation.
        """
        whole_number("count", count)
        whole_number("seed", seed, 0)
        cutout, layer = self._segmentation("around_objects"), self._settings.segmentation_layer()
        ids = label_rule(root_ids, as_int64=False).keep
        if not ids:
            raise ValueError(f"root_ids must be the ids of objects; got {root_ids!r}.")
        if cutout.query is not None:
            ids = check_root_ids(cutout.query, ids, self._settings.dynamic.stale_roots)
        level = layer.mip(mip_to_search(cutout, layer, self.boxes) if search_mip is None else search_mip).level
        found = VoxelsOfObjects(ids, count, np.random.default_rng(seed))
        found.search(cutout, layer, level, self.boxes)
        starts, box_of, owners = [], [], []
        for index, root_id in enumerate(ids):
            voxels = found.voxels(index)
            if not len(voxels):
                raise ValueError(
                    f"Object {root_id} has no voxel in the regions at mip {level}. Leave it out, or search a finer mip "
                    "with search_mip=."
                )
            centres = centres_in(voxels[:, 1:], layer.mip(level).grid, cutout.target)
            lower = np.array([self.boxes[n].grid.start for n in voxels[:, 0]])
            upper = np.array([self.boxes[n].grid.stop for n in voxels[:, 0]]) - self.shape
            starts.append(np.clip(centres - np.asarray(self.shape) // 2, lower, upper))
            box_of.append(voxels[:, 0])
            owners.append(np.full(len(voxels), root_id, dtype=np.uint64))
        chosen = {"by": "objects", "seed": seed, "count": count, "search_mip": level}
        return self._made(np.concatenate(starts), np.concatenate(box_of), chosen, root_ids=np.concatenate(owners))

    def around_points(
        self,
        points: Any,
        *,
        position: str | Sequence[str] | None = None,
        resolution: ArrayLike | None = None,
    ) -> Patches:
        """Choose a patch around each point of a table.

        The voxel of the point is the centre of the patch (of an even size, the first voxel of the upper half). Points
        whose patch does not lie wholly in one region (and split) are left out and counted.

        Parameters
        ----------
        points : pandas.DataFrame or array-like, shape (n, 3)
            Points x, y, z. A data frame has columns ``x``, ``y``, ``z``, or ``pt_position``, or ``pt_position_x`` and
            so on, as CAVE's tables have. ``row`` of a patch is the row of its point, from 0.
        position : str or sequence of 3 str, optional
            Column, beginning of the names of three columns, or three columns, where they have other names.
        resolution : array-like of 3 numbers, optional
            Resolution of the points, nm per voxel. By default that of the sampler.

        Raises
        ------
        ValueError, TypeError
            `points` have no positions, or the patch of none lies in the regions.
        """
        nm = self._resolution if resolution is None else self._settings.resolution_or(resolution)
        voxels = voxels_of(points_of(points, position), nm, self._nm)
        starts = voxels - np.asarray(self.shape) // 2
        box_of = np.full(len(starts), -1, dtype=np.int64)
        for index in reversed(range(len(self.boxes))):  # the first of several
            box_of[self.boxes[index].holds(starts, self.shape)] = index
        rows = np.flatnonzero(box_of >= 0)
        if not len(rows):
            raise ValueError(
                f"None of {len(voxels)} patches around points lies in the regions; the points are voxels "
                f"{voxels.min(axis=0, initial=0).tolist()} to {voxels.max(axis=0, initial=0).tolist()} of {self._nm} "
                f"nm, and the first region is {self.boxes[0].grid.start} to {self.boxes[0].grid.stop}. Check the "
                "resolution in which points are given."
            )
        chosen = {"by": "points", "points": len(voxels)}
        return self._made(
            starts[rows], box_of[rows], chosen, rows=rows, tried=len(voxels), left_out=len(voxels) - len(rows)
        )

    # ------------------------------------------------------------------------------------------------------- regions

    def _extent(self, image_mip: int | None, segmentation_mip: int | None) -> tuple[ArrayLike, ArrayLike]:
        """Return the bounds of a layer, and their resolution."""
        settings = self._settings
        if settings.image is not None:
            grid = settings.image.mip(settings.image_mip if image_mip is None else image_mip).grid
        else:
            level = settings.segmentation_mip if segmentation_mip is None else segmentation_mip
            grid = settings.segmentation_layer().mip(level).grid
        return (grid.start, grid.stop), grid.resolution_nm

    def _grid(self, name: str, bounds: Any) -> VoxelGrid:
        """Return the patches' voxels in bounds."""
        return VoxelGrid.between(*voxel_bounds(*_corners(name, bounds), self._resolution, self._nm), self._nm)

    def _region(self, name: str, bounds: Any, volume: VoxelGrid) -> VoxelGrid:
        grid = self._grid(name, bounds)
        if not grid.size or not volume.contains(grid):
            raise ValueError(
                f"{name} is voxels {grid.start} to {grid.stop} of {self._nm} nm, and the volume has {volume.start} to "
                f"{volume.stop}: patches outside would be zeros. Give bounds inside of the volume, and check the "
                "resolution in which they are given."
            )
        return grid

    # -------------------------------------------------------------------------------------------------------- choosing

    def _segmentation(self, what: str) -> Cutout:
        if "segmentation" not in self.cutouts:
            raise ValueError(f"{what} needs a segmentation: make the client with segmentation_source.")
        return self.cutouts["segmentation"]

    def _test(self, foreground: object) -> ForegroundTest | None:
        if foreground is None:
            return None
        layer = self._settings.segmentation_layer()
        return ForegroundTest.of(foreground, self._segmentation("foreground"), layer, self.shape)

    def _counts(self, count: int | Mapping[str, int]) -> dict[str | None, int]:
        if not isinstance(count, Mapping):
            return {None: whole_number("count", count)}
        known = {box.split for box in self.boxes} - {""}
        if unknown := [name for name in count if name not in known]:
            raise ValueError(f"count names split {unknown[0]!r}; there are {sorted(known)!r}.")
        return {name: whole_number(f"count[{name!r}]", wanted) for name, wanted in count.items()}

    def _choose(
        self, candidates: Iterable[Place], test: ForegroundTest | None, wanted: int | None
    ) -> tuple[list[Place], int]:
        """Return the candidates that pass a test, until there are enough, and how many were looked at."""
        if test is None:
            places = list(candidates)
            return places, len(places)
        places, tried = [], 0
        for place, passes in self._tested(candidates, test):
            tried += 1
            places += [place] if passes else []
            if len(places) == wanted:
                break
        return places, tried

    def _tested(self, candidates: Iterable[Place], test: ForegroundTest) -> Iterator[tuple[Place, bool]]:
        return kept(candidates, lambda place: VoxelGrid(place[1], self.shape, self._nm), test)

    def _patches(self, places: Sequence[Place], chosen: JsonObject, tried: int) -> Patches:
        starts = np.array([start for _, start in places], dtype=np.int64).reshape(-1, 3)
        return self._made(starts, np.array([box for box, _ in places], dtype=np.int64), chosen, tried=tried)

    def _made(
        self, starts: NDArray[np.int64], box_of: NDArray[np.int64], chosen: JsonObject, **of_patches: Any
    ) -> Patches:
        return Patches(
            cutouts=self.cutouts, shape=self.shape, boxes=self.boxes, starts=starts, box_of=box_of,
            numbers=np.arange(len(starts)), chosen=to_json(chosen), **{"tried": len(starts), **of_patches},
        )  # fmt: skip


def _corners(name: str, bounds: Any) -> tuple[Triple, Triple]:
    """Return the corners of bounds; errors name the argument."""
    try:
        return corners(bounds)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _over(cutout: Cutout, grid: VoxelGrid) -> Cutout:
    """Return a cutout of other voxels; supervoxels that were fetched for the first ones would not suffice."""
    labels = cutout.labels if cutout.labels is None else replace(cutout.labels, leaves_within=None)
    return replace(cutout, target=grid, labels=labels)


def _voxels_in(cutout: Cutout, nm: Vec3[float]) -> VoxelGrid:
    """Return the voxels of a resolution whose centres lie in the layer of a cutout."""
    volume = cutout.mip.grid
    steps = VoxelGrid(volume.start, volume.shape, nm).steps_from(volume.resolution_nm)
    return VoxelGrid.between(volume.start.map(edge_at_or_after, steps), volume.stop.map(edge_at_or_after, steps), nm)
