"""Read stores with plain zarr, without this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray


def stored(path: Path, group: str = "") -> Any:
    """Open the array of level 0, axes (c,) z, y, x."""
    return zarr.open_array(path, path=f"{group}/0".lstrip("/"), mode="r")


def written(path: Path, group: str = "") -> NDArray[Any]:
    """Read the whole array of level 0 as x, y, z(, c)."""
    voxels: NDArray[Any] = stored(path, group)[...].T
    return voxels


def labels(path: Path) -> NDArray[Any]:
    """Read the whole segmentation of a dataset, beside an image or alone, as x, y, z."""
    return written(path, "labels/segmentation" if (path / "labels").exists() else "")


def placement(path: Path, group: str = "") -> tuple[list[float], list[float]]:
    """Return scale and translation of level 0, in x, y, z, from the OME metadata."""
    attributes = zarr.open_group(path, path=group, mode="r").attrs["ome"]
    (dataset,) = attributes["multiscales"][0]["datasets"]  # type: ignore[index,call-overload]
    scale, translation = dataset["coordinateTransformations"]
    assert (scale["type"], translation["type"]) == ("scale", "translation")
    return scale["scale"][::-1], translation["translation"][::-1]


def files_of(root: Path) -> dict[str, bytes]:
    """Return the content of every file of a store, without the dates in its attributes."""
    dates = re.compile(rb'"(created|finished)": "[^"]*"')
    return {str(f.relative_to(root)): dates.sub(b"", f.read_bytes()) for f in root.rglob("*") if f.is_file()}
