"""The notebooks run from the first to the last cell without network access, and are committed with their outputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "01-lazy-slicing",
    "02-overlays",
    "03-export-and-open",
    "04-cave-time",
    "05-ml-patches",
    "06-cluster",
    "07-time-travel",
]
# A repository's page does not show larger ones.
LARGEST = 1_000_000

nbformat: Any = pytest.importorskip("nbformat", reason="needs nbformat: pip install '.[notebooks]'")
nbclient: Any = pytest.importorskip("nbclient")


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_notebooks_are_found() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_small_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < LARGEST
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not [output for output in outputs_of(notebook) if output.output_type == "error"]
    text = path.read_text()
    assert "MICrONS" in text
    assert "FlyWire" in text
    assert not re.search(r"/home/|/root/|/Users/", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.long
def test_a_notebook_runs(tmp_path: Path, demo_cache: Path, path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    kinds = [sorted(output.data) for output in outputs_of(notebook) if "data" in output]
    environment = {**os.environ, "XDG_CACHE_HOME": str(demo_cache)}
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    outputs = outputs_of(notebook)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    # Committed pictures are JPEG, which are smaller.
    shown = [output.data for output in outputs if "data" in output]
    assert [sorted({kind.replace("/png", "/jpeg") for kind in data}) for data in shown] == kinds


@pytest.mark.long
def test_a_notebook_is_executed_in_place(tmp_path: Path) -> None:
    script = tmp_path / "execute.py"
    script.write_text((FOLDER / "execute.py").read_text())
    cells = [nbformat.v4.new_code_cell("import matplotlib.pyplot as plt\nplt.imshow([[1, 2]]);")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / "one.ipynb")
    subprocess.run([sys.executable, script, "one"], check=True, timeout=120)
    (output,) = outputs_of(nbformat.read(tmp_path / "one.ipynb", as_version=4))
    assert "image/jpeg" in output["data"]
