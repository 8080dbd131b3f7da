"""``python -m benchmarks.report FILE``: make docs/benchmarks.md and its picture from the JSON of one run."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import FLOOR, SECTIONS, Row, Section

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = "pictures/benchmarks.svg"
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#994455", "#997700")

HEAD = """# Benchmarks

This page is made by `python -m benchmarks.report` from the JSON of one run of

```sh
.venv-test/bin/python -m benchmarks {names}--repeats {repeats} --json benchmarks.json
```

on {date}, at {commit}: {cpu}, {cores} cores, Python {python}; load before the run: {load:.1f}. Peers have
environments of their own: {peers}.

Every run of a program is a process. The programs of a row take turns, {repeats} each, after a turn in which their
results are compared; differences that remain are named. Numbers are medians, with the range in parentheses. "Times
ours" is the median of the ratios within each turn, of time and of CPU time: above 1, a program needs more than the
first one. When its modules are imported, and before its clock starts, another process touches a GiB of memory: a
virtual machine gives free memory back to its host, and the program that needs it next pays for that. CPU time is user
and system time; that of a process, seen from outside, is the time of its whole tree of processes, with imports. MiB is
the memory of its largest process. The floor is one plain loop on one core that decodes, downsamples and encodes the
same bytes.

![CPU time of each program, times that of imagery_dask]({picture})
"""


def page(found: dict[str, Any]) -> str:
    """Return the page."""
    named = {f"{name} {version}" for versions in found["peers"].values() for name, version in versions.items()}
    given = {"peers": ", ".join(sorted(named)), "picture": PICTURE, "names": "".join(f"{n} " for n in found["names"])}
    parts = [HEAD.format(**found | given)]
    for section in SECTIONS:
        rows = [row for row in section.rows if row.name in found["rows"]]
        if rows:
            parts.append(f"## {section.title}\n\n{section.text}\n\n" + _table(section, rows, found["rows"]))
    return "\n".join(parts)


def goals(row: Row, programs: dict[str, Any], process: bool) -> dict[str, str]:
    """Return what became of the goals of a row, by the program that they compare ours with; of programs that ran."""
    ours = _times(programs[row.programs[0].name], process, "cpu_s")
    said = {}
    for name, most in row.goals.items():
        theirs = _times(programs[name], process, "cpu_s") if name in programs else []
        if theirs and min(theirs) > 0:
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            reached = "reached" if ratio <= most else "missed"
            said[name] = f"goal: ours at most {most:g} times its CPU, {reached} ({_number(ratio)})"
    return said


def _table(section: Section, rows: list[Row], found: dict[str, Any]) -> str:
    lines = []
    for row in rows:
        title = row.title
        ours, said = next(iter(found[row.name].values())), goals(row, found[row.name], section.process)
        for name, program in found[row.name].items():
            wall, cpu = (_times(program, section.process, kind) for kind in ("wall_s", "cpu_s"))
            counts = dict(program["counts"])
            ratios = [
                _ratio(times, _times(ours, section.process, kind)) for times, kind in ((wall, "wall_s"), (cpu, "cpu_s"))
            ]
            lines.append({
                "": title,
                "program": name,
                "seconds": _spread(wall),
                "CPU s": _spread(cpu),
                "of the process": "" if section.process else _spread(_times(program, True, "cpu_s")),
                "times ours": "" if program is ours else ", ".join(ratios),
                "MiB": _number(max((run["peak_mib"] for run in program["runs"]), default=0)),
                "requests": f"{counts.pop('requests'):,}" if "requests" in counts else "",
                "MB": f"{counts.pop('bytes') / 1e6:.1f}" if "bytes" in counts else "",
                "further": "; ".join([
                    *(f"{name}: {_number(value)}" for name, value in (counts | program["figures"]).items()),
                    *program["notes"],
                    *filter(None, [said.get(name)]),
                ]),
            })  # fmt: skip
            title = ""
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return head + "".join(f"| {' | '.join(line[name] for name in columns)} |\n" for line in lines)


def _times(program: dict[str, Any], process: bool, kind: str) -> list[float]:
    return [run[f"process_{kind}" if process else kind] for run in program["runs"]]


def _ratio(times: list[float], ours: list[float]) -> str:
    return _number(statistics.median(a / b for a, b in zip(times, ours, strict=True))) if times and min(ours) else ""


def _spread(times: list[float]) -> str:
    if not times:
        return ""
    return f"{_number(statistics.median(times))} ({_number(min(times))} - {_number(max(times))})"


def _number(value: float) -> str:
    """Return a number with three digits that count, at most three of them after the point."""
    digits = 0 if isinstance(value, int) or not value else max(0, min(3, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def picture(found: dict[str, Any]) -> str:
    """Return an SVG of the ratios of CPU times."""
    rows = list(_ratios(found["rows"]))
    names = sorted({name for _, ratios in rows for name in ratios}, key=lambda name: (name == FLOOR, name))
    color = dict(zip(names, (*COLORS[: len(names) - 1], "#000000"), strict=False))
    left, step, top = 300, 17, 60
    width, height = 900, top + step * len(rows) + 30

    def x(ratio: float) -> float:
        return left + 20 + (math.log2(min(max(ratio, 1 / 8), 64)) + 3) * (width - left - 40) / 9

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{left}" y="15">CPU time, times that of imagery_dask</text>'
    ]
    parts += [
        f'<circle cx="{left + 125 * (n % 5)}" cy="{27 + 16 * (n // 5)}" r="5" fill="{color[name]}"/>'
        f'<text x="{left + 9 + 125 * (n % 5)}" y="{31 + 16 * (n // 5)}">{name}</text>'
        for n, name in enumerate(names)
    ]
    for power in range(-3, 7):
        at, shade = x(2.0**power), "#000000" if power == 0 else "#dddddd"
        parts.append(
            f'<line x1="{at:.0f}" x2="{at:.0f}" y1="{top}" y2="{height - 25}" stroke="{shade}"/>'
            f'<text x="{at:.0f}" y="{height - 10}" text-anchor="middle">{2.0**power:g}</text>'
        )
    for number, (title, ratios) in enumerate(rows):
        y = top + step * (number + 0.5)
        parts.append(f'<text x="{left}" y="{y + 4:.0f}" text-anchor="end">{title}</text>')
        parts += [f'<circle cx="{x(r):.0f}" cy="{y:.0f}" r="5" fill="{color[name]}"/>' for name, r in ratios.items()]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ratios(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield names of rows with peers, and the ratios of each program to ours."""
    for section in SECTIONS:
        for row in section.rows:
            peers = {
                program.name for program in row.programs[1:] if program.environment != "ours" or program.name == FLOOR
            }
            if not peers or not (programs := found.get(row.name)):
                continue
            ours = _times(programs[row.programs[0].name], section.process, "cpu_s")
            others = {name: _times(programs[name], section.process, "cpu_s") for name in peers & set(programs)}
            if ours and min(ours) > 0:
                yield (
                    row.name,
                    {
                        name: statistics.median(a / b for a, b in zip(times, ours, strict=True))
                        for name, times in sorted(others.items())
                    },
                )


def main() -> None:
    """Write the page and the picture."""
    found = json.loads(Path(sys.argv[1]).read_text())
    (DOCS / "benchmarks.md").write_text(page(found))
    (DOCS / PICTURE).write_text(picture(found))


if __name__ == "__main__":
    main()
