"""The HTML report of an export: what was written, what was not, and why, however the export ended."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dask.array as da
import imageio.v2 as imageio
import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray
from support.settings import Configure
from support.streams import without_dashboard
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.cli import main
from imagery_dask.errors import BlockFailedError, TooManyMissingError
from imagery_dask.export.reports.block_states import STATES
from imagery_dask.export.reports.html_charts import block_map, throughput
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.records.receipts import RECEIPT
from imagery_dask.run import RunReport

SHAPE = (64, 64, 32)
BLOCK = (16, 16, 16)
BLOCKS = 4 * 4 * 2
EMPTY = {"meta", "br", "img"}


@pytest.fixture(autouse=True)
def _small_blocks(configure: Configure) -> None:
    configure("export.block_bytes", 16**3)
    configure("export.small_block_bytes", 16**3)


@pytest.fixture(scope="module")
def data() -> NDArray[np.uint8]:
    return coordinate_volume(SHAPE, dtype=np.uint8)


class Page(HTMLParser):
    """Text, tags and URLs of an HTML page, whose tags must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def pictures(self) -> list[NDArray[Any]]:
        heads = [address.partition(",") for address in self.addresses]
        return [np.asarray(imageio.imread(io.BytesIO(base64.b64decode(content)))) for _, _, content in heads]

    def check_self_contained(self) -> None:
        """Check that the page loads nothing and runs no script."""
        assert not self.tags.keys() & {"script", "link", "iframe", "object", "base"}
        assert all(address.startswith("data:image/png;base64,") for address in self.addresses)
        assert not re.search(r"url\(|@import|https?://", self.source)


def numbers_of(page: Page) -> dict[str, str]:
    return {
        label: value for value, label in re.findall(r"<div(?: class=bad)?><b>(.*?)</b><span>(.*?)</span>", page.source)
    }


def states_of(page: Page) -> dict[str, int]:
    return {name: int(count) for name, count in re.findall(r"</i>([a-z ]+): (\d+)</span>", page.source)}


# ------------------------------------------------------------------------------------------------------ real exports


def test_a_complete_export_is_reported_with_pictures(tmp_path: Path, threads: Client, data: Any) -> None:
    ids = random_labels(SHAPE, n=30)
    source = write_volume(tmp_path / "em", data, chunk_size=BLOCK)
    segmentation = write_volume(tmp_path / "ids", ids, chunk_size=BLOCK, layer_type="segmentation")
    client = ImageryClient(image_source=source, segmentation_source=segmentation)
    out, file = tmp_path / "out.zarr", tmp_path / "reports" / "report.html"
    report = to_zarr(
        client.dataset([[0, 0, 0], SHAPE]), out, chunks=BLOCK, levels=2, cluster=threads, progress=False, report=file
    )
    page = Page(file)
    page.check_self_contained()
    assert f"Complete: all {report.blocks} blocks are written." in page.text
    assert numbers_of(page)["blocks written"] == f"{report.blocks} of {report.blocks}"
    assert states_of(page) == {"done": report.blocks}
    assert str(out) in page.text
    assert source in page.text
    image, *_ = page.pictures
    assert len(page.pictures) == 8
    np.testing.assert_array_equal(image, data[:, :, 4].T)
    drawn = page.pictures[4]
    np.testing.assert_array_equal(drawn[..., 3] > 0, ids[:, :, 4].T != 0)
    assert "image, level 0, z 4 of 32" in page.text
    before = file.read_bytes()
    file.unlink()
    to_zarr(
        client.dataset([[0, 0, 0], SHAPE]), out, chunks=BLOCK, levels=2, cluster=threads, progress=False, report=file
    )  # does no blocks
    assert len(file.read_bytes()) == pytest.approx(len(before), rel=0.05)
    assert "the last call did 0 blocks in 0 s." in Page(file).text


