"""``imagery-dask status``: show the progress of an export, from the records beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from imagery_dask.humanize import human_bytes, human_time

if TYPE_CHECKING:
    from imagery_dask.export.reports.status import Status
    from imagery_dask.records.drivers import Driver

__all__ = ["status", "status_lines"]

DAMAGED_SHOWN = 10
HOLDERS_SHOWN = 10
STAGES_SHOWN = 40
WHAT_NEXT = {
    "interrupted": "no process is running; run the same export again to resume it",
    "failed": "no process is running; run the same export again to retry the failed blocks",
    "damaged": "run the same export with repair=True (--repair) to write the damaged blocks again",
}


@click.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; integers above 2**53 are strings.")
@click.option("--watch", type=click.FloatRange(min=0.1), metavar="SECONDS",
              help="Print again at this interval while the export is running or its job is queued.")  # fmt: skip
def status(out: str, as_json: bool, watch: float | None) -> None:
    r"""Show the progress of the exports at OUT.

    OUT is a store, a volume, or a prefix of slices. Only its records are read.

    The state is running, interrupted, failed (blocks failed, and no process is running), damaged (verify found blocks
    that differ from what was written) or complete. The exit code is 0 for every state, and 2 if there is no export;
    scripts read the state from --json.

    \b
    Examples:
      imagery-dask status OUT.zarr
      imagery-dask status s3://bucket/OUT.zarr --watch 10
      imagery-dask status slices/em --json
    """
    from imagery_dask.export.reports.status import drivers_of, status_of
    from imagery_dask.serialization import to_json

    while True:
        drivers = drivers_of(out)
        try:
            exports = status_of(out)
        except FileNotFoundError:
            if not drivers:
                raise
            exports = []  # the driver's job is queued and has written no records yet
        if as_json:
            click.echo(json.dumps({"exports": to_json(exports), "drivers": to_json(drivers)}))
        else:
            for line in _lines(out, exports, drivers):
                click.echo(line)
        if watch is None or not _is_active(exports, drivers):
            return
        try:
            time.sleep(watch)
        except KeyboardInterrupt:
            return
        if not as_json:
            click.echo()


def _is_active(exports: Sequence[Status], drivers: Sequence[Driver]) -> bool:
    """Return True if a driver is running or queued."""
    from imagery_dask.cluster import is_listed

    if any(export.state == "running" for export in exports):
        return True
    if _all_complete(exports):
        return False
    listed = [is_listed(driver.system, driver.job) for driver in drivers]
    return True in listed or (not exports and None in listed)


def _all_complete(exports: Sequence[Status]) -> bool:
    return bool(exports) and all(export.state == "complete" for export in exports)


def _lines(out: str, exports: Sequence[Status], drivers: Sequence[Driver]) -> Iterator[str]:
    if not exports:
        yield f"{out}: not started"
    for export in exports:
        yield from status_lines(export)
    if _all_complete(exports):
        return
    if drivers:
        from imagery_dask.cluster import describe_jobs
    for driver in drivers:
        yield f"  driver: job {driver.job} ({driver.system}), submitted {driver.submitted[:19].replace('T', ' ')} UTC"
        yield from (f"    {line}" for line in describe_jobs(driver.system, [driver.job]).splitlines())
        if driver.logs is not None:
            yield f"    output: {driver.logs}"


def status_lines(export: Status) -> Iterator[str]:
    """Return the status of an export as lines of text."""
    yield f"{export.out} ({export.kind}): {export.state}{_next(export)}"
    percent = int(1000 * export.done / export.blocks) / 10 if export.blocks else 100.0
    problems = "".join(
        f", {count:,} {what}"
        for count, what in ((export.failed, "failed"), (len(export.damaged), "damaged"), (export.repeats, "repeats"))
        if count
    )
    yield f"  blocks: {export.done:,} of {export.blocks:,} done ({percent}%){problems}"
    if len(export.stages) > 1:
        # Of many regions, those that are not done.
        few = len(export.stages) <= STAGES_SHOWN
        stages = [stage for stage in export.stages if few or stage.done < stage.blocks]
        for stage in stages[:STAGES_SHOWN]:
            yield (
                f"    stage {stage.stage + 1}, {stage.doing} {stage.volume} from level {stage.level}: "
                f"{stage.done:,} of {stage.blocks:,}"
            )
        if len(stages) > STAGES_SHOWN:
            yield f"    and {len(stages) - STAGES_SHOWN:,} more that are not done"
    yield f"  written: {human_bytes(export.written_bytes)}{_rate(export)}"
    yield f"  source chunks missing: {export.missing:,}; supervoxels without a root: {export.zero_roots:,}"
    if export.refused_or_absent:
        yield f"  of the missing chunks, refused or absent (HTTP 403 for both): {export.refused_or_absent:,}"
    if export.first is not None and export.last is not None:
        yield f"  blocks done from {_moment(export.first)} to {_moment(export.last)}"
    for holder in export.holders[:HOLDERS_SHOWN]:
        part = f"part {holder.part}: " if holder.part else ""
        seen = f"last seen {human_time(holder.heard_of_seconds_ago)} ago"
        yield f"  {part}process {holder.pid} on {holder.host}, {seen}"
    if len(export.holders) > HOLDERS_SHOWN:
        yield f"  and {len(export.holders) - HOLDERS_SHOWN:,} more parts"
    if export.damaged:
        yield f"  damaged blocks: {_some(export.damaged)}"
    if export.failed:
        yield f"  {export.failed:,} blocks failed:"
        yield from (f"    {failure.name}: {failure.reason}" for failure in export.failures)
        if export.failed > len(export.failures):
            yield f"    and {export.failed - len(export.failures):,} more"


def _next(export: Status) -> str:
    return f"; {WHAT_NEXT[export.state]}" if export.state in WHAT_NEXT else ""


def _rate(export: Status) -> str:
    if export.blocks_per_second is None or export.bytes_per_second is None:
        return "; no block was written recently" if export.state == "running" else ""
    when = "recently" if export.state == "running" else "at the end"
    rate = f"; {when} {human_bytes(export.bytes_per_second)}/s, {export.blocks_per_second:.3g} blocks/s"
    return rate + (f"; about {human_time(export.seconds_left)} left" if export.seconds_left is not None else "")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _some(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:DAMAGED_SHOWN]))
    return text + (f" and {len(numbers) - DAMAGED_SHOWN:,} more" if len(numbers) > DAMAGED_SHOWN else "")
