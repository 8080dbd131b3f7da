"""A report of an export as one HTML file, from its records: what was written, how fast, and all that went wrong."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from html import escape
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np

from imagery_dask.export.core.base import Export
from imagery_dask.export.core.plans import ExportPlan, StageBlocks
from imagery_dask.export.core.preview import Preview
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.reports.block_states import NOT_DONE, Outcomes, bursts_of, outcomes_of
from imagery_dask.export.reports.html_charts import block_map, legend, throughput
from imagery_dask.export.reports.html_page import Markup, items, numbers, page, section, table
from imagery_dask.humanize import human_time
from imagery_dask.records.journal import Records
from imagery_dask.records.ledger import ledger_rows
from imagery_dask.records.receipts import counts_of
from imagery_dask.run import RunReport
from imagery_dask.storage.files import Files, check_writable, split_prefix

__all__ = ["Previews", "checked_report", "reported", "write_html"]

Previews = Callable[[Sequence[StageBlocks]], Iterable[Preview]]

FAILURES_SHOWN = 100
MISSING_SHOWN = 100
LONG = 300


def checked_report(path: str | os.PathLike[str] | None, out: str) -> str | None:
    """Refuse a place that no report can be written to, before any work.

    Raises
    ------
    ValueError, OSError
        It is a folder, within the store, or cannot be written.
    """
    if path is None:
        return None
    text = os.fspath(path)
    try:
        files, name = split_prefix(text)
    except ValueError:
        raise ValueError(f"report must be a file to write, as in 'report.html'; got {text!r}.") from None
    if files.folder is not None and (files.folder / name).is_dir():
        raise ValueError(f"report must be a file to write; {text!r} is a folder. Add a name: {text}/report.html.")
    if files.url == Files.at(out).url or files.url.startswith(f"{Files.at(out).url}/"):
        raise ValueError(
            f"report {text!r} lies in {out}, which holds nothing but the export; choose a place beside it."
        )
    check_writable(files, name)
    return text


@contextmanager
def reported(export: Export, run: StartedRun, report: RunReport, path: str | None) -> Iterator[None]:
    """Write the report of what is done within, however that ends."""
    if path is None:
        yield
        return

    def write(ended: str | None = None) -> None:
        records = run.records if run.records.kept else None
        write_html(path, run.plan, records, report, previews=partial(export.format.previews, export, run), ended=ended)

    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # why it ended is more than that nothing can be said of it
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
    body = [
        *_head(plan, records),
        *_verdict(report, outcomes, ended),
        _numbers(plan, report, outcomes),
        *_notes(report),
        *([] if outcomes is None else _speed(outcomes)),
        *([] if outcomes is None else _blocks(plan, outcomes)),
        *_pictures(previews(_whole(plan, outcomes))),
        *_failures(report, outcomes),
        *([] if records is None or outcomes is None else _gaps(records, outcomes)),
        *_settings(plan),
    ]
    files.put(name, page(f"Export to {plan.url}", body).encode(), "text/html; charset=utf-8")


def _head(plan: ExportPlan, records: Records | None) -> Iterator[Markup]:
    yield f"<header><h1>{escape(plan.url)}</h1>"
    run = None if records is None else records.get("plan.json")
    begun = "" if run is None else f", begun {_moment(run['created'])}"
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    said = f"{plan.kind} export by imagery_dask {version('imagery_dask')}{begun}; this report is of {written}"
    yield f'<p class="soft">{escape(said)}</p></header>'


def _verdict(report: RunReport, outcomes: Outcomes | None, ended: str | None) -> Iterator[Markup]:
    # Blocks that were at work when a call ended early have a receipt, and are in no report.
    left = report.blocks - (report.done if outcomes is None else len(outcomes.receipts))
    damaged = () if outcomes is None else outcomes.damaged
    if left:
        said = f"Incomplete: {left:,} of {report.blocks:,} blocks are not written. The same export, called again, "
        said += "goes on."
    elif damaged:
        said = f"Damaged: {len(damaged):,} of {report.blocks:,} blocks are not what was written. Repair them."
    elif ended:
        said = f"All {report.blocks:,} blocks are written, and the export is not closed: call it again."
    else:
        said = f"Complete: all {report.blocks:,} blocks are written."
    yield f'<p class="verdict{" bad" if left or damaged or ended else ""}"><b>{escape(said)}</b>'
    yield f"<br>{escape(ended)}</p>" if ended else "</p>"


def _numbers(plan: ExportPlan, report: RunReport, outcomes: Outcomes | None) -> Markup:
    done, written, seconds = report.done, report.written_bytes, report.seconds
    counts, repeats, failed, damaged = report.counts, report.repeats, report.failures, 0
    speed = report.mb_per_s
    if outcomes is not None:
        done, written, counts = len(outcomes.receipts), outcomes.total("written_bytes"), counts_of(outcomes.receipts)
        repeats, failed, damaged = outcomes.repeats, len(outcomes.failed), len(outcomes.damaged)
        seconds = sum(burst.seconds for burst in bursts_of(outcomes.receipts))
        speed = written / 1e6 / seconds if seconds else 0.0
    found = [
        ("blocks written", f"{done:,} of {report.blocks:,}", done < report.blocks),
        ("voxels", _large(plan.voxels), False),
        ("written, uncompressed", _bytes(written), False),
        ("read from the source, as stored", _bytes(counts.stored_bytes), False),
        ("in which blocks were done, all calls", human_time(seconds), False),
        ("MB/s in this time", f"{speed:,.1f}", False),
        ("source chunks missing", f"{counts.missing:,}", counts.missing > 0),
        ("supervoxels without a root", f"{counts.zero_roots:,}", counts.zero_roots > 0),
        ("attempts repeated", f"{repeats:,}", False),
        ("blocks failed", f"{failed:,}", failed > 0),
        *([("blocks damaged", f"{damaged:,}", True)] if damaged else []),
    ]
    here = f"Of these, the last call did {report.done - report.before:,} blocks in {human_time(report.seconds)}."
    return numbers(found) + (f'<p class="soft">{here}</p>' if report.before else "")


def _notes(report: RunReport) -> Iterator[Markup]:
    if report.notes:
        yield section("Notes", items(report.notes))


def _speed(outcomes: Outcomes) -> Iterator[Markup]:
    if len(outcomes.receipts):
        note = '<p class="soft">Bytes are uncompressed, and counted when their block is done. Times are UTC.</p>'
        yield section("Throughput", throughput(outcomes.receipts), note)


def _blocks(plan: ExportPlan, outcomes: Outcomes) -> Iterator[Markup]:
    parts = [legend(outcomes.states)]
    for first, part in plan.parts:
        x, y, z = part.blocks.counts
        states = outcomes.states[first : first + len(part.blocks)]
        done = int((states != NOT_DONE).sum()) - sum(first <= n < first + len(states) for n in outcomes.failed)
        title = f"{part.volume}, from level {part.level} ({part.doing}): {done:,} of {len(states):,} blocks written"
        parts += [f"<h3>{escape(f'{title}; {x:,} x {y:,} x {z:,} along x, y, z')}</h3>"]
        parts += [block_map(part.blocks, states)]
    yield section("Blocks", *parts)


def _pictures(previews: Iterable[Preview]) -> Iterator[Markup]:
    figures = []
    try:
        for preview in previews:
            if preview.png is None:
                shown = f'<div class="none">No picture: {escape(preview.why)}</div>'
            else:
                content = base64.b64encode(preview.png).decode()
                shown = f'<img alt="{escape(preview.caption)}" src="data:image/png;base64,{content}">'
            figures.append(f"<figure>{shown}<figcaption>{escape(preview.caption)}</figcaption></figure>")
    except Exception as error:  # pictures are an extra
        figures.append(f'<p class="soft">{escape(f"No pictures: {error}")}</p>')
    if figures:
        yield section("What is written", f'<div class="previews">{"".join(figures)}</div>')


def _failures(report: RunReport, outcomes: Outcomes | None) -> Iterator[Markup]:
    if outcomes is None:
        rows: list[list[Any]] = [[each.name, each.reason] for each in report.failed[:FAILURES_SHOWN]]
        count = report.failures
        heads = ["block", "reason"]
    else:
        count, heads = len(outcomes.failed), ["number", "block", "reason", "attempts", "when (UTC)"]
        rows = [
            [number, line.get("name", ""), line.get("reason", ""), int(line.get("attempts", 1)), _when(line)]
            for number, line in islice(outcomes.failed.items(), FAILURES_SHOWN)
        ]
    if count:
        yield section(f"Blocks that failed: {count:,}", table(heads, rows), _more(count, len(rows)))


def _gaps(records: Records, outcomes: Outcomes) -> Iterator[Markup]:
    """List what the source did not have."""
    done = set(outcomes.receipts["block"].tolist())
    rows: dict[str, list[list[Any]]] = {"missing chunk": [], "zero roots": []}
    counts: Counter[str] = Counter()
    for row in ledger_rows(records.lines("ledger"), done):
        kind, what = row["kind"], row.get("key")
        counts[kind] += 1
        if what is None:
            what = f"{row['supervoxels']:,} supervoxels; {', '.join(row['first'])}"
        if len(rows[kind]) < MISSING_SHOWN:
            rows[kind].append([row["block"], row["name"], what])
    titles = {"missing chunk": "Missing chunks of the source", "zero roots": "Supervoxels without a root"}
    for kind, found in rows.items():
        if found:
            note = '<p class="soft">They were written as 0.</p>'
            heads = ["number", "block", "chunk" if kind == "missing chunk" else "how many, and the first"]
            yield section(titles[kind], note, table(heads, found), _more(counts[kind], len(found)))


def _settings(plan: ExportPlan) -> Iterator[Markup]:
    volumes = [
        [each["name"], " x ".join(f"{n:,}" for n in each["shape"]), each["dtype"], _resolution(each), _source(each)]
        for each in plan.volumes
    ]
    settings = [[name, _said(value)] for name, value in sorted(plan.fingerprint_fields.items())]
    yield section(
        "Export",
        table(["volume", "voxels x, y, z", "type", "nm", "source"], volumes),
        f"<details><summary>All that decides the voxels</summary>{table(['what', 'value'], settings)}</details>",
        f'<p class="soft">Fingerprint of these settings: <code>{escape(plan.fingerprint)}</code></p>',
    )


def _whole(plan: ExportPlan, outcomes: Outcomes | None) -> list[StageBlocks]:
    """Parts of which all blocks are done."""
    if outcomes is None:
        return [part for _, part in plan.parts]
    done = np.zeros(plan.blocks, bool)
    done[outcomes.receipts["block"].astype(np.int64)] = True
    return [part for first, part in plan.parts if done[first : first + len(part.blocks)].all()]


def _more(count: int, shown: int) -> Markup:
    return f'<p class="soft">and {count - shown:,} more</p>' if count > shown else ""


def _moment(text: str) -> str:
    return f"{text[:10]} {text[11:19]} UTC"


def _when(line: dict[str, Any]) -> str:
    return f"{datetime.fromtimestamp(float(line.get('when', 0)), UTC):%Y-%m-%d %H:%M:%S}"


def _resolution(volume: dict[str, Any]) -> str:
    return "not known" if volume["resolution_nm"] is None else " x ".join(f"{n:g}" for n in volume["resolution_nm"])


def _source(volume: dict[str, Any]) -> str:
    return str(volume["cutout"]["path"]) if "cutout" in volume else "an array that was computed"


def _said(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def _large(count: int) -> str:
    for unit, size in (("trillion", 10**12), ("billion", 10**9), ("million", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
