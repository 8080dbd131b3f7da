"""Formats by kind, and the export that a plan describes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import ExportPlan, data_of
from imagery_dask.export.core.run_states import plan_in
from imagery_dask.export.images.image_options import ImageOptions
from imagery_dask.export.precomputed.precomputed_options import PrecomputedOptions
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.records.runs import Run, record_folders, runs_in
from imagery_dask.storage.atomic_files import WRITABLE
from imagery_dask.storage.buckets import clear_errors
from imagery_dask.validate import expanded_path

__all__ = ["KINDS", "Kind", "export_of", "has_records", "read_plan", "run_at"]


Make = Callable[[Any, str | os.PathLike[str], Any], Export]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of exports; called with options as keywords, it makes an export."""

    #: Imports what makes the export from data, URL and options: only an export to zarr needs zarr.
    load: Callable[[], Make]
    #: Dataclass of the options.
    options: type[Any]

    def __call__(self, data: Any, url: str | os.PathLike[str], **options: object) -> Export:
        """Make the export of some data to a URL."""
        return self.make(data, url, self.options(**options))

    def make(self, data: Any, url: str | os.PathLike[str], options: Any) -> Export:
        """Make the export of some data to a URL, with options in their dataclass."""
        return self.load()(data, url, options)


def _zarr() -> Make:
    from imagery_dask.export.zarr.to_zarr import zarr_export

    return zarr_export


def _precomputed() -> Make:
    from imagery_dask.export.precomputed.to_precomputed import precomputed_export

    return precomputed_export


def _png() -> Make:
    from imagery_dask.export.images.to_png import slice_export

    return slice_export


TABLE = "table"
KINDS = {
    "zarr": Kind(_zarr, ZarrOptions),
    "precomputed": Kind(_precomputed, PrecomputedOptions),
    "png": Kind(_png, ImageOptions),
}


def export_of(plan: ExportPlan) -> Export:
    """Return the export that a plan describes; computed arrays are replaced by zeros."""
    if plan.kind == TABLE:
        raise ValueError(
            f"{plan.url} is a table of a version store: imagery-dask versions verify checks the store; versions "
            "create and add resume it."
        )
    kind = KINDS[plan.kind]
    export = kind.make(data_of(plan.volumes), plan.url, kind.options.from_json(plan.options))
    return export.as_begun([plan.fingerprint_fields])


def read_plan(path: str | os.PathLike[str]) -> ExportPlan:
    """Read a plan: from a file that ``imagery-dask plan`` wrote, or from the records of an export.

    Raises
    ------
    ValueError, FileNotFoundError
        The path is neither.
    """
    path = expanded_path(path) if "://" not in os.fspath(path) else path
    if os.path.isfile(path):
        try:
            content = json.loads(Path(path).read_bytes())
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise ValueError(f"{os.fspath(path)} is not JSON: {reason}.") from None
        try:
            return ExportPlan.from_json(content.get("plan", content) if isinstance(content, dict) else content)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error
    if os.fspath(path).endswith(".json"):
        raise FileNotFoundError(f"There is no plan {os.fspath(path)}; imagery-dask plan ... --save FILE writes one.")
    return plan_in(run_at(os.fspath(path)))


def has_records(url: str) -> bool:
    """Return True if the records of an export lie beside a URL; exports are written to disks, memory and buckets.

    Raises
    ------
    AccessRefusedError
        This process may not list the bucket.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme not in (*WRITABLE, "precomputed"):
        return False
    with clear_errors(url):
        return any(runs_in(files) for files in record_folders(url))


def run_at(url: str) -> Run:
    """Find the run that has written a target; the last one, if there are several.

    Raises
    ------
    FileNotFoundError
        There are no records of a run.
    """
    runs = [run for files in record_folders(url) for run in runs_in(files)]
    if not runs:
        raise FileNotFoundError(
            f"There are no records of an export beside {url}. They lie in {url.rstrip('/')}.receipts, and may have "
            "been removed, or the export was made by something else."
        )
    # A run that is to replace the target has not done so yet.
    return max(runs, key=lambda run: (run.in_place, run.created))
