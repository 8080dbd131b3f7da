"""A demo of a dynamic segmentation: a local CAVE server, and exports of a region before and after edits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from imagery_dask.client import ImageryClient
from imagery_dask.export.zarr.to_zarr import to_zarr
from imagery_dask.geometry.vec import Vec3
from imagery_dask.render.captions import Panel, side_by_side
from imagery_dask.render.clashes import colors_apart
from imagery_dask.render.overlays import overlay
from imagery_dask.run import RunReport
from imagery_dask.testing.cave import CaveServer, World, make_world
from imagery_dask.validate import expanded_path

__all__ = ["CaveDemoResult", "run_cave_demo"]

SHAPE = (512, 512, 32)
FAINT, STRONG = 0.12, 0.6
# Objects that a legend names.
LISTED = 6


@dataclass(frozen=True, slots=True)
class CaveDemoResult:
    """Results of the demo of a dynamic segmentation.

    Parameters
    ----------
    moments : tuple of 2 str
        The timestamps of the exports, ISO 8601.
    stores : tuple of 2 pathlib.Path
        OME-Zarr stores, one for each timestamp.
    picture : pathlib.Path
        One slice at both timestamps side by side, with objects changed by edits in strong colors and a legend.
    changed : int
        Number of objects at the first timestamp that edits replaced before the second.
    reports : tuple of 2 RunReport
        Reports of the exports.
    """

    moments: tuple[str, str]
    stores: tuple[Path, Path]
    picture: Path
    changed: int
    reports: tuple[RunReport, RunReport]


def run_cave_demo(out: Path, say: Callable[[str], None], cluster: str | None = "local") -> CaveDemoResult:
    """Serve a small dynamic segmentation, and export and draw it before and after its edits.

    Parameters
    ----------
    out : pathlib.Path
        Folder to write to.
    say : callable
        Called with a message before each step.
    cluster : str or None
        Where to run the exports, see `imagery_dask.cluster.connect`.
    """
    out = Path(expanded_path(out)).resolve()
    say(f"Making a dynamic segmentation in {out / 'cave'}, with a history of merges and splits ...")
    world = make_world(out / "cave", SHAPE)
    times = (world.times["created"], max(world.times.values()))
    with CaveServer(world) as server:
        say(f"Serving it at {server.url} with the protocol of CAVE ...")
        client = ImageryClient(client=server.client())
        stores, reports, labels, moments = [], [], [], []
        for name, time in zip(("before", "after"), times, strict=True):
            data = client.dataset(_bounds(world), timestamp=time)
            moments.append(data["segmentation"].attrs["timestamp"])
            say(f"Exporting {name} the edits, as of {moments[-1]} ...")
            stores.append(out / f"cave-{name}.zarr")
            reports.append(to_zarr(data, stores[-1], chunks=(128, 128, 32), overwrite=True, cluster=cluster))
            labels.append(data["segmentation"].to_numpy())
        image = data["image"].to_numpy()
    picture = out / "before-and-after.png"
    replaced = np.setdiff1d(np.unique(labels[0]), np.unique(labels[1]))
    resolution_nm = data["image"].attrs["resolution_nm"]
    imageio.imwrite(picture, _side_by_side(image, (labels[0], labels[1]), (moments[0], moments[1]), resolution_nm[0]))
    return CaveDemoResult(
        (moments[0], moments[1]), (stores[0], stores[1]), picture, len(replaced), (reports[0], reports[1])
    )  # fmt: skip


def _bounds(world: World) -> list[Vec3[int]]:
    """Return the corners of the world in voxels of its imagery."""
    start = Vec3.of(world.resolution) // world.image_resolution * world.voxel_offset
    return [start, start + SHAPE]


def _side_by_side(
    image: NDArray[np.uint8],
    labels: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    moments: tuple[str, str],
    nm_per_pixel: float,
) -> NDArray[np.uint8]:
    """Draw the slice with most voxels changed by edits, before and after, with the objects that changed."""
    changed = labels[0] != labels[1]
    z = int(changed.sum(axis=(0, 1)).argmax())
    changed, planes = changed[:, :, z], [ids[:, :, z] for ids in labels]
    colors = colors_apart(planes)
    panels = []
    for when, moment, ids in zip(("Before", "After"), moments, planes, strict=True):
        page = overlay(image[:, :, z], ids, np.where(changed, STRONG, FAINT), colors)
        roots, counts = np.unique(ids[changed & (ids != 0)], return_counts=True)
        largest = roots[np.argsort(-counts, kind="stable")].tolist()
        legend = [(colors[root], f"root id {root}") for root in largest[:LISTED]]
        panels.append(Panel(page, f"{when} the edits: {moment[:19].replace('T', ' ')} UTC", legend))
    note = "Strong: objects that edits changed, the largest listed. Faint: all others."
    return side_by_side(panels, note, nm_per_pixel)