def test_failed_blocks_and_missing_chunks_are_reported_until_repaired(
    tmp_path: Path, threads: Client, data: Any
) -> None:
    path = write_volume(tmp_path / "em", data, chunk_size=BLOCK)
    delete_chunks(path, 0, lambda start: start in ((16, 0, 16), (0, 0, 0)))
    broken = tmp_path / "em" / "8_8_40" / "32-48_16-32_0-16.gz"
    kept = broken.read_bytes()
    broken.unlink()
    broken.with_suffix("").write_bytes(b"<script>alert(1)</script>")
    volume, out = ImageryClient(image_source=path).image_volume(), tmp_path / "a <b>&.zarr"
    file = tmp_path / "report.html"
    options: dict[str, Any] = {"chunks": BLOCK, "cluster": threads, "progress": False, "report": file}
    with pytest.raises(BlockFailedError):
        to_zarr(volume, out, **options)
    page = Page(file)
    page.check_self_contained()
    assert f"Incomplete: 1 of {BLOCKS} blocks are not written." in page.text
    assert "a <b>&.zarr" in page.text
    assert states_of(page) == {"done": BLOCKS - 3, "missing chunks": 2, "failed": 1}
    assert "Blocks that failed: 1" in page.text
    assert "CorruptChunkError: Storage chunk 8_8_40/32-48_16-32_0-16" in page.text
    assert "Missing chunks of the source" in page.text
    assert "8_8_40/16-32_0-16_16-32" in page.text
    assert numbers_of(page)["source chunks missing"] == "2"
    broken.with_suffix("").unlink()
    broken.write_bytes(kept)
    to_zarr(volume, out, **options)
    page = Page(file)
    assert states_of(page) == {"done": BLOCKS - 2, "missing chunks": 2}
    assert "Blocks that failed" not in page.text


def test_an_interrupted_export_writes_a_report(tmp_path: Path, threads: Client, data: Any) -> None:
    def stop(report: RunReport) -> None:
        if report.done == 5:
            raise KeyboardInterrupt

    file = tmp_path / "report.html"
    with pytest.raises(KeyboardInterrupt):
        to_precomputed(
            data, tmp_path / "out", chunks=BLOCK, resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20),
            block_mib=16**3 / 2**20, cluster=threads, progress=stop, report=file,
        )  # fmt: skip
    page = Page(file)
    page.check_self_contained()
    assert "It was interrupted." in page.text
    assert states_of(page)["not done"] > 0
    assert "No picture: " in page.text  # of chunks that are not written


def test_an_export_that_ends_early_reports_why(tmp_path: Path, threads: Client, data: Any) -> None:
    path = write_volume(tmp_path / "em", data, chunk_size=BLOCK)
    delete_chunks(path, 0, lambda start: start[2] == 0)
    volume, file = ImageryClient(image_source=path).image_volume(), tmp_path / "report.html"
    with pytest.raises(TooManyMissingError):
        to_zarr(
            volume, tmp_path / "out.zarr", chunks=BLOCK, max_missing=3, cluster=threads, progress=False, report=file
        )
    assert "max_missing (--max-missing) allows 3" in Page(file).text


def test_reasons_and_names_are_escaped(tmp_path: Path, threads: Client, data: Any) -> None:
    def fail(block: Any, block_info: Any = None) -> Any:
        if block_info and block_info[0]["chunk-location"] == (1, 2, 0):
            raise ZeroDivisionError('<script>alert("1")</script> & <img src=x>')
        return block

    array = da.from_array(data, chunks=BLOCK).map_blocks(fail, dtype=data.dtype)
    file = tmp_path / "report.html"
    with pytest.raises(BlockFailedError):
        to_zarr(array, tmp_path / "out.zarr", chunks=BLOCK, cluster=threads, progress=False, report=file)
    page = Page(file)
    page.check_self_contained()
    assert 'ZeroDivisionError: <script>alert("1")</script> & <img src=x>' in page.text


@pytest.mark.parametrize("what", ["imagery", "masks", "labels", "overlay"])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_exports_of_slices_are_reported_with_pictures(
    tmp_path: Path, threads: Client, data: Any, what: Any, form: Any
) -> None:
    array = data if what == "imagery" else random_labels(SHAPE, n=6)
    file = tmp_path / "report.html"
    to_png(array, tmp_path / "s" / "em", what=what, format=form, tile=40, cluster=threads, progress=False, report=file)
    page = Page(file)
    page.check_self_contained()
    assert len(page.pictures) == 4
    if what == "imagery":
        np.testing.assert_array_equal(page.pictures[1], data[:40, :40, 12].T)
    assert "Complete" in page.text


