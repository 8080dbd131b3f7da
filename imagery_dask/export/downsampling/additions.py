"""What is left to add to a volume: the export of the new levels, and the files that are to name them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import SourceError
from imagery_dask.export.core.base import Export
from imagery_dask.export.downsampling.metadata_files import MetadataFile
from imagery_dask.geometry.pyramid import Level, pyramid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.records.runs import records_of, runs_in
from imagery_dask.sources.volumes.addresses import ZarrAddress, is_zarr
from imagery_dask.storage.atomic_files import WRITABLE
from imagery_dask.storage.targets import FolderTarget
from imagery_dask.urls import location_of, redacted

__all__ = ["Additions", "Change", "NothingLeft", "folder_for", "new_levels", "writable_location"]

FOLDER = "downsampled"
# What a metadata file gets when the levels are written.
Change = tuple[MetadataFile, Callable[[JsonObject], None]]


@dataclass(frozen=True)
class NothingLeft:
    """A volume that has all levels already."""

    #: Says so.
    note: str


@dataclass(frozen=True)
class Additions:
    """Levels to add.

    Parameters
    ----------
    source : str
        Path of the volume.
    export : Export
        Writes the levels into a folder of the volume.
    changes : callable
        Returns the metadata files and their changes, in the order in which they are made, once the levels are written.
    """

    source: str
    export: Export
    changes: Callable[[], list[Change]]

    def publish(self) -> None:
        """Let the metadata of the volume name the new levels.

        Raises
        ------
        SourceError
            The metadata has changed meanwhile.
        """
        for file, add in self.changes():
            file.extend(add)


def writable_location(path: str) -> str:
    """Return the URL or folder of a volume to which levels can be added.

    Parameters
    ----------
    path : str
        As `normalize_path` returns it.

    Raises
    ------
    SourceError
        It cannot be written there.
    """
    location = ZarrAddress.parse(path).location if is_zarr(path) else location_of(path)
    scheme = location.partition("://")[0]
    if path.startswith("graphene://") or scheme not in WRITABLE:
        what = "the supervoxels of a graph" if path.startswith("graphene://") else f"a volume of {scheme}://"
        raise SourceError(
            f"Levels cannot be added to {redacted(path)!r}: {what} can only be read. Give its bucket (gs://, s3://) or "
            "its folder, or export it to one with levels (imagery-dask export ... --levels auto)."
        )
    return location.removeprefix("file://")


def folder_for(taken: Collection[str], target_at: Callable[[str], FolderTarget]) -> str:
    """Return the name of the folder for new levels: none that the volume has already, but that of a run to resume.

    Parameters
    ----------
    taken : collection of str
        Paths of the levels that the metadata of the volume names.
    target_at : callable
        Returns the target of an export into a folder of the volume.
    """
    roots = {path.split("/")[0] for path in taken}
    names = (FOLDER if number == 1 else f"{FOLDER}-{number}" for number in itertools.count(1))
    return next(name for name in names if name not in roots and not _is_foreign(target_at(name)))


def _is_foreign(target: FolderTarget) -> bool:
    """Return True if there is something that no run of this program has written."""
    files = records_of(target.url)
    if files is not None and runs_in(files):
        return False
    try:
        return target.occupied()
    except FileExistsError:
        return True


def new_levels(
    path: str, shape: Vec3[int], resolution_nm: Vec3[float], present: int, levels: int | Literal["auto"]
) -> tuple[Level, ...] | NothingLeft:
    """Return the geometry of the levels to add, of which the first follows the coarsest one that is there.

    Parameters
    ----------
    path : str
        Path of the volume.
    shape, resolution_nm
        Voxels of the coarsest level, and their size.
    present : int
        Number of levels that are there.
    levels : int or "auto"
        Number of levels in the end.
    """
    count = levels if levels == "auto" else max(1, levels - present + 1)
    made = pyramid(shape, resolution_nm, (0.0, 0.0, 0.0), count)[1:]
    if made:
        return made
    largest = "" if levels != "auto" else f", and the coarsest is {' x '.join(map(str, shape))} voxels"
    return NothingLeft(f"Nothing is left to do: {redacted(path)} has {present} levels{largest}.")
