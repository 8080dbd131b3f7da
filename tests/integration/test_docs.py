"""The Python blocks of the documentation run, in their order, in an empty folder and without a network.

Blocks that begin with ```python are run; those that need something else (a cluster, a bucket, torch) begin with ```py.
A block that imports one of `OPTIONAL` is left out where that is not installed, and a page of `NEEDS` is skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Made of the program's text, not of examples.
LISTINGS = {"reference/settings.md"}
# Packages that `imagery_dask` does not need.
OPTIONAL = ("lsd_lite",)
# Packages that all blocks of a page need.
NEEDS = {"how-to/stacks.md": ("dask_image", "h5py", "tifffile")}
ABSENT = [name for name in OPTIONAL if find_spec(name) is None]


def blocks_of(page: Path) -> list[str]:
    blocks = BLOCK.findall(page.read_text())
    return [block for block in blocks if not any(f"from {name} import" in block for name in ABSENT)]


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if blocks_of(page) and str(page.relative_to(DOCS)) not in LISTINGS]


def test_pages_with_examples_are_found() -> None:
    assert DOCS / "index.md" in PAGES


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, demo_cache: Path) -> None:
    for name in NEEDS.get(str(page.relative_to(DOCS)), ()):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    script = "import matplotlib\nmatplotlib.use('agg')\n" + "\n".join(blocks_of(page))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:imagery_dask", "-c", script],
        cwd=tmp_path, env=os.environ | {"XDG_CACHE_HOME": str(demo_cache)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