def test_pictures_of_16_bit_slices_are_shown_in_8_bits(tmp_path: Path, threads: Client) -> None:
    file = tmp_path / "report.html"
    array = coordinate_volume(SHAPE, dtype=np.uint16)
    to_png(array, tmp_path / "em", cluster=threads, progress=False, report=file)
    assert {(picture.dtype.name, picture.shape) for picture in Page(file).pictures} == {("uint8", (64, 64))}


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "bool"])
def test_imagery_of_other_dtypes_is_shown(tmp_path: Path, threads: Client, dtype: str) -> None:
    array = coordinate_volume(SHAPE, dtype=np.uint8).astype(dtype)
    if dtype == "float32":
        array[3, 3] = np.nan
    file = tmp_path / "report.html"
    to_zarr(array, tmp_path / "out.zarr", chunks=BLOCK, cluster=threads, progress=False, report=file)
    assert len(Page(file).pictures) == 4


def test_several_channels_are_shown_in_color(tmp_path: Path, threads: Client) -> None:
    array = coordinate_volume((*SHAPE, 3), dtype=np.uint8)
    file = tmp_path / "report.html"
    to_zarr(array, tmp_path / "out.zarr", chunks=BLOCK, cluster=threads, progress=False, report=file)
    np.testing.assert_array_equal(Page(file).pictures[0], array[:, :, 4].swapaxes(0, 1))


# ---------------------------------------------------------------------------------------------------- its location


def test_an_invalid_report_path_is_refused_before_anything_is_written(tmp_path: Path, data: Any) -> None:
    out = tmp_path / "out.zarr"
    (tmp_path / "file").touch()
    for bad, error, message in (
        (tmp_path, ValueError, "is a folder"),
        ("", ValueError, "report must be a file"),
        (out / "report.html", ValueError, "choose a place beside it"),
        (tmp_path / "file" / "report.html", OSError, "Cannot write to"),
    ):
        with pytest.raises(error, match=message):
            to_zarr(data, out, progress=False, report=bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_line_writes_a_report_of_every_format(
    tmp_path: Path, threads: Client, data: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_volume(tmp_path / "em", data, chunk_size=BLOCK)
    address = threads.scheduler_info()["address"]
    for kind in ("zarr", "precomputed", "png"):
        words = ["imagery-dask", "export", kind, tmp_path / kind / "out", "--image-source", source, "--bounds", 0, 0, 0,
                 *SHAPE, "--cluster", address, "--report", tmp_path / f"{kind}.html"]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0, without_dashboard(capfd.readouterr().err)) == (0, "")
        assert "Complete" in Page(tmp_path / f"{kind}.html").text


# ----------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("counts", [(1, 1, 1), (100, 100, 100), (2000, 1, 1), (1, 3000, 70), (1, 1, 5000)])
def test_maps_of_many_blocks_are_small(tmp_path: Path, counts: tuple[int, int, int]) -> None:
    x, y, z = (tuple(range(n + 1)) for n in counts)
    plan = BlockPlan((x, y, z), (True, True, True))
    states = np.zeros(len(plan), np.uint8)
    states[len(plan) * 3 // 4] = STATES.index("failed")
    file = tmp_path / "page.html"
    file.write_text(f"<html><body>{block_map(plan, states)}</body></html>")
    assert file.stat().st_size < 250_000
    page = Page(file)
    assert page.tags["svg"] <= 64
    assert len(re.findall('class="failed"', page.source)) == 1
    assert "1 failed" in page.text


@pytest.mark.parametrize("bursts", [[1], [1, 1], [50] * 40, [3, 1000]])
def test_charts_of_throughput_hold_numbers_for_any_times(tmp_path: Path, bursts: list[int]) -> None:
    times = [1.8e9 + day * 86_400 + np.linspace(0, 100 * count, count) for day, count in enumerate(bursts)]
    rows = np.zeros(sum(bursts), RECEIPT)
    rows["finished"], rows["written_bytes"] = np.concatenate(times), 10**6
    file = tmp_path / "page.html"
    file.write_text(f"<html><body>{throughput(rows)}</body></html>")
    page = Page(file)
    assert "nan" not in page.source
    assert page.text.count("pause") <= 11
