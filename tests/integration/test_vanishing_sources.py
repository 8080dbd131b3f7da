"""Sources that vanish, or are rewritten, while they are exported: an error, never silent zeros or a mixture."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from integration.stores import written
from support.http_server import Fault, FileServer
from support.programs import Done
from support.settings import Configure
from support.volumes import delete_chunks, write_volume

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.errors import SourceError, SourceGoneError
from imagery_dask.export.registry import run_at
from imagery_dask.run import RunReport
from imagery_dask.sources import open_volume

Command = Callable[..., Done]
SHAPE = (64, 64, 32)
CHUNK = (16, 16, 8)
VOXELS = np.random.default_rng(1).integers(1, 255, SHAPE, dtype=np.uint8)
BOUNDS = ((0, 0, 0), SHAPE)
WRITERS: dict[str, Callable[..., RunReport]] = {
    "zarr": lambda data, url, **options: to_zarr(data, url, chunks=CHUNK, levels=2, block_mib=0.001, **options),
    "precomputed": lambda data, url, **options: to_precomputed(data, url, chunks=CHUNK, block_mib=0.001, **options),
    "png": lambda data, url, **options: to_png(data, url, tile=16, **options),
}


@pytest.fixture(autouse=True)
def _quick(configure: Configure) -> None:
    configure("run.batch_blocks", 1)
    configure("run.pauses_s", (0.01,))
    configure("export.small_fused_bytes", 2**12)
    configure("export.fused_blocks_at_least", 64)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_volume(tmp_path / "data" / "em", VOXELS, chunk_size=CHUNK, compress=False)
    return tmp_path / "data" / "em"


@pytest.fixture(params=["folder", "http"])
def path(request: pytest.FixtureRequest, source: Path) -> str:
    """Path of the source, on disk and over HTTP."""
    if request.param == "folder":
        return f"precomputed://file://{source}"
    server: FileServer = request.getfixturevalue("file_server")
    return f"precomputed://{server.url}/data/em"


def image(path: str) -> Any:
    return ImageryClient(image_source=path).image_cutout(BOUNDS, mip=0)


def after(blocks: int, act: Callable[[], object]) -> Callable[[RunReport], None]:
    """Return a progress callback that acts once, when so many blocks are done."""
    acts = [act]

    def progress(report: RunReport) -> None:
        if report.done >= blocks and acts:
            acts.pop()()

    return progress


def settle(client: Client) -> None:
    """Wait for the blocks that were under way, or on their way to a worker, when a run ended."""
    # It reaches the worker after every message that the scheduler had sent before.
    client.submit(int, priority=-1, pure=False).result(60)
    while any(client.run(lambda dask_worker: len(dask_worker.active_threads)).values()):
        time.sleep(0.02)


def check_voxels(writer: str, url: Path) -> None:
    if writer == "zarr":
        np.testing.assert_array_equal(written(url), VOXELS)
        reference = url.with_name("reference.zarr")
        WRITERS["zarr"](VOXELS, reference, progress=False, resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20))
        from zarr import open_array

        np.testing.assert_array_equal(open_array(url, path="1")[...], open_array(reference, path="1")[...])  # type: ignore[call-overload]
    elif writer == "precomputed":
        np.testing.assert_array_equal(np.asarray(image(f"precomputed://file://{url}")), VOXELS)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_source_that_vanishes_ends_the_export(
    tmp_path: Path, source: Path, path: str, threads: Client, writer: str
) -> None:
    url, away = tmp_path / "out", tmp_path / "away"
    vanish = after(3, lambda: source.parent.rename(away))
    with pytest.raises(SourceGoneError, match=r"em' has vanished.*run the same command"):
        WRITERS[writer](image(path), url, cluster=threads, progress=vanish)
    settle(threads)
    receipts = run_at(str(url)).records.receipts()
    assert len(receipts) >= 3
    assert not receipts["missing"].any()
    away.rename(source.parent)
    report = WRITERS[writer](image(path), url, cluster=threads, progress=False)
    assert (report.ok, report.counts.missing) == (True, 0)
    assert report.before < report.blocks
    check_voxels(writer, url)


def test_a_command_says_that_its_source_has_vanished(
    tmp_path: Path, source: Path, threads: Client, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imagery_dask.run import window

    done = window._Window._done
    act = after(3, lambda: source.rename(tmp_path / "away"))

    def done_and_vanish(self: Any, *arguments: Any) -> None:
        done(self, *arguments)
        act(self.report)

    monkeypatch.setattr(window._Window, "_done", done_and_vanish)
    arguments = ("export", "zarr", tmp_path / "out", "--image-source", source, "--bounds", 0, 0, 0, *SHAPE, "--chunks",
                 "16,16,8", "--block-mib", 0.001, "--cluster", threads.scheduler_info()["address"])  # fmt: skip
    ended = command(*arguments)
    assert (ended.code, "has vanished" in ended.error, "complete" in ended.out) == (1, True, False)
    settle(threads)
    (tmp_path / "away").rename(source)
    ended = command(*arguments)
    assert (ended.code, ended.error) == (0, "")
    np.testing.assert_array_equal(written(tmp_path / "out"), VOXELS)


def test_chunks_that_vanish_without_the_info_end_the_export(
    tmp_path: Path, source: Path, path: str, threads: Client
) -> None:
    url, away = tmp_path / "out", tmp_path / "away"
    vanish = after(3, lambda: (source / "8_8_40").rename(away))
    with pytest.raises(SourceGoneError, match=r"Chunks of .*em', of which blocks were written, are missing now"):
        WRITERS["zarr"](image(path), url, cluster=threads, progress=vanish)
    assert run_at(str(url)).finished is None
    away.rename(source / "8_8_40")
    report = WRITERS["zarr"](image(path), url, cluster=threads, progress=False)
    assert (report.ok, report.counts.missing) == (True, 0)
    check_voxels("zarr", url)


@pytest.mark.long
@pytest.mark.parametrize("writer", WRITERS)
def test_chunks_that_vanish_before_the_info_are_read_again(
    tmp_path: Path, source: Path, path: str, threads: Client, writer: str
) -> None:
    """Removing a folder takes its chunks before its info, so that at first they seem to be missing."""
    url, away = tmp_path / "out", tmp_path / "away"

    def finish(report: RunReport) -> None:
        remove(report)
        if report.done == report.blocks:
            (source / "info").rename(tmp_path / "info")

    remove = after(3, lambda: (source / "8_8_40").rename(away))
    with pytest.raises(SourceGoneError, match="done again"):
        WRITERS[writer](image(path), url, cluster=threads, progress=finish)
    assert run_at(str(url)).finished is None
    away.rename(source / "8_8_40")
    (tmp_path / "info").rename(source / "info")
    report = WRITERS[writer](image(path), url, cluster=threads, progress=False)
    assert (report.ok, report.counts.missing) == (True, 0)
    check_voxels(writer, url)
    assert WRITERS[writer](image(path), url, cluster=threads, progress=False).before == report.blocks


def test_an_array_of_a_source_that_vanished_is_an_error(source: Path, path: str) -> None:
    array = image(path)
    np.testing.assert_array_equal(np.asarray(array[:16, :16, :8]), VOXELS[:16, :16, :8])
    shutil.rmtree(source)
    with pytest.raises(SourceGoneError, match="has vanished"):
        array.compute(scheduler="synchronous")


# ------------------------------------------------------------------------------------------------------- chunks again


@pytest.mark.parametrize("writer", WRITERS)
def test_blocks_with_missing_chunks_are_done_again(tmp_path: Path, source: Path, threads: Client, writer: str) -> None:
    url, kept = tmp_path / "out", tmp_path / "kept"
    shutil.copytree(source, kept)
    delete_chunks(f"precomputed://file://{source}", 0, lambda start: start in ((0, 16, 8), (48, 48, 24)))
    data = image(f"precomputed://file://{source}")
    first = WRITERS[writer](data, url, cluster=threads, progress=False)
    assert first.counts.missing == 2
    shutil.copytree(kept, source, dirs_exist_ok=True)
    again = WRITERS[writer](data, url, cluster=threads, progress=False)
    assert (again.before, again.counts.missing) == (again.blocks, 2)
    redone = WRITERS[writer](data, url, redo_missing=True, cluster=threads, progress=False)
    assert (redone.ok, redone.counts.missing) == (True, 0)
    assert (
        redone.blocks - redone.before
        == int((run_at(str(url)).records.receipts()["attempts"] > 0).sum()) - redone.before
    )
    assert 0 < redone.blocks - redone.before <= redone.blocks // 2
    check_voxels(writer, url)
    last = WRITERS[writer](data, url, redo_missing=True, cluster=threads, progress=False)
    assert last.before == last.blocks


def test_missing_chunks_are_done_again_by_command(
    tmp_path: Path, source: Path, threads: Client, command: Command
) -> None:
    shutil.copytree(source, tmp_path / "kept")
    delete_chunks(f"precomputed://file://{source}", 0, lambda start: start == (0, 16, 8))
    address = threads.scheduler_info()["address"]
    arguments = ("export", "zarr", tmp_path / "out", "--image-source", source, "--bounds", 0, 0, 0, *SHAPE, "--chunks",
                 "16,16,8", "--block-mib", 0.001, "--cluster", address)  # fmt: skip
    assert "source chunks missing: 1" in command(*arguments).out
    shutil.copytree(tmp_path / "kept", source, dirs_exist_ok=True)
    done = command("export", "--plan", tmp_path / "out", "--redo-missing", "--cluster", address)
    assert (done.code, done.error) == (0, "")
    assert "source chunks missing: 0" in done.out or "missing" not in done.out
    np.testing.assert_array_equal(written(tmp_path / "out"), VOXELS)


# ----------------------------------------------------------------------------------------------------------- rewritten


def edit(source: Path, **fields: Any) -> None:
    info = json.loads((source / "info").read_text())
    info["scales"][0] |= {key: value for key, value in fields.items() if key in info["scales"][0]}
    info |= {key: value for key, value in fields.items() if key in info}
    (source / "info").write_text(json.dumps(info))


@pytest.mark.long
@pytest.mark.parametrize(
    "fields",
    [{"data_type": "int8"}, {"voxel_offset": [16, 0, 0]}, {"encoding": "png"},
     {"chunk_sizes": [[32, 16, 8]]}, {"size": [64, 64, 40]}, {"key": "other"}, {"resolution": [4, 4, 40]}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_a_source_that_is_rewritten_is_noticed(
    tmp_path: Path, source: Path, threads: Client, fields: dict[str, Any]
) -> None:
    url, path = tmp_path / "out", f"precomputed://file://{source}"
    whole, data = (source / "info").read_bytes(), image(path)
    with pytest.raises(SourceError, match=r"em' has changed since the export of .* began.*--overwrite"):
        WRITERS["zarr"](data, url, cluster=threads, progress=after(60, lambda: edit(source, **fields)))
    assert run_at(str(url)).finished is None
    with pytest.raises((SourceError, FileExistsError)):
        WRITERS["zarr"](data, url, cluster=threads, progress=False)
    (source / "info").write_bytes(whole)
    assert WRITERS["zarr"](image(path), url, cluster=threads, progress=False).before >= 60
    check_voxels("zarr", url)


@pytest.mark.parametrize("date", ["Sat, 01 Jan 2000 00:00:00 GMT", None])
def test_an_info_that_is_written_again_is_noticed_over_http(
    tmp_path: Path, source: Path, threads: Client, file_server: FileServer, date: str | None
) -> None:
    moment = ["Fri, 31 Dec 1999 00:00:00 GMT"]
    file_server.faults = lambda path, n: Fault(headers={"Last-Modified": moment[0]} if moment else {})
    again = after(3, lambda: moment.__setitem__(0, date) if date else moment.clear())
    path = f"precomputed://{file_server.url}/data/em"
    report = WRITERS["zarr"](image(path), tmp_path / "out", cluster=threads, progress=again)
    assert any("was written again" in note for note in report.notes) == (date is not None)


def test_a_mip_that_is_added_is_no_change(tmp_path: Path, source: Path, threads: Client) -> None:
    def add() -> None:
        scales = json.loads((source / "info").read_text())["scales"]
        edit(
            source, scales=[*scales, scales[0] | {"key": "16_16_40", "resolution": [16, 16, 40], "size": [32, 32, 32]}]
        )

    report = WRITERS["zarr"](image(str(source)), tmp_path / "out", cluster=threads, progress=after(3, add))
    assert report.ok
    assert any("was written again" in note for note in report.notes)
    assert len(open_volume(str(source), fresh=True).layer.mips) == 2
