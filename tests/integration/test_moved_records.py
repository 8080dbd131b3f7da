"""Records that were copied, moved, forged or damaged: only the target beside them is ever written or removed."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client
from integration.stores import written
from support.buckets import SHARED
from support.programs import Done
from support.settings import Configure
from support.stopping import Stopped, stop

from imagery_dask import to_png, to_precomputed, to_zarr
from imagery_dask.export.registry import run_at
from imagery_dask.export.verify import verify_export
from imagery_dask.run import RunReport
from imagery_dask.storage import buckets

Command = Callable[..., Done]
SHAPE = (32, 32, 32)
OLD = np.random.default_rng(1).integers(1, 255, SHAPE, dtype=np.uint8)
NEW = OLD[::-1].copy()
WRITERS: dict[str, Callable[..., RunReport]] = {
    "zarr": lambda data, url, **options: to_zarr(data, url, chunks=(8, 8, 8), block_mib=0.001, **options),
    "precomputed": lambda data, url, **options: to_precomputed(
        data, url, chunks=(8, 8, 8), block_mib=0.001, resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20), **options
    ),
    "png": lambda data, url, **options: to_png(data, url, tile=8, **options),
}


@pytest.fixture(autouse=True)
def _small_batches(configure: Configure) -> None:
    configure("run.batch_blocks", 1)


def export(writer: str, url: Any, threads: Client, data: Any = OLD, *, half: bool = False, **options: Any) -> RunReport:
    """Run an export, or half of one."""
    progress = stop if half else False
    with pytest.raises(Stopped) if half else nullcontext():
        return WRITERS[writer](da.from_array(data, chunks=8), url, cluster=threads, progress=progress, **options)
    return RunReport(0)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settled(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder when the blocks in progress are done."""
    before: dict[str, bytes] | None = None
    while True:
        time.sleep(0.05)
        now = None
        with suppress(FileNotFoundError):
            now = content(folder)
        if now is not None and now == before:
            return now
        before = now


def voxels(writer: str, url: Any) -> Any:
    if writer == "zarr":
        return written(url)
    if writer == "precomputed":
        from cloudvolume import CloudVolume

        return np.asarray(CloudVolume(f"file://{url}", fill_missing=True, progress=False)[:])[..., 0]
    return None


def edit(plan: Path, **fields: Any) -> None:
    plan.write_text(json.dumps(json.loads(plan.read_text()) | fields))


def plan_of(url: Path) -> Path:
    (plan,) = url.parent.glob("*.receipts/*/plan.json")
    return plan


# ------------------------------------------------------------------------------------------------ copied and moved


@pytest.mark.long
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("state", "act"), [("half done", "resume"), ("half done", "overwrite"), ("complete", "overwrite")]
)
def test_only_the_copy_of_a_project_is_written(
    tmp_path: Path, threads: Client, writer: str, state: str, act: str
) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    export(writer, original / "out", threads, half=state == "half done")
    before = settled(original)
    shutil.copytree(original, copy)
    data = OLD if act == "resume" else NEW
    report = export(writer, copy / "out", threads, data, overwrite=act == "overwrite")
    assert report.ok
    assert (report.before > 0) == (act == "resume")
    assert content(original) == before
    if writer != "png":
        np.testing.assert_array_equal(voxels(writer, copy / "out"), data)


@pytest.mark.parametrize("writer", ["zarr", "precomputed"])
@pytest.mark.parametrize("name", ["out", "renamed"])
def test_a_replacement_that_was_interrupted_goes_on_in_its_copy(
    tmp_path: Path, threads: Client, writer: str, name: str
) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    export(writer, original / "out", threads)
    export(writer, original / "out", threads, NEW, half=True, overwrite=True)
    before = settled(original)
    shutil.copytree(original, copy)
    for path in list(copy.iterdir()):
        path.rename(path.with_name(path.name.replace("out", name)))
    report = export(writer, copy / name, threads, NEW)
    assert report.ok
    assert report.before > 0
    np.testing.assert_array_equal(voxels(writer, copy / name), NEW)
    assert {path.name for path in copy.iterdir()} == {name, f"{name}.receipts"}
    assert content(original) == before


