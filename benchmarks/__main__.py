"""``python -m benchmarks [NAME ...] [--quick] [--json FILE]``: measure rows, and write what was found as JSON.

``python -m benchmarks.report FILE`` makes docs/benchmarks.md from it. Nginx is needed (Debian: nginx-light), and uv is
used where it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.environments import OURS, versions_of
from benchmarks.report import goals
from benchmarks.rows import SECTIONS
from benchmarks.runner import ROOT, Failed, Runner
from benchmarks.servers import Missing


def main() -> None:
    """Measure the chosen rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows, by the beginning of their names; default: all")
    parser.add_argument("--quick", action="store_true", help="check results and counts on small data, without times")
    parser.add_argument("--small", action="store_true", help="measure small data, to try programs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each program, which take turns")
    parser.add_argument("--cache", type=Path, default=ROOT / "benchmarks" / "results", help="data and environments")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    options = parser.parse_args()
    rows = [
        row for section in SECTIONS for row in section.rows
        if row.name.startswith(tuple(options.names)) or not options.names and (row.in_quick or not options.quick)
    ]  # fmt: skip
    if options.list:
        print("\n".join(f"{row.name:28} {row.title}" for row in rows))
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    runner = Runner(options.cache.resolve(), options.quick or options.small, 0 if options.quick else options.repeats)
    found: dict[str, Any] = machine() | {
        "names": options.names, "repeats": options.repeats, "small": runner.small, "rows": {},
    }  # fmt: skip
    failures = []
    try:
        for row in rows:
            started = time.perf_counter()
            try:
                programs = found["rows"][row.name] = runner.measure(row)
                runner.check_counts(row, programs)
            except Missing as missing:
                print(f"{row.name}: not measured, since {missing}", flush=True)
                continue
            except Failed as failure:
                failures.append(row.name)
                print(f"FAILED {failure}", flush=True)
                continue
            print(f"{row.name} ({time.perf_counter() - started:.1f} s)" + _short(programs), flush=True)
            process = any(section.process and row in section.rows for section in SECTIONS)
            for name, said in goals(row, programs, process).items():
                print(f"    {name}: {said}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        runner.close()
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")


def _short(programs: dict[str, Any]) -> str:
    """Return a line for each program."""
    return "".join(
        f"\n    {name:16} "
        + "; ".join(f"{run['wall_s']:.2f} s, CPU {run['cpu_s']:.2f} s, process {run['process_cpu_s']:.2f} s"
                    for run in program["runs"][-1:])
        + f" {program['counts'] or ''} {'; '.join(program['notes'])}"
        for name, program in programs.items()
    )  # fmt: skip


def _environments() -> set[str]:
    programs = [program for section in SECTIONS for row in section.rows for program in row.programs]
    return {program.environment for program in programs} - {OURS}


def machine() -> dict[str, Any]:
    """Return the date, the commit, the machine and the versions of the peers."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": git.stdout.strip(),
        "python": platform.python_version(),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "peers": {name: versions_of(name) for name in sorted(_environments())},
    }


if __name__ == "__main__":
    main()
