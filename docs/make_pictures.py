"""Make the pictures of the documentation and of the README from the demo volumes: ``python docs/make_pictures.py``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from imagery_dask import demo

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    """Write every picture."""
    PICTURES.mkdir(exist_ok=True)
    client = demo.open()
    save(client.show(demo.CENTER, bbox_size=(384, 384, 1)), "show.png")
    save(client.show(demo.CENTER, bbox_size=(256, 256, 48), n=6), "contact-sheet.png")
    save(client.orthoviews(demo.CENTER, bbox_size=(384, 384, 48)), "orthoviews.png")
    with tempfile.TemporaryDirectory() as folder:
        result = demo.run_cave_demo(Path(folder), lambda text: None, cluster=None)
        (PICTURES / "before-and-after.png").write_bytes(result.picture.read_bytes())


def save(figure: matplotlib.figure.Figure, name: str) -> None:
    """Write a figure of a few hundred kilobytes at most."""
    figure.savefig(PICTURES / name, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
