"""Metadata of a store that is lost, empty or changed: verify names it, and a repair or a resume writes it again."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client
from support.buckets import SHARED
from support.programs import Done
from support.settings import Configure
from support.stopping import Stopped, stop

from imagery_dask import to_png, to_precomputed, to_zarr
from imagery_dask.export.registry import run_at
from imagery_dask.export.verify import verify_export
from imagery_dask.run import RunReport
from imagery_dask.storage import atomic_files, buckets

Command = Callable[..., Done]
VOXELS = np.random.default_rng(1).integers(1, 255, (32, 32, 32), dtype=np.uint8)
COORDINATES = {axis: (np.arange(32) + 0.5) * size for axis, size in zip("xyz", (8, 8, 40), strict=True)}
DATA = xr.Dataset(
    {
        name: (list("xyz"), da.from_array(VOXELS.astype(dtype), chunks=8))
        for name, dtype in (("image", np.uint8), ("segmentation", np.uint64))
    },
    coords=COORDINATES,
)
OPTIONS: dict[str, Any] = {"chunks": (8, 8, 8), "levels": 2, "block_mib": 0.001}
WRITERS: dict[str, Callable[..., RunReport]] = {
    "zarr-0.5": lambda url, **options: to_zarr(DATA, url, **OPTIONS, **options),
    "zarr-0.4": lambda url, **options: to_zarr(DATA, url, ome_version="0.4", **OPTIONS, **options),
    "precomputed": lambda url, **options: to_precomputed(DATA, url, **OPTIONS, **options),
    "png": lambda url, **options: to_png(DATA["segmentation"], url, what="labels", tile=8, **options),
}
DAMAGE = [None, b"", b"   \n", b"{", b"\xff\xfe", bytes(50), b"[" * 50_000, b"[]", b"3"]


@pytest.fixture(autouse=True)
def _small(configure: Configure) -> None:
    configure("run.batch_blocks", 1)


def metadata_of(writer: str, url: Path) -> dict[Path, bytes]:
    if writer == "png":
        paths = [url.with_name("out_labels.csv")]
    else:
        names = {"zarr.json", ".zgroup", ".zarray", ".zattrs", "info", "provenance"}
        # Unlike `rglob`, this passes over folders that blocks in flight remove meanwhile.
        paths = [Path(folder, name) for folder, _, files in os.walk(url) for name in files if name in names]
    return {path: path.read_bytes() for path in paths}


def damage(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.long
@pytest.mark.parametrize("writer", WRITERS)
def test_lost_metadata_is_found_and_written_again(tmp_path: Path, threads: Client, writer: str) -> None:
    url, options = tmp_path / "out", {"cluster": threads, "progress": False}
    blocks = WRITERS[writer](url, **options).blocks
    whole = metadata_of(writer, url)
    receipts = run_at(str(url)).records.receipts()
    assert len(whole) >= {"zarr-0.5": 7, "zarr-0.4": 14, "precomputed": 4, "png": 1}[writer]
    for number, path in enumerate(whole):
        damage(path, DAMAGE[number % len(DAMAGE)])
        report = verify_export(url, sample=None, **options)
        assert not report.ok
        assert [Path(f"{url}/{name}") if writer != "png" else tmp_path / name for name in report.metadata] == [path]
        assert report.named[0].reason.startswith("it ")
        repaired = WRITERS[writer](url, repair=bool(number % 2), **options)
        assert repaired.before == blocks
        assert any(path.name in note and "written again" in note for note in repaired.notes)
        assert metadata_of(writer, url) == whole
    for path in whole:
        damage(path, None)
    assert len(verify_export(url, sample=None, **options).metadata) == len(whole)
    WRITERS[writer](url, repair=True, **options)
    assert metadata_of(writer, url) == whole
    assert verify_export(url, sample=None, source=False, **options).ok
    np.testing.assert_array_equal(run_at(str(url)).records.receipts(), receipts)


@pytest.mark.parametrize("writer", ["zarr-0.5", "zarr-0.4", "precomputed"])
def test_a_half_done_export_without_its_metadata_is_resumed(tmp_path: Path, threads: Client, writer: str) -> None:
    url = tmp_path / "out"
    with pytest.raises(Stopped):
        WRITERS[writer](url, cluster=threads, progress=stop)
    for path in metadata_of(writer, url):
        path.unlink()
    report = WRITERS[writer](url, cluster=threads, progress=False)
    assert report.ok
    assert report.before >= 3
    assert verify_export(url, sample=None, source=False, cluster=threads, progress=False).ok
    WRITERS[writer](tmp_path / "reference", cluster=threads, progress=False)
    names = {path.relative_to(url) for path in metadata_of(writer, url)}
    assert names == {path.relative_to(tmp_path / "reference") for path in metadata_of(writer, tmp_path / "reference")}


@pytest.mark.long
@pytest.mark.parametrize("writer", ["zarr-0.5", "zarr-0.4", "precomputed"])
def test_metadata_of_older_exports_is_made_from_the_plan(tmp_path: Path, threads: Client, writer: str) -> None:
    """Version 0.1 kept no copy."""
    url, options = tmp_path / "out", {"cluster": threads, "progress": False}
    WRITERS[writer](url, **options)
    whole = metadata_of(writer, url)
    (copy,) = tmp_path.glob("out.receipts/*/metadata.json")
    copy.unlink()
    assert verify_export(url, sample=None, source=False, **options).ok
    for path in whole:
        path.unlink()
    assert not verify_export(url, sample=None, **options).ok
    WRITERS[writer](url, repair=True, **options)
    needed = {path for path in whole if path.name in ("zarr.json", ".zarray", ".zgroup", "info")}
    assert metadata_of(writer, url).keys() >= needed
    assert verify_export(url, sample=None, source=False, **options).ok
    assert not list(tmp_path.glob("out.receipts/*/empty-store"))


def test_metadata_that_says_other_things_is_repaired(tmp_path: Path, threads: Client) -> None:
    """Attributes may be added; what describes the voxels may not change."""
    url, options = tmp_path / "out", {"cluster": threads, "progress": False}
    WRITERS["zarr-0.5"](url, **options)
    root, level = url / "zarr.json", url / "0" / "zarr.json"
    content = json.loads(root.read_text())
    content["attributes"]["mine"] = "a note"
    root.write_text(json.dumps(content))
    assert verify_export(url, sample=None, source=False, **options).ok
    whole = level.read_bytes()
    level.write_text(json.dumps(json.loads(whole) | {"shape": [32, 32, 16]}))
    report = verify_export(url, sample=None, **options)
    assert (report.metadata, report.named[0].reason) == (["0/zarr.json"], "it says other things of 'shape'")
    WRITERS["zarr-0.5"](url, **options)
    assert level.read_bytes() != whole  # only a repair replaces what somebody has written
    WRITERS["zarr-0.5"](url, repair=True, **options)
    assert level.read_bytes() == whole
    assert json.loads(root.read_text())["attributes"]["mine"] == "a note"


def test_the_command_names_lost_metadata_and_the_remedy(tmp_path: Path, threads: Client, command: Command) -> None:
    url = tmp_path / "out"
    WRITERS["zarr-0.5"](url, cluster=threads, progress=False)
    (url / "zarr.json").write_bytes(b"")
    done = command("verify", url, "--all", "--cluster", threads.scheduler_info()["address"])
    assert done.code == 1
    assert "as written" not in done.out
    assert "zarr.json: it is empty" in done.error
    assert f"imagery-dask export --plan {url} --repair" in done.error


@pytest.mark.long
@pytest.mark.parametrize("writer", ["zarr-0.5", "precomputed"])
def test_lost_metadata_in_a_bucket_is_written_again(s3_server: Any, threads: Client, writer: str) -> None:
    pytest.importorskip("obstore")
    s3_server.create_bucket(SHARED)
    url, options = f"s3://{SHARED}/t-{uuid.uuid4().hex[:12]}/out", {"cluster": threads, "progress": False}
    name = "zarr.json" if writer == "zarr-0.5" else "image/info"
    with s3_server.environment():
        WRITERS[writer](url, **options)
        system, path = buckets.files_at(url)
        whole = system.cat_file(f"{path}/{name}")
        system.rm_file(f"{path}/{name}")
        assert verify_export(url, sample=None, **options).metadata == [name]
        WRITERS[writer](url, repair=True, **options)
        assert system.cat_file(f"{path}/{name}") == whole


@pytest.mark.parametrize("writer", ["zarr-0.5", "zarr-0.4", "precomputed"])
def test_metadata_is_flushed_to_disk(
    tmp_path: Path, threads: Client, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure after the end of an export must not take what its chunks cannot be read without."""
    flushed: list[Path] = []
    wait = atomic_files._wait_for_disk
    monkeypatch.setattr(atomic_files, "_wait_for_disk", lambda path: (flushed.append(Path(path)), wait(path)))
    WRITERS[writer](tmp_path / "out", cluster=threads, progress=False)
    for path in metadata_of(writer, tmp_path / "out"):
        assert flushed.count(path) >= 2  # when it is made, and when the export ends
        assert path.parent in flushed
