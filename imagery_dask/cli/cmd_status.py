"""``imagery-dask status``: how far an export is, from what is written beside it."""

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
WHAT_NEXT = {
    "interrupted": "no process is at work; the same export, called again, goes on with the blocks that are left",
    "failed": "no process is at work; the same export, called again, does the blocks again that failed",
    "damaged": "the same export with repair=True (--repair) does the damaged blocks again",
}


@click.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; integers above 2**53 are text.")
@click.option("--watch", type=click.FloatRange(min=0.1), metavar="SECONDS",
              help="Print again every so often, as long as a process is at work, or a job waits to be.")  # fmt: skip
def status(out: str, as_json: bool, watch: float | None) -> None:
    """Show the progress of the exports at OUT.

    OUT is a store, a volume, or a prefix of slices. Only its records are read.

    The state is running, interrupted, failed (blocks failed, and no process is at work), damaged (verify found blocks
    that are not what was written) or complete. The exit code is 0 whatever it is, and 2 where there is no export: a
    script reads the state from --json.
    """
    from imagery_dask.export.reports.status import drivers_of, status_of
    from imagery_dask.serialization import to_json

    while True:
        drivers = drivers_of(out)
        try:
            found = status_of(out)
        except FileNotFoundError:
            if not drivers:
                raise
            found = []  # it waits in a queue
        if as_json:
            click.echo(json.dumps({"exports": to_json(found), "drivers": to_json(drivers)}))
        else:
            for line in _lines(out, found, drivers):
                click.echo(line)
        if watch is None or not _goes_on(found, drivers):
            return
        try:
            time.sleep(watch)
        except KeyboardInterrupt:
            return
        if not as_json:
            click.echo()


def _goes_on(found: Sequence[Status], drivers: Sequence[Driver]) -> bool:
    """Whether a process is at work, or a job that waits is about to be."""
    from imagery_dask.cluster import is_listed

    if any(one.state == "running" for one in found):
        return True
    if found and all(one.state == "complete" for one in found):
        return False
    listed = [is_listed(driver.system, driver.job) for driver in drivers]
    return True in listed or (not found and None in listed)


def _lines(out: str, found: Sequence[Status], drivers: Sequence[Driver]) -> Iterator[str]:
    if not found:
        yield f"{out}: not begun"
    for one in found:
        yield from status_lines(one)
    if all(one.state == "complete" for one in found) and found:
        return
    if drivers:
        from imagery_dask.cluster import describe_jobs
    for driver in drivers:
        yield f"  driver: job {driver.job} ({driver.system}), submitted {driver.submitted[:19].replace('T', ' ')} UTC"
        yield from (f"    {line}" for line in describe_jobs(driver.system, [driver.job]).splitlines())
        if driver.logs is not None:
            yield f"    its output is in {driver.logs}"


def status_lines(found: Status) -> Iterator[str]:
    """Say how far an export is, in lines."""
    yield f"{found.out} ({found.kind}): {found.state}{_next(found)}"
    share = int(1000 * found.done / found.blocks) / 10 if found.blocks else 100.0
    trouble = "".join(
        f", {count:,} {what}"
        for count, what in ((found.failed, "failed"), (len(found.damaged), "damaged"), (found.repeats, "repeats"))
        if count
    )
    yield f"  blocks: {found.done:,} of {found.blocks:,} done ({share}%){trouble}"
    if len(found.stages) > 1:
        for stage in found.stages:
            yield (
                f"    stage {stage.stage + 1}, {stage.doing} {stage.volume} from level {stage.level}: "
                f"{stage.done:,} of {stage.blocks:,}"
            )
    yield f"  written: {human_bytes(found.written_bytes)}{_rate(found)}"
    yield f"  source chunks missing: {found.missing:,}; supervoxels without a root: {found.zero_roots:,}"
    if found.first is not None and found.last is not None:
        yield f"  blocks done from {_moment(found.first)} to {_moment(found.last)}"
    for holder in found.holders[:HOLDERS_SHOWN]:
        part = f"part {holder.part}: " if holder.part else ""
        heard = f"heard of {human_time(holder.heard_of_seconds_ago)} ago"
        yield f"  {part}process {holder.pid} on {holder.host}, {heard}"
    if len(found.holders) > HOLDERS_SHOWN:
        yield f"  and {len(found.holders) - HOLDERS_SHOWN:,} more parts"
    if found.damaged:
        yield f"  damaged blocks: {_some(found.damaged)}"
    if found.failed:
        yield f"  {found.failed:,} blocks failed:"
        yield from (f"    {each.name}: {each.reason}" for each in found.failures)
        if found.failed > len(found.failures):
            yield f"    and {found.failed - len(found.failures):,} more"


def _next(found: Status) -> str:
    return f"; {WHAT_NEXT[found.state]}" if found.state in WHAT_NEXT else ""


def _rate(found: Status) -> str:
    if found.blocks_per_second is None or found.bytes_per_second is None:
        return "; no block was done of late" if found.state == "running" else ""
    when = "of late" if found.state == "running" else "at the end"
    rate = f"; {when} {human_bytes(found.bytes_per_second)}/s, {found.blocks_per_second:.3g} blocks/s"
    return rate + (f"; about {human_time(found.seconds_left)} left" if found.seconds_left is not None else "")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _some(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:DAMAGED_SHOWN]))
    return text + (f" and {len(numbers) - DAMAGED_SHOWN:,} more" if len(numbers) > DAMAGED_SHOWN else "")
