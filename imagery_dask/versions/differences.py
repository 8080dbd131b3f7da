"""What differs between two versions: as tables, as a lazy array, as a picture.

A voxel differs if its root id does. An edit gives every object that it touches a new root id, so that all of its voxels
differ, also those that only one piece was cut from. `Difference.table` says which roots became which, with sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imagery_dask.cards import Card, CardTable
from imagery_dask.geometry.grid import AXES, VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.humanize import human_share
from imagery_dask.model.moments import describe_moment
from imagery_dask.sources.graph.root_tables import IdTable
from imagery_dask.sources.graph.table_footers import SUPERVOXEL
from imagery_dask.validate import whole_number
from imagery_dask.versions.object_tables import CHUNK, STARTS, STOPS, VOXELS, Pieces, roots_among
from imagery_dask.versions.recorded import Recorded

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from PIL.Image import Image

    from imagery_dask.versions.opened_versions import VersionStore

__all__ = ["Difference", "difference"]

LISTED = 10
# Width of a panel in pixels, which has room for its caption; the part of a picture around what has changed.
LEAST_PIXELS, MOST_PIXELS, AROUND = 256, 768, 0.1
# How much of imagery is seen through what has changed, and its color.
ALPHA, RED = 0.5, (255, 60, 40)


@dataclass(frozen=True)
class Difference:
    """What differs between two versions of a store.

    Parameters
    ----------
    store : VersionStore
        The store.
    before, after : Recorded
        The versions.
    table : pandas.DataFrame
        Which roots became which: ``root_a`` and ``root_b``, which differ, ``supervoxels`` and ``voxels`` (of level 0)
        that have the one before and the other after. 0 is no root.
    chunks : pandas.DataFrame
        Graph chunks in which voxels differ, by id: ``supervoxels`` and ``voxels`` that do, and their box, ``x_start``
        to ``z_stop`` in voxels of level 0.
    """

    store: VersionStore = field(repr=False)
    before: Recorded
    after: Recorded
    table: pd.DataFrame
    chunks: pd.DataFrame

    @property
    def voxels(self) -> int:
        """Voxels of level 0 whose root id differs."""
        return int(self.table[VOXELS].sum())

    @property
    def supervoxels(self) -> int:
        """Supervoxels whose root id differs."""
        return int(self.table["supervoxels"].sum())

    def layer(self, bounds: ArrayLike | None = None, *, level: int = 0) -> xr.DataArray:
        """Return where voxels differ, as a lazy array.

        Parameters
        ----------
        bounds : array-like, shape (2, 3), optional
            As of `VersionStore.at`.
        level : int
            Level of the stored volume; 0 is the finest.

        Returns
        -------
        xarray.DataArray
            Bool, True where the root id differs, with dims and coordinates as of `VersionStore.at`.
        """
        a, b = (
            self.store.at(one.name, bounds=bounds, level=level)["segmentation"] for one in (self.before, self.after)
        )
        changed: xr.DataArray = (a != b).rename("changed")
        both = {"from": describe_moment(self.before.timestamp), "to": describe_moment(self.after.timestamp)}
        place = {name: a.attrs[name] for name in ("source", "mip", "resolution_nm", "voxel_offset")}
        return changed.assign_attrs({"long_name": "root id differs", **place, **both})

    def picture(self, z: int | None = None, bounds: ArrayLike | None = None, *, level: int | None = None) -> Image:
        """Draw a plane before and after, and what has changed.

        Objects have the same color before and after; imagery is drawn below them if the store has it.

        Parameters
        ----------
        z : int, optional
            Plane, in voxels of level 0. By default one with many voxels that differ.
        bounds : array-like, shape (2, 3), optional
            Box to draw, x, y, z in voxels of level 0; its z is not used. By default what differs around that plane.
        level : int, optional
            Level of the stored volume. By default the finest that fits into a panel.

        Returns
        -------
        PIL.Image.Image
            Three panels; ``save("changed.png")`` writes a file.

        Raises
        ------
        ValueError
            If nothing differs and no `bounds` are given, or the plane is outside of the store.
        """
        from PIL import Image as images

        z, box = self._plane(z, bounds)
        chosen = self._level(box) if level is None else whole_number("level", level)
        plane = [[*box[0], z], [*box[1], z + 1]]
        before, after = (self.store.at(one.name, bounds=plane, level=chosen) for one in (self.before, self.after))
        nm = before["segmentation"].attrs["resolution_nm"]
        note = f"z = {z:,}, x from {box[0][0]:,}, y from {box[0][1]:,}, in voxels of level 0; voxels of {nm[0]:g} nm"
        page = _drawn(before, after, self._caption(self.before), self._caption(self.after), note, nm[0])
        return images.fromarray(page)

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        share = self.voxels / max(1, self.store.facts.grid.size)
        rows = [
            ("from", self._caption(self.before)),
            ("to", self._caption(self.after)),
            ("voxels that differ", f"{self.voxels:,} ({human_share(share)} of the store)"),
            ("supervoxels", f"{self.supervoxels:,}"),
            ("graph chunks", f"{len(self.chunks):,}"),
            ("roots", f"{self.table['root_a'].nunique():,} became {self.table['root_b'].nunique():,}"),
        ]
        largest = self.table.sort_values(VOXELS, ascending=False).head(LISTED)
        names = [str(name) for name in largest.columns]
        cells = [[f"{value:,}" if name == VOXELS else str(value) for name, value in zip(names, row, strict=True)]
                 for row in largest.itertuples(index=False)]  # fmt: skip
        return Card("Difference", rows, [CardTable("the largest changes", names, cells)])

    def _caption(self, one: Recorded) -> str:
        moment = describe_moment(one.timestamp)
        return moment if one.version is None else f"version {one.version} ({moment})"

    def _plane(self, z: int | None, bounds: ArrayLike | None) -> tuple[int, list[list[int]]]:
        """Return the plane to draw, and its box along x and y."""
        grid, chunks = self.store.facts.grid, self.chunks
        if bounds is None and not len(chunks):
            raise ValueError(f"No voxel differs between {self.before.title} and {self.after.title}; give bounds.")
        if z is None:
            z = self._busiest(chunks) if len(chunks) else grid.start.z + grid.shape.z // 2
        if not grid.start.z <= z < grid.stop.z:
            raise ValueError(f"z={z} is outside of the store, which has {grid.start.z} to {grid.stop.z - 1}.")
        if bounds is not None:
            return z, np.asarray(bounds)[:, :2].tolist()
        here = chunks[(chunks["z_start"] <= z) & (chunks["z_stop"] > z)]
        here = here if len(here) else chunks
        box = []
        for axis, name in enumerate(AXES[:2]):
            low, high = int(here[f"{name}_start"].min()), int(here[f"{name}_stop"].max())
            more = round(AROUND * (high - low))
            box.append([max(low - more, grid.start[axis]), min(high + more, grid.stop[axis])])
        return z, [list(side) for side in zip(*box, strict=True)]

    def _busiest(self, chunks: pd.DataFrame) -> int:
        """Return a plane that many boxes of changes cross, which is known without reading voxels."""
        grid = self.store.facts.grid
        ends = np.zeros(grid.shape.z + 1)
        depth = (chunks["z_stop"] - chunks["z_start"]).to_numpy()
        share = chunks[VOXELS].to_numpy() / depth
        np.add.at(ends, chunks["z_start"].to_numpy() - grid.start.z, share)
        np.add.at(ends, chunks["z_stop"].to_numpy() - grid.start.z, -share)
        along = np.cumsum(ends)[:-1]
        most = np.flatnonzero(along >= along.max() * (1 - 1e-9))
        return int(grid.start.z + most[len(most) // 2])

    def _level(self, box: Sequence[Sequence[int]]) -> int:
        nm = self.store.facts.resolution_nm
        mips = self.store.layer().mips
        for mip in mips:
            pixels = [(box[1][axis] - box[0][axis]) * nm[axis] / mip.grid.resolution_nm[axis] for axis in range(2)]
            if max(pixels) <= MOST_PIXELS:
                return mip.level
        return mips[-1].level


def difference(store: VersionStore, supervoxels: IdTable, before: Recorded, after: Recorded) -> Difference:
    """Compare two versions, row group by row group.

    Parameters
    ----------
    store : VersionStore
        The store.
    supervoxels : IdTable
        Its supervoxels: those that are in its volume count.
    before, after : Recorded
        The versions.
    """
    pairs, chunks = Pieces(["root_a", "root_b"], boxes=False), Pieces([CHUNK])
    for rows in changes(supervoxels, before, after):
        pairs.add({name: rows[name] for name in ("root_a", "root_b", VOXELS)})
        chunks.add({name: rows[name] for name in (CHUNK, VOXELS, *STARTS, *STOPS)})
    return Difference(store, before, after, pairs.table(), chunks.table().set_index(CHUNK))


def changes(supervoxels: IdTable, before: Recorded, after: Recorded) -> Any:
    """Yield the supervoxels whose roots differ, as columns of both roots, chunks, voxels and boxes."""
    if before.url == after.url:
        return
    for number in range(supervoxels.groups):
        ids: NDArray[np.uint64] = supervoxels.group(number, [SUPERVOXEL])[SUPERVOXEL]
        a, b = (roots_among(one.table, ids) for one in (before, after))
        differ = a != b
        if differ.any():
            rows = supervoxels.group(number, [CHUNK, VOXELS, *STARTS, *STOPS])
            yield {name: values[differ] for name, values in ({"root_a": a, "root_b": b} | rows).items()}


def boxes_of(rows: dict[str, NDArray[Any]], nm: tuple[float, float, float]) -> list[VoxelGrid]:
    """Return the boxes of rows of a table."""
    starts, stops = (np.stack([rows[name] for name in names], axis=1).tolist() for names in (STARTS, STOPS))
    return [VoxelGrid.between(start, stop, Vec3.of(nm)) for start, stop in zip(starts, stops, strict=True)]


def _drawn(before: xr.Dataset, after: xr.Dataset, of_a: str, of_b: str, note: str, nm: float) -> NDArray[np.uint8]:
    import dask

    from imagery_dask.render.captions import Panel, side_by_side
    from imagery_dask.render.clashes import colors_apart
    from imagery_dask.render.overlays import overlay
    from imagery_dask.render.pages import Window, contrast

    asked = [before["segmentation"].data[:, :, 0], after["segmentation"].data[:, :, 0]]
    if "image" in before:
        asked.append(before["image"].data[:, :, 0])
    a, b, *images = (np.asarray(one) for one in dask.compute(*asked))
    grey = np.full(a.shape, 255, np.uint8)
    if images:
        image = images[0] if images[0].ndim == 2 else images[0][..., 0]
        window = contrast([image]) or Window(0, 255)
        grey = window.apply(image)
    colors, changed = colors_apart([a, b]), (a != b).astype(np.uint8)
    alpha = ALPHA if images else 1.0
    panels = [
        Panel(overlay(grey, a, alpha, colors), of_a),
        Panel(overlay(grey, b, alpha, colors), of_b),
        Panel(overlay(grey, changed, alpha, {1: RED}), f"changed: {human_share(float(changed.mean()))} of the plane"),
    ]
    zoom = -(-LEAST_PIXELS // a.shape[0])
    large = [replace(panel, page=panel.page.repeat(zoom, axis=0).repeat(zoom, axis=1)) for panel in panels]
    return side_by_side(large, note, nm / zoom)
