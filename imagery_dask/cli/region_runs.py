"""Run of ``imagery-dask export --regions``: one export for each region, on one cluster, with one exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from imagery_dask.annotations import Keywords
from imagery_dask.cli.files.region_files import Bounds
from imagery_dask.cli.main import INTERRUPTED
from imagery_dask.cli.region_flags import REGION_OPTIONS, is_at_a_moment, same_moment
from imagery_dask.cli.run_flags import SOME_BLOCKS_FAILED, ended_as_interrupted, kept_in, print_report, run_options_of
from imagery_dask.errors import (
    AccessRefusedError,
    BlockFailedError,
    ClusterLostError,
    SourceError,
    TargetBusyError,
    TargetFullError,
    TooManyMissingError,
)

if TYPE_CHECKING:
    from imagery_dask.export.core.base import Export

__all__ = ["run_regions"]

# Errors after which further regions would fail too.
OF_ALL = (AccessRefusedError, TargetFullError, ClusterLostError)


def run_regions(
    build: Callable[[str, Keywords], Export],
    out: str,
    regions: Mapping[str, Bounds],
    options: Keywords,
    run_keywords: Keywords,
    keep: Callable[..., None],
) -> None:
    """Export each region to its folder; every export is checked before the first one runs.

    Parameters
    ----------
    build : callable
        Makes an export from a target and options.
    out : str
        Folder or URL of the regions' folders.
    regions : mapping of str to tuple of 6 float
        Bounds by name.
    options : dict
        Options of the region and format, as on the command line.
    run_keywords : dict
        Keywords of `run_options_of`.
    keep : callable
        Writes the config of a region's export; called with the export, and ``out`` and ``box``.
    """
    from imagery_dask.export.execution.execute import execute
    from imagery_dask.export.execution.resume import refuse_occupied

    targets = {name: f"{out.rstrip('/')}/{name}" for name in regions}
    moments = _moments(targets, options)
    built = {
        name: build(targets[name], options | {"bounds": box, "timestamp": moments[name]})
        for name, box in regions.items()
    }
    asked = run_options_of(**run_keywords)
    for export in built.values():
        refuse_occupied(export, asked.overwrite)
    failed: list[str] = []
    done = 0
    try:
        with ended_as_interrupted(), asked.connect() as client:
            for name, export in built.items():
                # The cluster runs already: options that start one have been used.
                report = None if asked.report is None else _named(os.fspath(asked.report), name)
                own = replace(asked, cluster=client, workers=None, retire_before_s=None, connected=None, report=report)
                try:
                    with kept_in(export, partial(keep, out=targets[name], box=regions[name])):
                        print_report(execute(export, own), targets[name])
                    done += 1
                except BlockFailedError as error:
                    print_report(error.report, targets[name])
                    failed.append(name)
                except TargetBusyError:
                    raise
                except (SourceError, TooManyMissingError, *OF_ALL) as error:
                    click.echo(f"Error: {targets[name]}: {error}", err=True)
                    failed.append(name)
                    if isinstance(error, OF_ALL):
                        break
    except KeyboardInterrupt:
        click.echo(f"Interrupted. Run the same command again to resume {out}; --overwrite starts over.", err=True)
        sys.exit(INTERRUPTED)
    click.echo(f"{out}: {done} of {len(regions)} regions are complete")
    if failed:
        click.echo(f"  Failed: {', '.join(failed)}. Run the same command again to resume.", err=True)
        sys.exit(SOME_BLOCKS_FAILED)


def _moments(targets: Mapping[str, str], options: Keywords) -> dict[str, Any]:
    """Return the timestamp of each region: one for all, but for exports that were begun with another."""
    region = {name: options[name] for name in REGION_OPTIONS}
    if is_at_a_moment(region):
        return dict.fromkeys(targets, region["timestamp"])
    begun = {} if options.get("overwrite") else {name: same_moment(to, region) for name, to in targets.items()}
    known = {name: found["timestamp"] for name, found in begun.items() if found["timestamp"] is not None}
    moment = next(iter(known.values()), str(int(time.time())))
    return {name: known.get(name, moment) for name in targets}


def _named(report: str, name: str) -> str:
    """Return the HTML report of a region: REPORT-NAME.html."""
    stem, ending = os.path.splitext(report)
    return f"{stem}-{name}{ending}"
