"""A demo of an export, from a precomputed volume on disk to an OME-Zarr store and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from imagery_dask.client import ImageryClient
from imagery_dask.export.zarr.to_zarr import to_zarr
from imagery_dask.model.arguments import bounds_from_center
from imagery_dask.render.overlays import overlay
from imagery_dask.run import RunReport
from imagery_dask.testing.volume import DemoVolumes, write_demo_volumes
from imagery_dask.validate import expanded_path

__all__ = ["DemoResult", "run_demo"]

REGION = (512, 512, 48)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Results of the demo.

    Parameters
    ----------
    volumes : DemoVolumes
        The precomputed volumes.
    bounds : list of list of int
        The region that was exported, in image voxels.
    zarr : pathlib.Path
        OME-Zarr store.
    slices : list of pathlib.Path
        Pictures of imagery.
    overlay : pathlib.Path
        Picture of imagery under colored segmentation.
    report : RunReport
        Report of the export.
    """

    volumes: DemoVolumes
    bounds: list[list[int]]
    zarr: Path
    slices: list[Path]
    overlay: Path
    report: RunReport


def run_demo(out: Path, say: Callable[[str], None], cluster: str | None = "local") -> DemoResult:
    """Make the demo volume, export a region of it, and write pictures.

    Parameters
    ----------
    out : pathlib.Path
        Folder to write to; created if needed. Demo files in it are replaced.
    say : callable
        Called with a message before each step.
    cluster : str or None
        Where to run the export, see `imagery_dask.cluster.connect`.

    Returns
    -------
    DemoResult
        Paths of the volumes, the store and the pictures, and the report.
    """
    out = Path(expanded_path(out)).resolve()
    say(f"Making a small EM-like volume in {out / 'volume'} ...")
    volumes = write_demo_volumes(out / "volume")
    client = ImageryClient(image_source=volumes.image_source, segmentation_source=volumes.segmentation_source)
    bounds = bounds_from_center(volumes.center, *REGION).tolist()
    data = client.dataset(bounds)
    say(f"Exporting {' x '.join(map(str, REGION))} voxels to OME-Zarr on a cluster of this machine's cores ...")
    store = out / "demo.zarr"
    report = to_zarr(data, store, chunks=(128, 128, 32), overwrite=True, cluster=cluster)
    say("Writing pictures ...")
    folder = out / "slices"
    folder.mkdir(exist_ok=True)
    client.save_imagery(str(folder / "demo"), bounds)
    middle = REGION[2] // 2
    picture = out / "overlay.png"
    image = np.asarray(data["image"][:, :, middle])
    imageio.imwrite(picture, overlay(image, np.asarray(data["segmentation"][:, :, middle])))
    slices = [folder / f"demo_slice_{index}_imagery.png" for index in range(REGION[2])]
    return DemoResult(volumes, bounds, store, slices, picture, report)
