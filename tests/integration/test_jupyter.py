"""In a kernel of Jupyter a figure is shown once, a client as HTML, and the widget opens and answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.volumes import random_labels, smooth_image, write_volume

nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'imagery_dask[notebooks]'")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("anywidget")

SHAPE = (64, 48, 8)
CELLS = [
    "from imagery_dask import ImageryClient\n"
    "client = ImageryClient(image_source='em', segmentation_source='seg')\n"
    "bounds = [(0, 0, 0), (64, 48, 8)]\n"
    "client",
    "client.show(bounds)",
    "kept = client.show(bounds)",
    "import matplotlib.pyplot as plt\nfigure, ax = plt.subplots()\nclient.show(bounds, ax=ax)",
    "browser = client.browse(bounds)\nbrowser",
    "browser.index = 2\nbrowser._clicked(browser, {'column': 1, 'row': 2, 'index': 2}, [])\n"
    "print(browser.frame['index'], browser.voxel, browser.ids['root id'])\nbrowser.close()",
    "client.show(bounds)",
]


def test_a_notebook_shows_each_thing_once(tmp_path: Path) -> None:
    ids = random_labels(SHAPE)
    write_volume(tmp_path / "em", smooth_image(SHAPE))
    write_volume(tmp_path / "seg", ids, layer_type="segmentation")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3", resources=resources).execute()
    kinds = [[sorted(output.get("data", {"text": ""})) for output in cell.outputs] for cell in notebook.cells]
    figure = ["image/png", "text/plain"]
    assert kinds[:4] == [[["text/html", "text/plain"]], [figure], [], [figure]]
    assert "application/vnd.jupyter.widget-view+json" in kinds[4][0]
    assert notebook.cells[5].outputs[0].text == f"2 (1, 2, 2) {ids[1, 2, 2]}\n"
    assert kinds[6] == [figure]  # also once pyplot is loaded, which has a way of its own to show figures
