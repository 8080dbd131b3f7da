"""Clients, masks, reports and plans say what they are, in few lines, with few requests and without secrets."""

from __future__ import annotations

import base64
import io
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from distributed import Client
from PIL import Image
from support.http_server import Fault, FileServer
from support.volumes import random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.client import summaries
from imagery_dask.export.verify import VerifyReport
from imagery_dask.run.report import FailedBlock, RunReport

SHAPE, CHUNKS = (96, 64, 32), (16, 16, 8)


@pytest.fixture
def server(tmp_path: Path, http_server_factory: Callable[..., FileServer]) -> FileServer:
    write_volume(tmp_path / "em", smooth_image(SHAPE), chunk_size=CHUNKS, mips=2, voxel_offset=(100, 0, -8))
    write_volume(
        tmp_path / "seg", random_labels(SHAPE), layer_type="segmentation", chunk_size=CHUNKS, voxel_offset=(100, 0, -8)
    )
    return http_server_factory(tmp_path)


@pytest.fixture
def client(server: FileServer) -> ImageryClient:
    url = server.url.replace("http://", "http://me:secret@")
    client = ImageryClient(image_source=f"{url}/em?token=secret", segmentation_source=f"{server.url}/seg")
    server.reset()
    return client


def picture(html: str) -> Any:
    found = re.search(r"data:image/png;base64,([\w+/=]+)", html)
    return None if found is None else np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))


def test_a_client_names_its_layers(client: ImageryClient, server: FileServer) -> None:
    text = repr(client)
    for words in (
        "/em", "/seg", "uint8, raw", "uint64", "mip 0 of 0 to 1", "96 x 64 x 32 voxels of 8 x 8 x 40 nm", "197 kB",
        "x 100 to 196, y 0 to 64, z -8 to 24; 768 x 512 x 1,280 nm",
    ):  # fmt: skip
        assert words in text
    assert len(text) < 800
    assert "secret" not in text + client._repr_html_()
    assert repr(pickle.loads(pickle.dumps(client))) == text


def test_the_html_of_a_client_reads_one_thumbnail(client: ImageryClient, server: FileServer) -> None:
    html = client._repr_html_()
    expected = smooth_image(SHAPE)[::2, ::2, 16]
    np.testing.assert_array_equal(picture(html), expected.T)
    assert server.count() == server.count("/em/16_16_40/") == 3 * 2
    assert client._repr_html_() == html
    repr(client)
    assert server.count() == 3 * 2
    assert len(html) < 20_000
    for words in ("16 x 16 x 40", "48 x 32 x 32", "50, 0, -8", "16 x 16 x 8", "(read)"):
        assert words in html


def test_a_thumbnail_is_a_part_of_a_large_plane(
    client: ImageryClient, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries.thumbnail_box, "__defaults__", (2 * 16 * 16 * 8,))
    np.testing.assert_array_equal(picture(client._repr_html_()), smooth_image(SHAPE)[::2, ::2, 16][16:32].T)
    assert server.count() == 2


def test_no_thumbnail_of_large_chunks_or_of_nothing(server: FileServer, tmp_path: Path) -> None:
    path = write_volume(tmp_path / "thick", np.ones((128, 128, 128), np.uint16), chunk_size=(128, 128, 128))
    assert picture(ImageryClient(image_source=path)._repr_html_()) is None
    path = write_volume(tmp_path / "empty", np.zeros(SHAPE, np.uint8), chunk_size=CHUNKS)
    assert picture(ImageryClient(image_source=path)._repr_html_()) is None


@pytest.mark.parametrize("seconds", [0.0, 30.0], ids=["an error", "no answer"])
def test_a_thumbnail_that_cannot_be_read_is_left_out(
    client: ImageryClient, server: FileServer, seconds: float, monkeypatch: pytest.MonkeyPatch, configure: Any,
    logged_warnings: list[str],
) -> None:  # fmt: skip
    configure("requests.attempts", 1)
    if seconds:
        monkeypatch.setattr(summaries, "PATIENCE_S", 0.1)
        monkeypatch.setattr(summaries, "_draw", lambda *arguments: __import__("time").sleep(seconds))
    else:
        server.faults = lambda path, n: Fault(status=403)
    assert picture(client._repr_html_()) is None
    assert logged_warnings == []


def test_ids_are_colored_in_a_thumbnail(server: FileServer) -> None:
    shown = picture(ImageryClient(segmentation_source=f"{server.url}/seg")._repr_html_())
    assert shown.shape == (*SHAPE[1::-1], 4)
    assert len(np.unique(shown[..., :3].reshape(-1, 3), axis=0)) > 5


def test_public_sources_have_a_link_to_a_viewer(client: ImageryClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "open in Neuroglancer" not in client._repr_html_()
    settings = client._settings
    assert settings.image is not None
    public = replace(settings.image, path="precomputed://https://host/em")
    monkeypatch.setattr(client, "_settings", replace(settings, image=public, segmentation=None))
    link = re.search(r'href="(https://[^"]+)"', client._repr_html_())
    assert link is not None
    assert "host/em" in unquote(link[1])


def test_masks_say_what_they_are_and_read_nothing(client: ImageryClient, server: FileServer) -> None:
    masks = client.split_segmentation_cutout([(100, 0, -8), (132, 32, 0)], scale_to_bounds=False)
    for text in (repr(masks), masks._repr_html_()):
        assert all(words in text for words in ("/seg, mip 0", "32 x 32 x 8 voxels", "8.19 kB", "not read yet"))
    assert server.count() == 0


@pytest.mark.usefixtures("sampled_here")
def test_reports_and_plans_are_short(client: ImageryClient, tmp_path: Path, threads: Client) -> None:
    volume = client.image_volume()
    planned = client.plan_export([(100, 0, -8), (132, 32, 0)], tmp_path / "out.zarr", samples=1)
    report = to_zarr(volume, tmp_path / "out.zarr", cluster=threads, progress=False)
    for value, words in (
        (planned, ["Plan of a zarr export", "blocks", "fingerprint", "to write"]),
        (planned.plan, ["ExportPlan: zarr", "blocks", "fingerprint"]),
        (report, ["RunReport: complete", f"{report.blocks} of {report.blocks} written", "197 kB"]),
    ):
        assert all(word in text for word in words for text in (repr(value), value._repr_html_()))
        assert len(repr(value)) < 1500
    many = RunReport(blocks=9000, failed=[FailedBlock(f"b{n}", "<b>reason</b>") for n in range(1000)], failures=8000)
    assert "7,995 more blocks failed" in repr(many)
    assert len(repr(many)) < 800
    assert "<b>reason" not in many._repr_html_()


def test_a_verification_says_what_it_found() -> None:
    good, bad = (
        VerifyReport(10, 0, 4, 2),
        VerifyReport(10, 0, 4, 2, damaged=[3], named=[FailedBlock("<z3>", "differs")]),
    )
    assert repr(good).startswith("VerifyReport: as written\n")
    assert repr(VerifyReport(10, 6, 4)).startswith("VerifyReport: incomplete\n")
    assert repr(bad).startswith("VerifyReport: not as written\n")
    assert "Problem: <z3>: differs" in repr(bad)
    assert "&lt;z3&gt;: differs" in bad._repr_html_()
