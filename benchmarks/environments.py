"""Environments of the peers, each made once from its pinned requirements, since their dependencies exclude each other.

igneous needs zfpy, with which numcodecs does not import on Python 3.11; the boto3 of cloud-files excludes s3fs.
Webknossos, ome-zarr, zarr 2 and napari are there for tests (`tests/support/foreign`), napari beside this package.

``uv pip compile --universal --python-version 3.11.2 --no-header --no-annotate`` makes the requirements.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements")
OURS = "ours"
# Packages to name beside the results, of those in the requirements.
NAMED = re.compile(
    r"^(cloud-volume|tensorstore|imageryclient|igneous-pipeline|ngff-zarr|dask|zarr|numpy)==([^\s;]+)", re.MULTILINE
)


def python_of(environment: str, cache: Path, create: bool) -> Path | None:
    """Return the Python of an environment; make it if it does not exist, or return None without `create`."""
    if environment == OURS:
        return Path(sys.executable)
    requirements = REQUIREMENTS / f"{environment}.txt"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    kind = hashlib.sha1(requirements.read_bytes() + version.encode()).hexdigest()[:8]
    folder = cache / "environments" / f"{environment}-{kind}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        if not create:
            return None
        print(f"making the environment {folder}", file=sys.stderr)
        uv = shutil.which("uv")
        make = [uv, "venv", "-q", "--clear", "-p", sys.executable] if uv else [sys.executable, "-m", "venv", "--clear"]
        pip = [uv, "pip", "install", "-q", "--python"] if uv else []
        subprocess.run([*make, folder], check=True)
        install = [*pip, python] if uv else [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, "-r", requirements], check=True)
        ready.touch()
    return python


def versions_of(environment: str) -> dict[str, str]:
    """Return the pinned versions of the packages that matter, for this Python."""
    text = (REQUIREMENTS / f"{environment}.txt").read_text()
    new = sys.version_info >= (3, 12)
    lines = [
        line for line in text.splitlines() if ("python_full_version < '3.12'" in line) is not new or ";" not in line
    ]
    return dict(NAMED.findall("\n".join(lines)))
