"""Make the pictures of the documentation and of the README from the demo volumes: ``python docs/make_pictures.py``."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("agg")

from imagery_dask import demo

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    """Write every picture."""
    PICTURES.mkdir(exist_ok=True)
    client = demo.open()
    save(client.show(demo.CENTER, bbox_size=(384, 384, 1)), "show.jpg")
    save(client.show(demo.CENTER, bbox_size=(256, 256, 48), n=6), "contact-sheet.jpg")
    save(client.orthoviews(demo.CENTER, bbox_size=(384, 384, 48)), "orthoviews.jpg")
    with tempfile.TemporaryDirectory() as folder:
        result = demo.run_cave_demo(Path(folder), lambda text: None, cluster=None)
        small(Image.open(result.picture), "before-and-after.jpg")


def save(figure: matplotlib.figure.Figure, name: str) -> None:
    """Write a figure."""
    content = io.BytesIO()
    figure.savefig(content, dpi=100, bbox_inches="tight")
    small(Image.open(content), name)


def small(picture: Image.Image, name: str) -> None:
    """Write a picture as JPEG: imagery is noise to PNG."""
    picture.convert("RGB").save(PICTURES / name, quality=85, optimize=True)


if __name__ == "__main__":
    main()
