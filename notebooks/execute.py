"""Run the notebooks and keep their outputs, small enough for a repository page: ``python notebooks/execute.py``."""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).parent


def main(names: list[str]) -> None:
    """Run the named notebooks, or all of them."""
    with tempfile.TemporaryDirectory(prefix="notebooks-") as folder:
        # Outputs show paths: not those of anybody's home.
        os.environ["XDG_CACHE_HOME"] = folder
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            if not names or path.stem in names:
                execute(path, Path(folder))
                print(f"{path.name}: {path.stat().st_size:,} bytes")


def execute(path: Path, folder: Path) -> None:
    """Run one notebook in a folder and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/jpeg"] = smaller(output["data"].pop("image/png"))
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


def smaller(picture: str) -> str:
    """Return a PNG picture as JPEG, both base64: imagery is noise to PNG."""
    content = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").save(content, "jpeg", quality=80, optimize=True)
    return base64.b64encode(content.getvalue()).decode()


if __name__ == "__main__":
    main(sys.argv[1:])
