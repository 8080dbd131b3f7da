"""Draw a run as SVG: its throughput over time, and the state of each block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from imagery_dask.annotations import Array
from imagery_dask.export.reports.block_states import FAILED, STATES, Burst, bursts_of
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.humanize import human_time

__all__ = ["COLORS", "block_map", "throughput"]

# The colours of Okabe and Ito, which colour-blind people tell apart too, by state; its first word is its class.
COLORS = {
    "done": "#009e73", "repeated": "#56b4e9", "zero roots": "#cc79a7", "missing chunks": "#e69f00",
    "not done": "var(--none)", "failed": "#d55e00", "damaged": "var(--ink)",
}  # fmt: skip

WIDTH, LEFT, RIGHT, HEIGHT, TOP = 1020, 62, 8, 92, 24
BINS = 120
BLOCKS_PER_BIN = 3
PAUSE_WIDTH = 58
MOST_BURSTS = 12
SIDE_BY_SIDE = 110  # pixels that a time of day takes, and some space

MOST_SLABS = 64
MOST_CELLS = 5000
MOST_ALONG = 100
MAP_SIDE, ONLY_SIDE = 150, 600
CELL = (2.0, 13.0)


def throughput(receipts: Array) -> Markup:
    """Draw bytes and blocks per second over time; pauses between calls are shortened and labelled."""
    bursts = _fewer(bursts_of(receipts))
    spans = _spans(bursts)
    edges = [np.linspace(b.start, b.stop, _bins(b, bursts, len(receipts)) + 1) for b in bursts]
    panels = []
    for row, (unit, weights) in enumerate((("MB/s", receipts["written_bytes"] / 1e6), ("blocks/s", None))):
        rates = [np.histogram(receipts["finished"], e, weights=weights)[0] / np.diff(e) for e in edges]
        panels.append(_panel(unit, rates, spans, TOP + row * (HEIGHT + 30)))
    height = TOP + 2 * HEIGHT + 30 + 22
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="MB and blocks per second over time">'
        f"{_pauses(bursts, spans, height)}{''.join(panels)}{_times(bursts, spans, height)}</svg>"
    )


def block_map(plan: BlockPlan, states: NDArray[np.uint8]) -> Markup:
    """Draw the blocks of a part, slab by slab; where these are many, a cell is several and has their worst state."""
    x, y, z = plan.counts
    grid = states.reshape(z, y, x)
    slabs = np.unique(np.linspace(0, z, min(z, MOST_SLABS) + 1).astype(int))[:-1]
    step = 1
    while -(-x // step) * -(-y // step) * len(slabs) > MOST_CELLS or -(-max(x, y) // step) > MOST_ALONG:
        step += 1
    cells = np.maximum.reduceat(grid, slabs, axis=0)
    cells = np.maximum.reduceat(cells, np.arange(0, y, step), axis=1)
    cells = np.maximum.reduceat(cells, np.arange(0, x, step), axis=2)
    stops = [*slabs[1:].tolist(), z]
    edges = plan.edges[2]
    drawn = (
        _slab(cell, f"z {edges[first]:,}–{edges[stop]:,}", grid[first:stop], MAP_SIDE if z > 1 else ONLY_SIDE)
        for cell, first, stop in zip(cells, slabs.tolist(), stops, strict=True)
    )
    merged = len(slabs) < z or step > 1
    each = f"Each cell is up to {step} x {step} x {-(-z // len(slabs))} blocks, and shows the worst state among them."
    note = f'<p class="soft">{each}</p>' if merged else ""
    return Markup(f'<div class="slabs">{"".join(drawn)}</div>{note}')


# ------------------------------------------------------------------------------------------------- blocks


def _slab(cells: NDArray[np.uint8], label: str, blocks: NDArray[np.uint8], most: int) -> str:
    rows, columns = cells.shape
    side = min(max(most / max(rows, columns), CELL[0]), CELL[1])
    counts = np.bincount(blocks.ravel(), minlength=len(STATES)).tolist()
    said = ", ".join(f"{count:,} {name}" for name, count in zip(STATES, counts, strict=True) if count)
    paths = "".join(
        f'<path class="{STATES[state].split()[0]}" d="{_squares(cells == state)}"/>' for state in np.unique(cells)
    )
    # Failed and damaged blocks are crossed out too, for readers who do not see the colours.
    paths += f'<path class="cross" d="{_crosses(cells >= FAILED)}"/>' if (cells >= FAILED).any() else ""
    return (
        f'<div class="slab"><svg viewBox="0 0 {columns} {rows}" width="{columns * side:.0f}" height="{rows * side:.0f}"'
        f' role="img" aria-label="{escape(f"{label}: {said}")}"><title>{escape(f"{label}: {said}")}</title>{paths}'
        f"</svg>{escape(label)}</div>"
    )


def _squares(where: NDArray[np.bool_]) -> str:
    rows, columns = np.nonzero(where)
    return "".join(f"M{x} {y}h.9v.9h-.9z" for y, x in zip(rows.tolist(), columns.tolist(), strict=True))


def _crosses(where: NDArray[np.bool_]) -> str:
    rows, columns = np.nonzero(where)
    return "".join(f"M{x} {y}l.9.9m0-.9l-.9.9" for y, x in zip(rows.tolist(), columns.tolist(), strict=True))


# ------------------------------------------------------------------------------------------------- throughput

Span = tuple[float, float]


def _fewer(bursts: Sequence[Burst]) -> list[Burst]:
    """Join bursts with the shortest pauses between them, until they can be told apart in a picture."""
    left = list(bursts)
    while len(left) > MOST_BURSTS:
        at = min(range(len(left) - 1), key=lambda n: left[n + 1].start - left[n].stop)
        left[at : at + 2] = [Burst(left[at].start, left[at + 1].stop)]
    # A burst of one block that took no time still has a place.
    return [Burst(b.start, max(b.stop, b.start + 1e-3)) for b in left]


def _spans(bursts: Sequence[Burst]) -> list[Span]:
    """Where each burst is drawn, from left to right."""
    room = WIDTH - LEFT - RIGHT - PAUSE_WIDTH * (len(bursts) - 1)
    total = sum(burst.seconds for burst in bursts)
    least = min(12.0, room / len(bursts))
    shares = [max(least, room * burst.seconds / total) for burst in bursts]
    spans, at = [], float(LEFT)
    for share in shares:
        width = share * room / sum(shares)
        spans.append((at, at + width))
        at += width + PAUSE_WIDTH
    return spans


def _bins(burst: Burst, bursts: Sequence[Burst], blocks: int) -> int:
    share = burst.seconds / sum(each.seconds for each in bursts)
    return max(1, round(share * min(BINS, max(1, blocks // BLOCKS_PER_BIN))))


def _panel(unit: str, rates: Sequence[Array], spans: Sequence[Span], top: int) -> str:
    most = _nice(max(float(rate.max()) for rate in rates))
    base = top + HEIGHT
    lines = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base - share * HEIGHT:.1f}" y2="{base - share * HEIGHT:.1f}" '
        f'stroke="var(--line)"/><text x="{LEFT - 8}" y="{base - share * HEIGHT + 4:.1f}" text-anchor="end">'
        f"{most * share:g}</text>"
        for share in (0, 0.5, 1)
    )
    drawn = "".join(_steps(rate / most, span, base) for rate, span in zip(rates, spans, strict=True))
    return f'{lines}{drawn}<text x="{LEFT}" y="{top - 8}" font-weight="600">{unit}</text>'


def _steps(shares: Array, span: Span, base: int) -> str:
    xs = np.linspace(*span, len(shares) + 1)
    steps = "".join(f"V{base - share * HEIGHT:.1f}H{x:.1f}" for share, x in zip(shares, xs[1:], strict=True))
    line = f"M{xs[0]:.1f} {base}{steps}V{base}"
    return (
        f'<path d="{line}Z" fill="var(--accent)" fill-opacity=".18"/>'
        f'<path d="{line}" fill="none" stroke="var(--accent)" stroke-width="1.4"/>'
    )


def _pauses(bursts: Sequence[Burst], spans: Sequence[Span], height: int) -> str:
    drawn = []
    for at in range(len(bursts) - 1):
        left, right = spans[at][1], spans[at + 1][0]
        words = human_time(bursts[at + 1].start - bursts[at].stop).split(" ")
        lines = ["pause", " ".join(words[:2]), " ".join(words[2:])]
        drawn.append(
            f'<rect x="{left + 3:.1f}" y="{TOP}" width="{right - left - 6:.1f}" height="{height - TOP - 22}" '
            f'fill="var(--card)" stroke="var(--line)" stroke-dasharray="3 3"/>'
            + "".join(
                f'<text x="{(left + right) / 2:.1f}" y="{y:.1f}" text-anchor="middle">{line}</text>'
                for y, line in zip((height / 2 - 6, height / 2 + 9, height / 2 + 24), lines, strict=True)
            )
        )
    return "".join(drawn)


def _times(bursts: Sequence[Burst], spans: Sequence[Span], height: int) -> str:
    """Write times of day at the ends of bursts, where there is room; the date where it changes."""
    drawn, free, day = [], 0.0, ""
    ends = [(b.start, s[0], "start") for b, s in zip(bursts, spans, strict=True)]
    ends += [(b.stop, s[1], "end") for b, s in zip(bursts, spans, strict=True)]
    for moment, x, anchor in sorted(ends):
        left = x if anchor == "start" else x - SIDE_BY_SIDE + 6
        if left < free or (anchor == "start" and left + SIDE_BY_SIDE > WIDTH):
            continue
        when = datetime.fromtimestamp(moment, UTC)
        text = when.strftime("%H:%M:%S") if day == when.strftime("%F") else when.strftime("%F %H:%M")
        day, free = when.strftime("%F"), left + SIDE_BY_SIDE
        drawn.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="{anchor}">{text}</text>')
    return "".join(drawn)


def _nice(value: float) -> float:
    """Round up to 1, 2, 4 or 5 times a power of ten.

    Examples
    --------
    >>> _nice(0.13), _nice(37), _nice(0)
    (0.2, 40.0, 1.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 10) if step * power >= value * (1 - 1e-9))
