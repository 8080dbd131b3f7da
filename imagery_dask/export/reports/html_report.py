"""Write a report of an export as one HTML file, from its records: what was written, how fast, and what went wrong."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import ExportPlan, StageBlocks
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.reports.block_states import NOT_DONE, Outcomes, bursts_of, outcomes_of
from imagery_dask.export.reports.html_charts import COLORS, block_map, throughput
from imagery_dask.humanize import human_bytes, human_count, human_time
from imagery_dask.records.receipts import counts_of
from imagery_dask.records.runs import MISSING_CHUNK, REFUSED_OR_ABSENT, Records, incomplete_in, ledger_rows
from imagery_dask.run import RunReport
from imagery_dask.sources.volumes.addresses import check_scheme
from imagery_dask.storage.atomic_files import WRITABLE, Files, check_writable, records_folder, split_prefix
from imagery_dask.validate import expanded_path

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

__all__ = ["Previews", "checked_report", "reported", "write_html"]

Previews = Callable[[Sequence[StageBlocks]], Iterable[Preview]]

FAILURES_SHOWN = 100
MISSING_SHOWN = 100
# Columns of the tables of what the source did not have, which are of chunks otherwise.
COLUMNS = {"zero roots": "how many, and the first"}
LONG = 300
# In the first bytes of every report; the second in those of version 0.1.
MARKS = (b'<meta name="generator" content="imagery_dask">', b"<title>Export to ")
HEAD = 2000


def checked_report(path: str | os.PathLike[str], url: str) -> str:
    """Return the path of the report as text; raise if no report can be written there.

    Raises
    ------
    FileExistsError
        There is a file that is no report of this package.
    ValueError, OSError
        The path is a folder or a device, is inside the store, or cannot be written.
    """
    text = os.fspath(path)
    if "://" not in text:
        text = os.path.realpath(text) if os.path.islink(text := expanded_path(text)) else text
    check_scheme(text, WRITABLE)
    try:
        files, name = split_prefix(text)
    except ValueError:
        raise ValueError(f"report must be a file to write, as in 'report.html'; got {text!r}.") from None
    if files.folder is not None and (files.folder / name).is_dir():
        raise ValueError(f"report must be a file to write; {text!r} is a folder. Add a name: {text}/report.html.")
    for place in (Files.at(url).url, records_folder(url).url):
        if f"{files.url}/".startswith(f"{place}/"):
            raise ValueError(
                f"report {text!r} lies in {place.removeprefix('file://')}, which holds nothing but the export; choose "
                "a place beside it."
            )
    check_writable(files, name)
    if not _is_report_or_free(files, name):
        raise FileExistsError(
            f"report {text!r} exists and is no report of imagery_dask: it will not be replaced; choose another name."
        )
    return text


def _is_report_or_free(files: Files, name: str) -> bool:
    """Return True if a report may be written: there is no file, an empty one, or a report."""
    head = b""
    if files.folder is None:
        head = (files.get(name) or b"")[:HEAD]
    elif (path := files.folder / name).exists():
        if not path.is_file():
            raise ValueError(f"report must be a file to write; {str(path)!r} is a device, a pipe or a socket.")
        with open(path, "rb") as file:
            head = file.read(HEAD)
    return not head or any(mark in head for mark in MARKS)


@contextmanager
def reported(export: Export, run: StartedRun, report: RunReport, path: str) -> Iterator[None]:
    """Write a report when the block ends, also if it ends with an error."""

    def write(ended: str | None = None) -> None:
        checked_report(path, export.url)  # also what was written there meanwhile
        records = run.records if run.records.kept else None
        write_html(path, run.plan, records, report, previews=partial(export.format.previews, export, run), ended=ended)

    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # the first error matters more than one of its report
            write("It was interrupted." if isinstance(error, KeyboardInterrupt) else str(error))
        raise
    write()


def write_html(
    path: str | os.PathLike[str],
    plan: ExportPlan,
    records: Records | None,
    report: RunReport,
    *,
    previews: Previews = lambda whole: (),
    ended: str | None = None,
) -> None:
    """Write a report.

    Parameters
    ----------
    path : str or path
        File, local or in a bucket; one that is there is replaced.
    plan : ExportPlan
        What was to be written.
    records : Records or None
        Records of the run, of all calls; without them the page has what `report` says.
    report : RunReport
        What the last call did.
    previews : callable, optional
        Gives pictures, when it is told of which parts of the plan all blocks are done.
    ended : str, optional
        Why the last call ended before its time.
    """
    files, name = split_prefix(path)
    outcomes = None if records is None else outcomes_of(records, plan.blocks)
    pictures, no_pictures = _pictures(previews(_whole(plan, outcomes)))
    page = _template().render(
        url=plan.url,
        colors=COLORS,
        made_by=_made_by(plan, records),
        verdict=_verdict(report, outcomes, ended),
        numbers=_numbers(plan, report, outcomes),
        last_call=_last_call(report),
        notes=report.notes,
        throughput=throughput(outcomes.receipts) if outcomes is not None and len(outcomes.receipts) else "",
        states={} if outcomes is None else outcomes.counts,
        maps=[] if outcomes is None else _maps(plan, outcomes),
        previews=pictures,
        no_previews=no_pictures,
        failures=_failures(report, outcomes),
        gaps=[] if records is None or outcomes is None else _gaps(records, outcomes),
        volumes=_volumes(plan),
        settings=_settings(plan),
        fingerprint=plan.fingerprint,
    )
    files.put(name, page.encode(), "text/html; charset=utf-8")


@cache
def _template() -> Template:
    # Imported when the first report is written.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("imagery_dask.export.reports", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template("report.html.j2")


@dataclass(frozen=True, slots=True)
class _Table:
    """Table of a report, of which at most some rows are shown."""

    # Names of the columns, and whether they hold whole numbers, which are aligned at the right.
    heads: Sequence[tuple[bool, str]]
    rows: Sequence[Sequence[object]]
    # Number of rows, including those that are not shown.
    count: int
    title: str = ""


def _table(names: Sequence[str], rows: Sequence[Sequence[object]], count: int | None = None, title: str = "") -> _Table:
    whole = [bool(rows) and all(isinstance(row[at], int) for row in rows) for at in range(len(names))]
    return _Table(list(zip(whole, names, strict=True)), rows, len(rows) if count is None else count, title)


def _made_by(plan: ExportPlan, records: Records | None) -> str:
    run = None if records is None else records.get("plan.json")
    begun = "" if run is None else f", begun {_moment(run['created'])}"
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{plan.kind} export by imagery_dask {version('imagery_dask')}{begun}; this report is of {written}"


def _verdict(report: RunReport, outcomes: Outcomes | None, ended: str | None) -> JsonObject:
    # Blocks that were in progress when a call ended early have a receipt, and are in no report.
    left = report.blocks - (report.done if outcomes is None else len(outcomes.receipts))
    damaged = () if outcomes is None else outcomes.damaged
    if left:
        text = f"Incomplete: {left:,} of {report.blocks:,} blocks are not written. Run the same export again to resume."
    elif damaged:
        text = f"Damaged: {len(damaged):,} of {report.blocks:,} blocks are not what was written. Repair them."
    elif ended:
        text = f"All {report.blocks:,} blocks are written, but the export is not closed. Run it again to close it."
    else:
        text = f"Complete: all {report.blocks:,} blocks are written."
    return {"text": text, "bad": bool(left or damaged or ended), "ended": ended}


def _numbers(plan: ExportPlan, report: RunReport, outcomes: Outcomes | None) -> list[tuple[str, str, bool]]:
    """Return headline numbers: what each counts, its text, and whether it is bad news."""
    done, written, seconds = report.done, report.written_bytes, report.seconds
    counts, repeats, failed, damaged = report.counts, report.repeats, report.failures, 0
    speed = report.mb_per_s
    if outcomes is not None:
        done, written, counts = len(outcomes.receipts), outcomes.total("written_bytes"), counts_of(outcomes.receipts)
        counts.refused_or_absent = outcomes.refused_or_absent
        repeats, failed, damaged = outcomes.repeats, len(outcomes.failed), len(outcomes.damaged)
        seconds = sum(burst.seconds for burst in bursts_of(outcomes.receipts))
        speed = written / 1e6 / seconds if seconds else 0.0
    unsaid = counts.refused_or_absent
    return [
        ("blocks written", f"{done:,} of {report.blocks:,}", done < report.blocks),
        ("voxels", human_count(plan.voxels), False),
        ("written, uncompressed", human_bytes(written), False),
        ("read from the source, as stored", human_bytes(counts.stored_bytes), False),
        ("in which blocks were done, all calls", human_time(seconds), False),
        ("MB/s in this time", f"{speed:,.1f}", False),
        ("source chunks missing", f"{counts.missing:,}", counts.missing > 0),
        *([("of these, refused or absent: HTTP 403 for both", f"{unsaid:,}", True)] if unsaid else []),
        ("supervoxels without a root", f"{counts.zero_roots:,}", counts.zero_roots > 0),
        ("attempts repeated", f"{repeats:,}", False),
        ("blocks failed", f"{failed:,}", failed > 0),
        *([("blocks damaged", f"{damaged:,}", True)] if damaged else []),
    ]


def _last_call(report: RunReport) -> str:
    if not report.before:
        return ""
    return f"Of these, the last call did {report.done - report.before:,} blocks in {human_time(report.seconds)}."


def _maps(plan: ExportPlan, outcomes: Outcomes) -> list[tuple[str, Markup]]:
    maps = []
    for first, part in plan.parts:
        x, y, z = part.blocks.counts
        states = outcomes.states[first : first + len(part.blocks)]
        done = int((states != NOT_DONE).sum()) - sum(first <= n < first + len(states) for n in outcomes.failed)
        heading = (
            f"{part.volume}, from level {part.level} ({part.doing}): {done:,} of {len(states):,} blocks written; "
            f"{x:,} x {y:,} x {z:,} along x, y, z"
        )
        maps.append((heading, block_map(part.blocks, states)))
    return maps


def _pictures(previews: Iterable[Preview]) -> tuple[list[Preview], str]:
    """Return previews, and why there are no more of them."""
    pictures = []
    try:
        for preview in previews:
            pictures.append(preview)
    except Exception as error:  # a report is written without pictures rather than not at all
        return pictures, str(error) or type(error).__name__
    return pictures, ""


def _failures(report: RunReport, outcomes: Outcomes | None) -> _Table | None:
    if outcomes is None:
        rows: list[list[object]] = [[failed.name, failed.reason] for failed in report.failed[:FAILURES_SHOWN]]
        return _table(["block", "reason"], rows, report.failures) if report.failures else None
    rows = [
        [number, line.get("name", ""), line.get("reason", ""), int(line.get("attempts", 1)), _when(line)]
        for number, line in islice(outcomes.failed.items(), FAILURES_SHOWN)
    ]
    names = ["number", "block", "reason", "attempts", "when (UTC)"]
    return _table(names, rows, len(outcomes.failed)) if rows else None


def _gaps(records: Records, outcomes: Outcomes) -> list[_Table]:
    """List what the source did not have."""
    rows: dict[str, list[list[object]]] = {MISSING_CHUNK: [], REFUSED_OR_ABSENT: [], "zero roots": []}
    counts: Counter[str] = Counter()
    for row in ledger_rows(records.lines("ledger"), incomplete_in(outcomes.receipts)):
        kind, gap = row["kind"], row.get("key")
        counts[kind] += 1
        if gap is None:
            gap = f"{row['supervoxels']:,} supervoxels; {', '.join(row['first'])}"
        if len(rows[kind]) < MISSING_SHOWN:
            rows[kind].append([row["block"], row["name"], gap])
    titles = {
        MISSING_CHUNK: "Missing chunks of the source",
        REFUSED_OR_ABSENT: "Chunks of the source that are refused or absent: the server answers HTTP 403 for both",
        "zero roots": "Supervoxels without a root",
    }
    return [
        _table(["number", "block", COLUMNS.get(kind, "chunk")], shown, counts[kind], titles[kind])
        for kind, shown in rows.items()
        if shown
    ]


def _volumes(plan: ExportPlan) -> _Table:
    rows = [
        [
            "/".join(filter(None, (volume.get("region"), volume["name"]))),
            " x ".join(f"{n:,}" for n in volume["shape"]),
            volume["dtype"],
            _resolution(volume),
            _source(volume),
        ]
        for volume in plan.volumes
    ]
    return _table(["volume", "voxels x, y, z", "type", "nm", "source"], rows)


def _settings(plan: ExportPlan) -> _Table:
    rows = [[name, _value(value)] for name, value in sorted(plan.fingerprint_fields.items())]
    return _table(["what", "value"], rows)


def _whole(plan: ExportPlan, outcomes: Outcomes | None) -> list[StageBlocks]:
    """Return the parts of the plan of which all blocks are done."""
    if outcomes is None:
        return [part for _, part in plan.parts]
    done = np.zeros(plan.blocks, bool)
    done[outcomes.receipts["block"].astype(np.int64)] = True
    return [part for first, part in plan.parts if done[first : first + len(part.blocks)].all()]


def _moment(text: str) -> str:
    return f"{text[:10]} {text[11:19]} UTC"


def _when(line: JsonObject) -> str:
    return f"{datetime.fromtimestamp(float(line.get('when', 0)), UTC):%Y-%m-%d %H:%M:%S}"


def _resolution(volume: JsonObject) -> str:
    return "not known" if volume["resolution_nm"] is None else " x ".join(f"{n:g}" for n in volume["resolution_nm"])


def _source(volume: JsonObject) -> str:
    return str(volume["cutout"]["path"]) if "cutout" in volume else "an array that was computed"


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."
