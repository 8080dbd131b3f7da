"""Users, passwords and tokens in the URL of a source are in no message, file or description, and runs resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from support.http_server import Fault, FileServer
from support.settings import Configure
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cli.cmd_submit import submit
from imagery_dask.cluster import WorkerResources
from imagery_dask.errors import BlockFailedError, SourceError
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.sources import SourceHandle

SHAPE = (64, 32, 16)  # 2 chunks
SECRET = "pla@nted"
FORMS = {
    "password": "http://me:{secret}@{host}/em",
    "user": "http://{secret}@{host}/em",
    "query": "http://{host}/em?token={secret}",
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def source(request: pytest.FixtureRequest, tmp_path: Path, http_server_factory: Callable[..., FileServer]) -> Any:
    write_volume(tmp_path / "source" / "em", coordinate_volume(SHAPE, dtype=np.uint8))
    server = http_server_factory(tmp_path / "source")
    return server, request.param.format(secret=SECRET, host=server.url.removeprefix("http://"))


def fail(path: str, n: int) -> Fault | None:
    return Fault(500) if path.endswith("/0-32_0-32_0-16") else None


def hides(text: str) -> bool:
    return "@nted" not in text and "pla@" not in text


def test_an_export_that_fails_and_resumes_leaves_no_secret(
    source: Any, tmp_path: Path, threads: Client, configure: Configure
) -> None:
    configure("requests.attempts", 1)
    configure("requests.first_pause_s", 0.0)
    configure("run.attempts", 1)
    server, url = source
    out = tmp_path / "out" / "em.zarr"
    options: dict[str, Any] = {"chunks": (32, 32, 16), "cluster": threads, "progress": False, "report": f"{out}.html"}
    volume = ImageryClient(image_source=url).image_volume()
    server.faults = fail
    with pytest.raises(BlockFailedError) as failed:
        to_zarr(volume, out, **options)
    assert hides(f"{failed.value} {failed.value.report!r} {volume!r} {volume.attrs}")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.name.startswith("failed") for path in files)
    assert [path for path in files if not hides(path.read_bytes().decode("latin-1"))] == []
    server.faults = None
    report = to_zarr(volume, out, **options)
    assert report.ok
    assert report.before == report.blocks - 1
    assert [path for path in files if path.exists() and not hides(path.read_bytes().decode("latin-1"))] == []


def test_no_message_has_a_secret(source: Any, configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    configure("requests.attempts", 1)
    configure("requests.first_pause_s", 0.0)
    server, url = source
    client = ImageryClient(image_source=url)
    assert hides(repr(client))
    handle = SourceHandle(f"precomputed://{url}", client._settings.image.mips[0])  # type: ignore[union-attr]
    assert hides(repr(handle))
    messages = []

    def read(action: Callable[[], object]) -> None:
        with pytest.raises((SourceError, ValueError)) as caught:
            action()
        messages.append(str(caught.value))

    for fault in (Fault(500), Fault(403), Fault(204), Fault(200, body=b"half"), Fault(cut=5), Fault(302)):
        server.faults = lambda path, n, fault=fault: fault
        read(lambda: client.image_cutout([[0, 0, 0], SHAPE]).compute())
        read(lambda: ImageryClient(image_source=url))
    server.faults = lambda path, n: Fault(404) if "0-32" in path else None
    read(lambda: client.image_cutout([[0, 0, 0], SHAPE], mip=7))
    read(lambda: ImageryClient(segmentation_source=url))
    read(lambda: ImageryClient(image_source=url, missing="error").image_cutout([[0, 0, 0], SHAPE]).compute())
    with caplog.at_level(logging.WARNING):
        client.image_cutout([[0, 0, 0], SHAPE]).compute()
    server.close()
    read(lambda: ImageryClient(image_source=url))
    assert "missing" in caplog.text
    assert [message for message in [*messages, caplog.text] if not hides(message)] == []


def test_a_plan_has_no_secret(source: Any, tmp_path: Path) -> None:
    _, url = source
    volume = ImageryClient(image_source=url).image_volume()
    export = ZarrExport(volume, str(tmp_path / "out.zarr"), ZarrOptions(chunks=(32, 32, 16), shards=None))
    plan = export.plan(WorkerResources(2, 2**30), 2**15)
    recorded = json.dumps(plan.to_json())
    assert hides(f"{plan} {recorded}")
    assert ExportPlan.from_json(json.loads(recorded)).fingerprint == plan.fingerprint


@pytest.mark.parametrize("url", ["https://me:p/a@ss@host/em", "precomputed://https://host/em?token=SECRET"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_job_script_has_no_secret(tmp_path: Path, capsys: Any, url: str, joined: bool) -> None:
    source = [f"--image-source={url}"] if joined else ["--image-source", url]
    with pytest.raises(ValueError, match="has a password or token") as caught:
        submit.main(["--dry-run", "zarr", str(tmp_path / "out"), *source], standalone_mode=False)
    assert "SECRET" not in f"{caught.value} {capsys.readouterr()}"
    assert "p/a@ss" not in str(caught.value)
