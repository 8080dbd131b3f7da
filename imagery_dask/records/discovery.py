"""Where the records of an export are found, from what it was exported to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from imagery_dask.storage.files import Files, records_folder, split_prefix

__all__ = ["record_folders"]

ENDING = ".receipts"
# Of slices, records are named after what is shown, too: `SliceExport.records`.
OF_SLICES = ("imagery", "masks", "labels", "overlay")


def record_folders(out: str) -> Iterator[Files]:
    """List the records folders that belong to a place."""
    out = out.removeprefix("precomputed://").rstrip("/")
    if out.endswith(ENDING):
        yield Files.at(out)
        return
    yield records_folder(out)
    try:
        files, stem = split_prefix(out)
    except ValueError:  # the root of a bucket
        return
    for name in sorted(_names(files, stem)):
        yield Files.at(f"{files.url}/{name}")


def _names(files: Files, stem: str) -> set[str]:
    """Names of the records folders of slices."""
    pattern = re.compile(rf"\.{re.escape(stem)}_({'|'.join(OF_SLICES)})\.[0-9a-f]{{8}}{re.escape(ENDING)}")
    if files.folder is not None:
        if not files.folder.is_dir():
            return set()
        return {name for name in os.listdir(files.folder) if pattern.fullmatch(name)}
    # By prefixes that none of the pictures has: there may be a million of them.
    names = (name for what in OF_SLICES for name in files.names(f".{stem}_{what}."))
    return {first for name in names if pattern.fullmatch(first := name.partition("/")[0])}
