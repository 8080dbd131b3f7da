"""`client.browse` in Chromium: the planes of the volume, upright, with the ids that are under a click."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.volumes import random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient

pytest.importorskip("anywidget", reason="needs anywidget: pip install 'imagery_dask[notebooks]'")

from browser.chromium import BrowserUnavailable  # noqa: E402
from browser.widget_page import WidgetPage, open_widget  # noqa: E402

SHAPE, OFFSET = (60, 40, 12), (100, 50, 7)
IMAGE, IDS = smooth_image(SHAPE), random_labels(SHAPE, n=12, above_2_63=True)

# What the widget shows, drawn at one pixel for each voxel.
SHOWN = """
const [columns, rows] = model.get("volume").voxels;
const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
const context = canvas.getContext("2d");
context.imageSmoothingEnabled = false;
for (const layer of root.querySelectorAll(".stage img")) {
  context.globalAlpha = Number(getComputedStyle(layer).opacity);
  if (!layer.hidden) context.drawImage(layer, 0, 0, columns, rows);
}
const box = root.querySelector(".stage").getBoundingClientRect();
return { png: canvas.toDataURL(), box: [box.width, box.height], title: root.querySelector(".title").textContent };
"""
SLIDE = """
const [plane] = root.querySelectorAll("input");
for (const value of %s) { plane.value = value; plane.dispatchEvent(new Event("input")); }
await until(() => root.dataset.index === String(%s.at(-1)));
"""
CLICK = """
const box = root.querySelector(".stage").getBoundingClientRect(), [columns, rows] = model.get("volume").voxels;
const at = { clientX: box.left + (%d + 0.5) * box.width / columns, clientY: box.top + (%d + 0.5) * box.height / rows };
document.elementFromPoint(at.clientX, at.clientY).dispatchEvent(new MouseEvent("click", { ...at, bubbles: true }));
await until(() => [...root.querySelectorAll("code")].length && %s);
const marker = root.querySelector(".marker").getBoundingClientRect();
const texts = Object.fromEntries([...root.querySelectorAll(".readout .row")].map((row) => [
  row.querySelector(".label").textContent, row.querySelector("code").textContent]));
const middle = [(marker.left + marker.right) / 2, (marker.top + marker.bottom) / 2];
return { texts, off: [middle[0] - at.clientX, middle[1] - at.clientY] };
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> ImageryClient:
    folder = tmp_path_factory.mktemp("volumes")
    place: dict[str, Any] = {"voxel_offset": OFFSET, "chunk_size": (16, 16, 4)}
    return ImageryClient(
        image_source=write_volume(folder / "em", IMAGE, **place),
        segmentation_source=write_volume(folder / "seg", IDS, layer_type="segmentation", **place),
    )


@pytest.fixture(scope="module")
def opened(client: ImageryClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, WidgetPage]]:
    widget = client.browse([OFFSET, np.add(OFFSET, SHAPE)], opacity=0.5)
    try:
        with open_widget(widget, tmp_path_factory.mktemp("chromium")) as page:
            yield widget, page
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))
    finally:
        widget.close()


def expected(widget: Any, z: int, opacity: float) -> Any:
    """Return the picture of a plane."""
    image, ids = IMAGE[..., z], IDS[..., z]
    colors = widget._drawer.colors | {0: (0, 0, 0)}
    shown = np.array([colors[root] for root in ids.ravel().tolist()]).reshape(*ids.shape, 3)
    colored = np.where((ids != 0)[..., np.newaxis], opacity, 0)
    mixed = image[..., np.newaxis] * (1 - colored) + shown * colored
    return np.swapaxes(mixed, 0, 1)


def click(page: WidgetPage, column: int, row: int, z: int) -> dict[str, Any]:
    """Click on a voxel of the plane that is shown, and return what is read when the answer has come."""
    wanted = f'root.textContent.includes("{OFFSET[0] + column}, {OFFSET[1] + row}, {OFFSET[2] + z}")'
    return dict(page.run(CLICK % (column, row, wanted)))