@pytest.mark.parametrize("writer", WRITERS)
def test_a_moved_project_is_resumed_verified_and_told(tmp_path: Path, threads: Client, writer: str) -> None:
    export(writer, tmp_path / "first" / "out", threads, half=True)
    done = len([name for name in settled(tmp_path / "first") if name])
    assert done
    (tmp_path / "first").rename(tmp_path / "second")
    url = tmp_path / "second" / "out"
    assert export(writer, url, threads).before > 0
    assert not (tmp_path / "first").exists()
    record = run_at(str(url))
    assert str(record.plan["out"]).removeprefix("file://") == str(url)
    assert verify_export(url, sample=None, source=False, cluster=threads, progress=False).ok
    assert str(tmp_path) not in json.dumps(json.loads(plan_of(url).read_text())["place"])


def test_a_plan_beside_a_copy_writes_the_copy(tmp_path: Path, command: Command, threads: Client) -> None:
    """``--plan OUT`` reads the plan of the copy, which still names the original."""
    from support.volumes import write_volume

    source = f"precomputed://file://{tmp_path}/em"
    write_volume(tmp_path / "em", OLD, resolution=(8, 8, 40))
    original, address = tmp_path / "original", threads.scheduler_info()["address"]
    arguments = ["--bounds", 0, 0, 0, *SHAPE, "--image-source", source, "--chunks", "8,8,8", "--cluster", address]
    assert command("export", "zarr", original / "out.zarr", *arguments).code == 0
    before = content(original)
    shutil.copytree(original, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "out.zarr" / "0" / "c")
    done = command("export", "--plan", tmp_path / "copy" / "out.zarr", "--cluster", address, "--overwrite")
    assert (done.code, done.error) == (0, "")
    assert content(original) == before
    np.testing.assert_array_equal(written(tmp_path / "copy" / "out.zarr"), OLD)
    done = command("status", tmp_path / "copy" / "out.zarr", "--json")
    assert json.loads(done.out)["exports"][0]["out"] == str(tmp_path / "copy" / "out.zarr")


@pytest.mark.long
@pytest.mark.parametrize("writer", ["zarr", "precomputed"])
@pytest.mark.parametrize("act", ["resume", "overwrite"])
def test_only_the_copy_in_a_bucket_is_written(s3_server: Any, threads: Client, writer: str, act: str) -> None:
    pytest.importorskip("obstore")
    s3_server.create_bucket(SHARED)
    folder = f"s3://{SHARED}/t-{uuid.uuid4().hex[:12]}"
    with s3_server.environment():
        export(writer, f"{folder}/original/out", threads, half=True)
        system, path = buckets.files_at(folder)

        def objects(name: str) -> dict[str, bytes]:
            system.invalidate_cache()
            found = {key.partition(f"/{name}/")[2]: system.cat_file(key) for key in system.find(f"{path}/{name}")}
            return {key: value for key, value in found.items() if value}

        before: dict[str, bytes] = {}
        while (now := objects("original")) != before:
            before = now
        for key, value in before.items():
            system.pipe_file(f"{path}/copy/{key}", value)
        data = OLD if act == "resume" else NEW
        report = export(writer, f"{folder}/copy/out", threads, data, overwrite=act == "overwrite")
        assert report.ok
        assert (report.before > 0) == (act == "resume")
        assert objects("original") == before


# ---------------------------------------------------------------------------------------------- older and hostile


