"""Open a version as layers of napari, without a window: ``python open_in_napari.py STORE VERSION FOLDER``.

Runs in an environment with napari. What napari holds, shows and says below the cursor is written to the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import zarr
from napari.components import ViewerModel

from imagery_dask import open_versions


def main(store: str, version: str, folder: Path) -> None:
    view = open_versions(store).zarr_store(version)
    group = zarr.open_group(view, mode="r")
    labels = group["labels/segmentation"] if "labels" in group else group
    multiscale = labels.attrs["ome"]["multiscales"][0]
    paths = [dataset["path"] for dataset in multiscale["datasets"]]
    levels = [labels[path] for path in paths]
    scale = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
    viewer = ViewerModel()
    pyramid = viewer.add_labels(levels, multiscale=True, scale=scale, name="pyramid")
    layer = viewer.add_labels(levels[0], scale=scale, name="version")
    if "labels" in group:
        viewer.add_image(group["0"], scale=scale, name="image")
        np.save(folder / "image.npy", np.asarray(viewer.layers["image"].data))
    for number, level in enumerate(pyramid.data):
        np.save(folder / f"level-{number}.npy", np.asarray(level))
    shown, named = [], []
    random = np.random.default_rng(5)
    for z in range(0, layer.data.shape[0], 5):
        viewer.dims.set_point(0, z * scale[0])
        shown.append(np.asarray(layer._slice.image.raw))
        at = np.array([z, *(random.integers(size) for size in layer.data.shape[1:])])
        named.append([*at, layer.get_value(at * scale, world=True)])
    np.save(folder / "shown.npy", np.stack(shown))
    np.save(folder / "named.npy", np.array(named, np.uint64))


main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