def picture(shown: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["png"].partition(",")[2]))).convert("RGB"), float)


def test_planes_are_those_of_the_volume(opened: tuple[Any, WidgetPage]) -> None:
    widget, page = opened
    page.run('await until(() => root.dataset.index === "6");')
    for planes in ([6], [7, 8, 9], [2]):
        page.run(SLIDE % (planes, planes))
        shown, z = page.run(SHOWN), planes[-1]
        np.testing.assert_allclose(picture(shown), expected(widget, z, 0.5), atol=2)
        assert shown["title"] == f"z = {OFFSET[2] + z} ({(OFFSET[2] + z) * 40 + 20} nm)"
        assert widget.index == z
    width, height = shown["box"]
    assert abs(width / height - 60 / 40) < 0.02


def test_the_opacity_is_changed_in_the_page(opened: tuple[Any, WidgetPage]) -> None:
    widget, page = opened
    page.run(SLIDE % ([4], [4]))
    before = len([message for message in page.received if "index" in message.get("state", {})])
    page.run("""
        const input = root.querySelectorAll("input")[1];
        input.value = 1; input.dispatchEvent(new Event("input"));
    """)
    np.testing.assert_allclose(picture(page.run(SHOWN)), expected(widget, 4, 1), atol=2)
    page.run("await until(() => true);")
    assert len([message for message in page.received if "index" in message.get("state", {})]) == before
    widget.opacity = 0.5


def test_a_click_shows_id_and_position(opened: tuple[Any, WidgetPage]) -> None:
    widget, page = opened
    page.run(SLIDE % ([5], [5]))
    found = {(17, 11), (0, 0), (59, 39), tuple(np.argwhere(IDS[..., 5] > 2**63)[0].tolist())}
    for column, row in sorted(found):
        clicked = click(page, column, row, 5)
        voxel = (OFFSET[0] + column, OFFSET[1] + row, OFFSET[2] + 5)
        nm = [(at + 0.5) * size for at, size in zip(voxel, (8, 8, 40), strict=True)]
        assert clicked["texts"] == {
            "root id": str(IDS[column, row, 5]),
            "voxel": ", ".join(map(str, voxel)),
            "nm": ", ".join(f"{value:g}" for value in nm),
        }
        assert np.abs(clicked["off"]).max() < 1
        assert widget.ids == {"root id": int(IDS[column, row, 5])}
        assert widget.voxel == voxel


def test_ids_are_copied(opened: tuple[Any, WidgetPage]) -> None:
    _, page = opened
    page.run(SLIDE % ([5], [5]))
    click(page, 17, 11, 5)
    copied = page.run("""
        let text;
        Object.defineProperty(navigator, "clipboard", { value: { writeText: async (given) => { text = given; } } });
        root.querySelector(".readout button").click();
        await until(() => root.querySelector(".readout button").textContent === "copied");
        return text;
    """)
    assert copied == str(IDS[17, 11, 5])


def test_an_error_is_shown_and_the_slider_goes_on(client: ImageryClient, tmp_path: Path) -> None:
    volume = tmp_path / "em"
    path = write_volume(volume, IMAGE, chunk_size=(64, 64, 4), compress=False)
    widget = ImageryClient(image_source=path).browse([(0, 0, 0), SHAPE], read_ahead=0)
    next(volume.glob("8_8_40/*_8-12")).write_bytes(b"damaged")
    try:
        with open_widget(widget, tmp_path / "chromium") as page:
            shown = page.run("""
                await until(() => root.dataset.index === "6");
                const plane = root.querySelector("input");
                plane.value = 9; plane.dispatchEvent(new Event("input"));
                await until(() => root.dataset.index === "9");
                const error = root.querySelector(".stage .error").textContent;
                plane.value = 3; plane.dispatchEvent(new Event("input"));
                await until(() => root.dataset.index === "3");
                return [error, root.querySelector(".stage .error").hidden];
            """)
    except BrowserUnavailable as reason:
        pytest.skip(str(reason))
    finally:
        widget.close()
    assert "8-12" in shown[0]
    assert shown[1]