@pytest.mark.parametrize("writer", WRITERS)
def test_absolute_places_of_older_records_are_those_of_their_own_target(
    tmp_path: Path, threads: Client, writer: str
) -> None:
    """Version 0.1 wrote absolute places; the records may have been moved since."""
    url = tmp_path / "first" / "out"
    export(writer, url, threads, half=True)
    settled(tmp_path)
    out = json.loads(plan_of(url).read_text())["plan"]["out"]
    edit(plan_of(url), place=out)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    before = content(tmp_path / "first")
    assert export(writer, tmp_path / "second" / "out", threads).before > 0
    assert content(tmp_path / "first") == before
    assert export(writer, url, threads).before > 0


PLACES = ["{victim}", "../victim", "./../victim", "victim", "/", "", ".", "..", "s3://other/victim",
          "file://{victim}", ".out.incoming-{run}/../../victim", ".out.incoming-00000000", 5, None,
          ["in place"]]  # fmt: skip


def test_a_place_that_is_not_beside_the_records_is_refused(tmp_path: Path, threads: Client) -> None:
    url, victim = tmp_path / "project" / "out", tmp_path / "project" / "victim"
    export("zarr", url, threads)
    victim.mkdir()
    (victim / "zarr.json").write_text("{}")
    plan = plan_of(url)
    whole = plan.read_bytes()
    for place in PLACES:
        if isinstance(place, str):
            place = place.format(victim=victim, run=plan.parent.name)
        for begun, overwrite in ((False, False), (True, False), (True, True)):
            edit(plan, place=place, begun=begun, finished=None)
            before = content(tmp_path)
            with pytest.raises(
                ValueError, match=r"out\.receipts/\w+/plan\.json is damaged: .*place.*remove .*receipts"
            ):
                export("zarr", url, threads, NEW, overwrite=overwrite)
            assert content(tmp_path) == before
    plan.write_bytes(whole)
    assert export("zarr", url, threads).before > 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_record_of_an_export_that_did_not_begin_removes_nothing_else(
    tmp_path: Path, threads: Client, overwrite: bool
) -> None:
    """The store of such a run has metadata alone: a folder with more in it is somebody else's."""
    url = tmp_path / "out"
    export("zarr", url, threads)
    edit(plan_of(url), begun=False, finished=None)
    shutil.rmtree(url)
    url.mkdir()
    (url / "chapter.tex").write_text("years of work")
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=r"chapter\.tex"):
        export("zarr", url, threads, overwrite=overwrite)
    assert content(tmp_path) == before


def test_an_export_that_was_killed_while_it_made_its_store_starts_anew(tmp_path: Path, threads: Client) -> None:
    url = tmp_path / "out"
    export("zarr", url, threads)
    edit(plan_of(url), begun=False, finished=None)
    shutil.rmtree(url / "0" / "c")
    assert export("zarr", url, threads).before == 0
    np.testing.assert_array_equal(written(url), OLD)


# ----------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_a_refusal_keeps_all_receipts(tmp_path: Path, threads: Client, name: str) -> None:
    """Other arguments are refused, with the metadata of the store there or lost."""
    url = tmp_path / "out"
    export("zarr", url, threads, half=True)
    settled(tmp_path)
    (url / name).unlink()
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="other arguments"):
        export("zarr", url, threads, NEW)
    assert content(tmp_path) == before


@pytest.mark.parametrize("writer", ["zarr", "precomputed"])
def test_a_foreign_folder_in_place_of_a_store_keeps_the_records(tmp_path: Path, threads: Client, writer: str) -> None:
    url = tmp_path / "out"
    export(writer, url, threads, half=True)
    settled(tmp_path)
    shutil.rmtree(url)
    url.mkdir()
    (url / "chapter.tex").write_text("years of work")
    before = content(tmp_path)
    for data, overwrite in ((OLD, False), (NEW, False), (NEW, True)):
        with pytest.raises(FileExistsError):
            export(writer, url, threads, data, overwrite=overwrite)
        assert content(tmp_path) == before


# --------------------------------------------------------------------------------------------------- damaged records

