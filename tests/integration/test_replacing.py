"""What is replaced: the store of an export, a report, a saved plan, and nothing of anybody else."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client
from integration.stores import written
from support.buckets import SHARED
from support.programs import Done
from support.volumes import write_volume

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.errors import SourceError
from imagery_dask.export.core.provenance import KEY
from imagery_dask.run import RunReport
from imagery_dask.storage.overlaps import overlap

Command = Callable[..., Done]
SHAPE = (16, 16, 16)
VOXELS = np.random.default_rng(1).integers(1, 255, SHAPE, dtype=np.uint8)
PLACE: dict[str, Any] = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20)}
WRITERS: dict[str, Callable[..., RunReport]] = {"zarr": to_zarr, "precomputed": to_precomputed, "png": to_png}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_volume(tmp_path / "data" / "em", VOXELS, resolution=(8, 8, 40))
    return tmp_path / "data" / "em"


def image(source: Path | str) -> Any:
    return ImageryClient(image_source=str(source)).image_cutout(((0, 0, 0), SHAPE), mip=0)


# ---------------------------------------------------------------------------------------------------------- own source


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("computed", [False, True])
def test_an_export_into_its_own_source_is_refused(
    tmp_path: Path, source: Path, threads: Client, writer: str, computed: bool
) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    (tmp_path / "folder").symlink_to(source.parent)
    volumes = [source, f"file://{source}", link, tmp_path / "folder" / "em", source.parent / "x" / ".." / "em",
               source / "inside", source / "a" / "b", link / "inside"]  # fmt: skip
    if writer != "png":
        volumes += [source.parent, tmp_path]
    data = image(source)
    data = 255 - data if computed else data
    place = PLACE if writer == "precomputed" and computed else {}
    before = content(tmp_path)
    for url in volumes:
        target = f"{url}/em" if writer == "png" else url
        for overwrite in (False, True):
            with pytest.raises(
                FileExistsError, match=r"(is|lies in|contains) precomputed://.*em, which the export reads"
            ):
                WRITERS[writer](data, target, overwrite=overwrite, cluster=threads, progress=False, **place)
    assert content(tmp_path) == before
    assert WRITERS[writer](data, source.parent / "emission", cluster=threads, progress=False, **place).ok


def test_a_link_as_source_is_refused_too(tmp_path: Path, source: Path, threads: Client, command: Command) -> None:
    (tmp_path / "link").symlink_to(source)
    before = content(source)
    with pytest.raises(FileExistsError, match="which the export reads"):
        to_precomputed(image(tmp_path / "link"), source, overwrite=True, cluster=threads, progress=False)
    for option in ([], ["--overwrite"]):
        done = command("export", "precomputed", source, "--image-source", source, "--bounds", 0, 0, 0, *SHAPE, *option)
        assert (done.code, "which the export reads" in done.error) == (2, True)
    assert content(source) == before


def test_a_redirected_source_is_that_which_it_names(tmp_path: Path, source: Path, threads: Client) -> None:
    alias = tmp_path / "alias"
    alias.mkdir()
    (alias / "info").write_text(f'{{"redirect": "precomputed://file://{source}"}}')
    before = content(source)
    with pytest.raises(FileExistsError, match="which the export reads"):
        to_precomputed(image(alias), source, overwrite=True, cluster=threads, progress=False)
    assert content(source) == before


def test_a_bucket_is_not_its_own_source(s3_server: Any, threads: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    s3_server.create_bucket(SHARED)
    url = f"s3://{SHARED}/t-{uuid.uuid4().hex[:12]}/em"
    with s3_server.environment():
        to_precomputed(VOXELS, url, cluster=threads, progress=False, **PLACE)
        data = image(f"precomputed://{url}")
        for target in (url, f"{url}/", f"{url}/inside", url.rpartition("/")[0]):
            with pytest.raises(FileExistsError, match="which the export reads"):
                to_precomputed(data, target, overwrite=True, cluster=threads, progress=False)
        np.testing.assert_array_equal(np.asarray(data), VOXELS)


@pytest.mark.parametrize(
    ("url", "other", "how"),
    [
        ("gs://b/em", "gs://b/em/", "is"),
        ("gs://b/em", "gs://b//em", "is"),
        ("gcs://b/em/out", "precomputed://gs://b/em", "lies in"),
        ("gs://b", "gs://b/em", "contains"),
        ("gs://b/em2", "gs://b/em", None),
        ("gs://b/em", "s3://b/em", None),
        ("gs://b/em", "https://storage.googleapis.com/b/em", "is"),
        ("gs://b/em", "https://b.storage.googleapis.com/em", "is"),
        ("s3://b/em", "https://s3.amazonaws.com/b/em", "is"),
        ("s3://b/em", "https://b.s3.eu-west-1.amazonaws.com/em", "is"),
        ("s3://b/a b", "https://b.s3.amazonaws.com/a%20b", "is"),
        ("s3://b/a#b?c", "https://b.s3.amazonaws.com/a%23b%3Fc", "is"),
        ("s3://b/em", "https://b.s3.cn-north-1.amazonaws.com.cn:443/em", "is"),
        ("s3://b/em", "s3://https://s3.amazonaws.com/b/em/out", "contains"),
        ("s3://b/em", "http://127.0.0.1:9000/b/em", None),
        ("s3://http://127.0.0.1:9000/b/em", "http://localhost:9000/b/em", "is"),
        ("https://x.org/em", "http://x.org:80/a/../em/", "is"),
        ("https://x.org/em", "https://X.org/em/1", "contains"),
        ("https://x.org/em", "https://y.org/em", None),
        ("/data/em", "file:///data/em", "is"),
        ("/data/em", "graphene://https://x.org/segmentation/table/t", None),
    ],
)
def test_spellings_of_one_folder(url: str, other: str, how: str | None) -> None:
    turned = {"is": "is", "lies in": "contains", "contains": "lies in", None: None}
    assert overlap(url, other) == how
    assert overlap(other, url) == turned[how]


def test_a_bucket_is_not_replaced_by_what_is_computed_from_it(s3_server: Any, threads: Client) -> None:
    from imagery_dask.storage.zarr_stores import open_store

    pytest.importorskip("obstore")
    s3_server.create_bucket(SHARED)
    with s3_server.environment():
        for folder in (f"s3://{SHARED}/t-{uuid.uuid4().hex[:12]}", f"memory://{uuid.uuid4().hex}"):
            url = f"{folder}/out"
            to_zarr(VOXELS, url, cluster=threads, progress=False)
            array = da.from_zarr(open_store(url), component="0").T
            opened = xr.open_zarr(open_store(url), consolidated=False)["0"].transpose(..., "z", "y", "x").data.T
            for data in (array, 255 - array, opened + 1):
                with pytest.raises(FileExistsError, match="which the array is computed from"):
                    to_zarr(data, url, overwrite=True, cluster=threads, progress=False)
            np.testing.assert_array_equal(array.compute(), VOXELS)
            assert to_zarr(255 - array, f"{url}-2", overwrite=True, cluster=threads, progress=False).ok


def test_a_local_store_may_be_replaced_by_what_is_computed_from_it(tmp_path: Path, threads: Client) -> None:
    to_zarr(VOXELS, tmp_path / "out", cluster=threads, progress=False)
    array = 255 - da.from_zarr(tmp_path / "out", component="0").T
    assert to_zarr(array, tmp_path / "out", overwrite=True, cluster=threads, progress=False).ok
    np.testing.assert_array_equal(written(tmp_path / "out"), 255 - VOXELS)


# --------------------------------------------------------------------------------------------- runs that do not start


@pytest.mark.parametrize("why", ["no scheduler", "no cluster file", "no source"])
def test_a_store_is_removed_only_when_its_replacement_starts(source: Path, threads: Client, why: str) -> None:
    url = f"memory://{uuid.uuid4().hex}/out"
    data = image(source)
    assert to_zarr(data, url, cluster=threads, progress=False).ok
    cluster: Any = threads
    if why == "no source":
        source.rename(source.with_name("away"))
    else:
        cluster = {"no scheduler": "tcp://127.0.0.1:1", "no cluster file": "/there/is/none.yaml"}[why]
    with pytest.raises((OSError, ValueError, SourceError)):
        to_zarr(data, url, overwrite=True, cluster=cluster, progress=False)
    np.testing.assert_array_equal(written(url), VOXELS)


@pytest.mark.parametrize("overwrite", [False, True])
def test_records_are_removed_only_when_another_run_starts(tmp_path: Path, threads: Client, overwrite: bool) -> None:
    url, away = tmp_path / "out", tmp_path / "away"
    to_zarr(VOXELS, url, cluster=threads, progress=False)
    before = content(tmp_path / "out.receipts")
    url.rename(away)
    with pytest.raises(ConnectionError):
        to_zarr(VOXELS, url, overwrite=overwrite, cluster="tcp://127.0.0.1:1", progress=False)
    assert content(tmp_path / "out.receipts").keys() >= before.keys()
    away.rename(url)
    report = to_zarr(VOXELS, url, cluster=threads, progress=False)
    assert report.before == report.blocks


@pytest.mark.parametrize("other", ["http://127.0.0.1:9000/b/em/", "s3://http://localhost:9000/b/em"])
def test_buckets_of_another_server_have_its_address(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")
    assert overlap("s3://b/em/out", other) == "lies in"
    assert overlap("s3://b/em", "s3://b/em") == "is"
    assert overlap("s3://b/em", "https://b.s3.amazonaws.com/em") is None


# -------------------------------------------------------------------------------------------------- files in a store


def stored(writer: str, url: Path, threads: Client, **options: Any) -> RunReport:
    coordinates = {axis: (np.arange(16) + 0.5) * size for axis, size in zip("xyz", (8, 8, 40), strict=True)}
    arrays = {"image": VOXELS, "segmentation": VOXELS.astype(np.uint64)}
    data = xr.Dataset(
        {name: (list("xyz"), da.from_array(array, chunks=8)) for name, array in arrays.items()}, coords=coordinates
    )
    if writer == "precomputed":
        return to_precomputed(data, url, chunks=(8, 8, 8), levels=2, cluster=threads, progress=False, **options)
    version = writer.removeprefix("zarr-")
    return to_zarr(
        data, url, chunks=(8, 8, 8), levels=2, ome_version=version, cluster=threads, progress=False, **options
    )  # type: ignore[arg-type]


FOREIGN = {
    "zarr-0.5": ["0/notes.txt", "0/c/notes.txt", "0/c/0/0/0.bak", "labels/notes.txt", "labels/segmentation/0/c/x",
                 "labels/segmentation/tracing.swc", "deep/er/notes.txt", "7/c/0/0/0", "1/c/.hidden",
                 "film.mp4.partial", ".partial-notes/a", "0/.my.partial", "0/.probe"],
    "zarr-0.4": ["0/notes.txt", "0/0/notes.txt", "labels/segmentation/0/x", "0/0/0/0.bak", "0/.zarray.bak"],
    "precomputed": ["image/notes.txt", "image/mesh/info", "image/8_8_40/notes.txt", "image/8_8_40/deep/1-2_1-2_1-2",
                    "segmentation/16_16_40/0-8_0-8_0-8.bak", "notes.txt", "image/info.bak"],
}  # fmt: skip


@pytest.mark.parametrize("writer", FOREIGN)
def test_files_that_no_export_wrote_are_kept(tmp_path: Path, threads: Client, writer: str) -> None:
    url = tmp_path / "out"
    stored(writer, url, threads)
    for name in FOREIGN[writer]:
        path = url / name
        parents = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        with pytest.raises(FileExistsError, match=r"holds '[^']+', which is not of"):
            stored(writer, url, threads, overwrite=True)
        assert path.read_text() == "mine"
        path.unlink()
        for parent in parents:
            parent.rmdir()
    os.mkfifo(url / "image.pipe")
    with pytest.raises(FileExistsError, match=r"image\.pipe"):
        stored(writer, url, threads, overwrite=True)
    (url / "image.pipe").unlink()
    assert stored(writer, url, threads, overwrite=True).ok
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.receipts"}


def test_labels_that_somebody_added_are_kept(tmp_path: Path, threads: Client) -> None:
    url = tmp_path / "out"
    stored("zarr-0.5", url, threads)
    group = zarr.open_group(url, path="labels")
    group.create_group("mine").create_array("0", data=np.ones((4, 4), np.uint8))
    zarr.open_group(url).create_array("extra", data=np.ones((4, 4), np.uint8))
    with pytest.raises(FileExistsError, match="'(labels/mine|extra)/"):
        stored("zarr-0.5", url, threads, overwrite=True)
    assert zarr.open_array(url, path="labels/mine/0")[...].all()
    shutil.rmtree(url / "labels" / "mine")
    shutil.rmtree(url / "extra")
    assert stored("zarr-0.5", url, threads, overwrite=True).ok
    assert KEY in zarr.open_group(url).attrs


def test_a_file_that_comes_while_a_store_is_replaced_is_kept(tmp_path: Path, threads: Client) -> None:
    url = tmp_path / "out"
    to_zarr(VOXELS, url, cluster=threads, progress=False)

    def add(report: RunReport) -> None:
        (url / "0" / "notes.txt").write_text("mine")

    data = da.from_array(255 - VOXELS, chunks=8)
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        to_zarr(data, url, overwrite=True, cluster=threads, progress=add)
    assert (url / "0" / "notes.txt").read_text() == "mine"
    np.testing.assert_array_equal(written(url), VOXELS)
    (url / "0" / "notes.txt").unlink()
    report = to_zarr(data, url, cluster=threads, progress=False)
    assert report.before == report.blocks
    np.testing.assert_array_equal(written(url), 255 - VOXELS)


def test_objects_that_no_export_wrote_are_kept(s3_server: Any, threads: Client) -> None:
    from imagery_dask.storage import buckets

    pytest.importorskip("obstore")
    s3_server.create_bucket(SHARED)
    with s3_server.environment():
        for writer, name in (("zarr-0.5", "0/notes.txt"), ("precomputed", "image/8_8_40/notes.txt")):
            url = f"s3://{SHARED}/t-{uuid.uuid4().hex[:12]}/out"
            stored(writer, url, threads)  # type: ignore[arg-type]
            system, path = buckets.files_at(url)
            system.pipe_file(f"{path}/{name}", b"mine")
            with pytest.raises(FileExistsError, match=r"notes\.txt"):
                stored(writer, url, threads, overwrite=True)  # type: ignore[arg-type]
            assert system.cat_file(f"{path}/{name}") == b"mine"
            system.rm_file(f"{path}/{name}")
            assert stored(writer, url, threads, overwrite=True).ok  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- reports


def test_a_report_replaces_reports_alone(tmp_path: Path, threads: Client) -> None:
    def run(report: Path) -> RunReport:
        return to_zarr(VOXELS, tmp_path / "out", report=report, cluster=threads, progress=False)

    report = tmp_path / "report.html"
    for before in (None, b"", run):
        if isinstance(before, bytes):
            report.write_bytes(before)
        assert run(report).ok
        assert b"imagery_dask" in report.read_bytes()[:1000]
    link = tmp_path / "link.html"
    link.symlink_to(report)
    assert run(link).ok
    assert link.is_symlink()
    thesis = tmp_path / "thesis.html"
    thesis.write_text("<!DOCTYPE html><title>Thesis</title>")
    (tmp_path / "to-thesis.html").symlink_to(thesis)
    for other in (thesis, tmp_path / "to-thesis.html"):
        with pytest.raises(FileExistsError, match="is no report of imagery_dask"):
            run(other)
    assert "Thesis" in thesis.read_text()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-null").symlink_to("/dev/null")
    for special in (tmp_path / "pipe", tmp_path / "to-null", Path("/dev/null")):
        with pytest.raises(ValueError, match="device, a pipe or a socket"):
            run(special)
    assert not Path("/dev/null").is_file()
    for name in ("report.html", "ledger.jsonl"):
        with pytest.raises(ValueError, match="holds nothing but the export"):
            run(tmp_path / "out.receipts" / name)


@pytest.mark.long
def test_a_saved_plan_replaces_plans_alone(tmp_path: Path, source: Path, command: Command) -> None:
    arguments = [
        "plan",
        "zarr",
        tmp_path / "out",
        "--image-source",
        source,
        "--bounds",
        0,
        0,
        0,
        *SHAPE,
        "--samples",
        1,
    ]
    saved = tmp_path / "plan.json"
    for _ in range(2):
        assert command(*arguments, "--save", saved).code == 0
    saved.write_text('{"notes": "mine"}')
    done = command(*arguments, "--save", saved)
    assert (done.code, "is no saved plan" in done.error) == (2, True)
    assert "mine" in saved.read_text()