DAMAGE = [b"", b"\xff\xfe\x00", b"[]", b"[" * 100_000, b"{}", bytes(100)]


def test_a_damaged_plan_is_named_with_the_remedy(tmp_path: Path, threads: Client, command: Command) -> None:
    url = tmp_path / "out"
    export("zarr", url, threads)
    plan = plan_of(url)
    whole = plan.read_bytes()
    for damaged in (*DAMAGE, whole[: len(whole) // 2]):
        plan.write_bytes(damaged)
        before = content(tmp_path)
        for call in (("status", url), ("verify", url), ("export", "--plan", url)):
            done = command(*call)
            assert (done.code, f"{plan} is damaged" in done.error) == (2, True), done.error
            assert "remove" in done.error
            assert "Traceback" not in done.error
        with pytest.raises(ValueError, match="is damaged"):
            export("zarr", url, threads, overwrite=True)
        assert content(tmp_path) == before


FIELDS = [("kind", "n5"), ("kind", None), ("kind", ["zarr"]), ("stages", []), ("stages", [[]]), ("stages", None),
          ("volumes", [3]), ("volumes", [{}]), ("volumes", None), ("options", []), ("decides", None), ("version", 2),
          ("voxels", "many"), ("format", None)]  # fmt: skip


def test_a_plan_with_a_damaged_field_is_named(tmp_path: Path, threads: Client, command: Command) -> None:
    url, saved = tmp_path / "out", tmp_path / "saved.json"
    export("zarr", url, threads)
    whole = json.loads(plan_of(url).read_text())
    for key, value in FIELDS:
        plan = whole["plan"] | {key: value}
        plan_of(url).write_text(json.dumps(whole | {"plan": plan}))
        saved.write_text(json.dumps(plan))
        calls = [("status", url), ("verify", url), ("export", "--plan", url), ("export", "--plan", saved)]
        for call in calls:
            done = command(*call)
            path = saved if call[-1] == saved else plan_of(url)
            assert (done.code, str(path) in done.error) == (2, True), (key, value, done.error)


OTHERS = {
    "damaged.json": [b"", b"[", b"[]", b'{"blocks": 3}', b'{"blocks": ["1"]}', b'{"blocks": [-1]}', b"\xff",
                     b"[" * 50_000],
    "metadata.json": [b"", b"\xff", b"{"],
}  # fmt: skip


def test_other_damaged_records_are_named(tmp_path: Path, threads: Client, command: Command) -> None:
    url = tmp_path / "out"
    export("zarr", url, threads)
    for name, contents in OTHERS.items():
        path = plan_of(url).with_name(name)
        before = path.read_bytes() if path.exists() else None
        for damaged in contents:
            path.write_bytes(damaged)
            done = command("verify", url, "--cluster", threads.scheduler_info()["address"])
            assert (done.code, f"{path} is damaged" in done.error, "Remove it" in done.error) == (2, True, True)
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    assert export("zarr", url, threads).before > 0


def test_damaged_lines_and_receipts_are_left_out(tmp_path: Path, threads: Client, command: Command) -> None:
    url = tmp_path / "out"
    blocks = export("zarr", url, threads).blocks
    folder = plan_of(url).parent
    lines = [b"", b"[]", b"5", b'{"block": "x"}', b'{"block": -1}', b'{"block": 0}', b'{"block": 0, "when": "noon"}',
             b'{"block": 1e300}', b"\xff\xfe", b"[" * 50_000, b'{"block": 0, "missing": 4, "name": 1}']  # fmt: skip
    for kind in ("ledger", "failed"):
        (folder / f"{kind}-somewhere-1-abc.jsonl").write_bytes(b"\n".join(lines))
    (folder / "receipts-somewhere-1-abc.bin").write_bytes(b"IDR1" * 300 + bytes(500))
    receipts = next(path for path in folder.glob("receipts-*") if "somewhere" not in path.name)
    content = receipts.read_bytes()
    receipts.write_bytes(content[:92] + bytes(92) + content[184:-10])
    assert command("status", url).code == 0
    report = export("zarr", url, threads)
    assert report.blocks == blocks
    assert report.blocks - report.before == 2
    assert verify_export(url, sample=None, source=False, cluster=threads, progress=False).ok


LEASES = [{"pid": 10**30}, {"pid": -1}, {"pid": 0}, {"pid": "many"}, {"pid": None}, {"pid": 1e300}, {"renewed": "noon"},
          {"renewed": 1e400}, {"renewed": None}, {"host": ...}]  # fmt: skip


def test_a_damaged_lease_holds_nothing(tmp_path: Path, threads: Client, command: Command) -> None:
    url = tmp_path / "out"
    export("zarr", url, threads)
    lease = tmp_path / "out.receipts" / "lease.json"
    whole = {"id": "x", "host": "h", "pid": 1, "machine": "m", "renewed": time.time(), "purpose": "write", "run": None}
    contents = [json.dumps({key: value for key, value in (whole | change).items() if value is not ...}).encode()
                for change in LEASES]  # fmt: skip
    for content_of_lease in [*contents, b"", b"[", b"[]", b"[" * 50_000, b"\xff"]:
        lease.write_bytes(content_of_lease)
        assert command("status", url).code == 0
        assert export("zarr", url, threads).before > 0
        assert not lease.exists()


STARTED, GO_ON, TURN = threading.Event(), threading.Event(), threading.Lock()


def wait(block: Any, block_info: Any = None) -> Any:
    """Wait in the second block that is read, as a slow source would."""
    if block_info is not None and any(block_info[0]["chunk-location"]) and TURN.acquire(blocking=False):
        STARTED.set()
        GO_ON.wait(60)
    return block


@pytest.mark.parametrize("writer", ["zarr", "precomputed"])
def test_a_block_under_way_does_not_write_into_the_store_of_another_run(
    tmp_path: Path, threads: Client, writer: str
) -> None:
    url = tmp_path / "out"
    STARTED.clear()
    GO_ON.clear()

    def stop_when_waiting(report: RunReport) -> None:
        if STARTED.is_set():
            raise Stopped

    slow = da.from_array(OLD, chunks=16).map_blocks(wait, dtype=np.uint8)
    with pytest.raises(Stopped):
        WRITERS[writer](slow, url, cluster=threads, progress=stop_when_waiting)
    WRITERS[writer](NEW, url, overwrite=True, progress=False)
    before = {name: data for name, data in content(tmp_path).items() if ".receipts/" not in name}
    GO_ON.set()
    while any(threads.run(lambda dask_worker: len(dask_worker.active_threads)).values()):
        time.sleep(0.02)
    TURN.release()
    assert {name: data for name, data in content(tmp_path).items() if ".receipts/" not in name} == before
    np.testing.assert_array_equal(voxels(writer, url), NEW)


@pytest.mark.parametrize("overwrite", [False, True])
def test_records_of_another_export_are_not_changed_by_a_link(tmp_path: Path, threads: Client, overwrite: bool) -> None:
    export("zarr", tmp_path / "a", threads, half=True)
    before = settled(tmp_path)
    link = tmp_path / "b.receipts"
    link.symlink_to("a.receipts")
    with pytest.raises(FileExistsError, match=r"b\.receipts is a link to .*a\.receipts, the records of another export"):
        export("zarr", tmp_path / "b", threads, overwrite=overwrite)
    link.unlink()
    assert content(tmp_path) == before
    (tmp_path / "elsewhere" / "b.receipts").mkdir(parents=True)
    link.symlink_to("elsewhere/b.receipts")  # such as another disk
    export("zarr", tmp_path / "b", threads)
    np.testing.assert_array_equal(voxels("zarr", tmp_path / "b"), OLD)
    assert export("zarr", tmp_path / "b", threads).ok
