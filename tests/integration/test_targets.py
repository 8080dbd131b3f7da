"""Targets of stores (folder, memory, S3, Google Cloud Storage): written completely, or refused before any work."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudfiles.paths
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from cloudfiles.secrets import secretpath
from distributed import Client
from numpy.typing import NDArray
from support.buckets import SHARED
from support.settings import Configure
from zarr.codecs import BloscCodec

from imagery_dask import to_zarr
from imagery_dask.errors import AccessRefusedError
from imagery_dask.export.zarr import block_array
from imagery_dask.storage import buckets, targets, zarr_stores
from imagery_dask.storage.targets import StoreTarget

SHAPE = (70, 100, 45)
CHUNKS = (32, 32, 32)
WHOLE = (slice(None),) * 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": CHUNKS, "zarr_format": 3},
    "shards": {"chunks": (16, 16, 16), "shards": CHUNKS, "zarr_format": 3},
    "zarr 2": {"chunks": CHUNKS, "zarr_format": 2},
}


@pytest.fixture(params=["folder", "memory", "s3", "gs"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a store that does not exist yet, for every kind of target."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    if request.param == "folder":
        yield str(tmp_path / "out.zarr")
    elif request.param == "memory":
        yield f"memory://{name}/out.zarr"
    else:
        pytest.importorskip({"s3": "obstore", "gs": "gcsfs"}[request.param])
        server = request.getfixturevalue({"s3": "s3_server", "gs": "gcs_server"}[request.param])
        server.create_bucket(SHARED)
        with server.environment():
            yield f"{request.param}://{SHARED}/{name}/out.zarr"


@pytest.fixture
def in_s3(s3_server: Any) -> str:
    """URL of a store in a bucket of its own, for tests that set their own keys."""
    pytest.importorskip("obstore")
    bucket = f"t-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(bucket)
    return f"s3://{bucket}/some/out.zarr"


@pytest.fixture(scope="module")
def ids() -> NDArray[np.uint64]:
    return np.random.default_rng(3).integers(2**53, 2**60, SHAPE, dtype=np.uint64)


def create_store(url: str, layout: str = "chunks", shape: tuple[int, ...] = SHAPE, dtype: Any = np.uint64) -> str:
    options = dict(LAYOUTS[layout])
    group = zarr_stores.create_group(url, options.pop("zarr_format"))
    if layout != "zarr 2":
        options |= {"compressors": BloscCodec(cname="zstd", clevel=1), "dimension_names": ["z", "y", "x"]}
    group.create_array("0", shape=shape, dtype=dtype, fill_value=0, **options)
    return url


def opened(url: str, layout: str = "chunks") -> block_array.BlockArray:
    return block_array.open_array(url, "0", run=uuid.uuid4().hex, zarr_format=LAYOUTS[layout]["zarr_format"])


def read(url: str) -> Any:
    return zarr.open_array(zarr_stores.open_store(url), path="0", mode="r")[...]


def files(url: str) -> list[str]:
    """Return the names of all objects of the array."""
    system, path = buckets.files_at(url)
    system.invalidate_cache()
    objects = system.find(f"{path}/0", detail=True)
    # SeaweedFS lists folders that became empty.
    return sorted(str(name).partition("/0/")[2] for name, entry in objects.items() if entry["size"])


# ------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_are_written_to_every_target(url: str, ids: NDArray[np.uint64], layout: str) -> None:
    if url.startswith("gs") and layout == "shards":
        pytest.skip("the emulator answers requests for the end of an object (a shard's index) with the whole object")
    array = opened(create_store(url, layout), layout)
    for z in range(0, SHAPE[0], 32):
        array.write_block((slice(z, min(z + 32, SHAPE[0])), slice(0, 64), slice(None)), ids[z : z + 32, :64])
        array.write_block((slice(z, min(z + 32, SHAPE[0])), slice(64, 100), slice(None)), ids[z : z + 32, 64:])
    np.testing.assert_array_equal(read(url), ids, strict=True)
    assert not [name for name in files(url) if "partial" in name]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_of_zeros_removes_chunks(url: str, ids: NDArray[np.uint64], layout: str) -> None:
    array = opened(create_store(url, layout), layout)
    array.write_block(WHOLE, ids)
    full = files(url)
    array.write_block((slice(64, 70), slice(96, 100), slice(None)), np.zeros((6, 4, 45), np.uint64))
    assert len(full) - len(files(url)) == 2
    array.write_block(WHOLE, np.zeros(SHAPE, np.uint64))
    left = [name.rpartition("/")[2] for name in files(url)]
    assert set(left) <= {"zarr.json", ".zarray", ".zattrs"}


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_writing_a_block_does_not_read_old_chunks(url: str, ids: NDArray[np.uint64], layout: str) -> None:
    """Old chunks need not decode, not even at the array's edge."""
    array = opened(create_store(url, layout), layout)
    array.write_block(WHOLE, ids)
    system, path = buckets.files_at(url)
    for name in files(url):
        if not name.endswith((".json", ".zarray", ".zattrs")):
            system.pipe_file(f"{path}/0/{name}", b"torn")
    array.write_block(WHOLE, ids)
    if not (url.startswith("gs") and layout == "shards"):
        np.testing.assert_array_equal(read(url), ids)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_named_as_by_zarr(tmp_path: Path, ids: NDArray[np.uint64], layout: str) -> None:
    ours, theirs = str(tmp_path / "ours.zarr"), str(tmp_path / "theirs.zarr")
    opened(create_store(ours, layout), layout).write_block(WHOLE, ids)
    zarr.open_array(create_store(theirs, layout), path="0")[...] = ids
    assert files(ours) == files(theirs)
    np.testing.assert_array_equal(read(ours), read(theirs))


@pytest.mark.parametrize(
    "selection", [(slice(0, 16), *WHOLE[1:]), (slice(8, 70), *WHOLE[1:]), (slice(0, 64, 2), *WHOLE[1:])], ids=str
)
def test_parts_of_chunks_are_refused(tmp_path: Path, ids: NDArray[np.uint64], selection: tuple[slice, ...]) -> None:
    array = opened(create_store(str(tmp_path / "out.zarr")))
    with pytest.raises(ValueError, match="does not cover whole units"):
        array.write_block(selection, ids[selection])
    with pytest.raises(ValueError, match="do not fit"):
        array.write_block(WHOLE, ids[:-1])


def test_arrays_are_opened_once_for_a_run(tmp_path: Path) -> None:
    url = create_store(str(tmp_path / "out.zarr"))
    first = block_array.open_array(url, "0", run="a")
    assert block_array.open_array(url, "0", run="a") is first
    assert block_array.open_array(url, "0", run="b") is not first


def test_the_configuration_of_zarr_is_not_changed(tmp_path: Path, ids: NDArray[np.uint64]) -> None:
    before = zarr.config.get("codec_pipeline.path"), zarr.config.get("threading.max_workers")
    array = opened(create_store(str(tmp_path / "out.zarr")))
    threads = [threading.Thread(target=array.write_block, args=(WHOLE, ids)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (zarr.config.get("codec_pipeline.path"), zarr.config.get("threading.max_workers")) == before
    np.testing.assert_array_equal(read(str(tmp_path / "out.zarr")), ids)


# --------------------------------------------------------------------------------------------------- complete chunks

WRITER = """
    import sys, numpy as np
    from imagery_dask.export.zarr import block_array

    array = block_array.open_array(sys.argv[1], "0", run="killed")
    noise = np.random.default_rng(0).integers(1, 2**60, array.shape, dtype=np.uint64)
    print("ready", flush=True)
    for n in range(int(sys.argv[2])):
        array.write_block((slice(None),) * 3, noise + np.uint64(n))
"""


def writer(url: str, times: int) -> subprocess.Popen[str]:
    """Start a process that writes the whole array several times."""
    code = textwrap.dedent(WRITER)
    process = subprocess.Popen([sys.executable, "-c", code, url, str(times)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def is_of_one_writing(chunk: Any, noise: Any) -> bool:
    """Return True if all voxels of a chunk were written at the same time, or none were."""
    return bool((chunk == 0).all() or (chunk - noise == chunk.flat[0] - noise.flat[0]).all())


@pytest.mark.parametrize("layout", ["chunks", "shards"])
@pytest.mark.long
def test_a_killed_process_leaves_complete_chunks(tmp_path: Path, layout: str) -> None:
    shape = (64, 128, 128)
    noise = np.random.default_rng(0).integers(1, 2**60, shape, dtype=np.uint64)
    partial_folders = 0
    for seed in range(4):
        url = create_store(str(tmp_path / f"{seed}.zarr"), layout, shape)
        process = writer(url, 1000)
        time.sleep(random.Random(seed).uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        partial_folders += len(list(Path(url, "0").glob(".partial-*")))
        stored = zarr.open_array(url, path="0", mode="r")
        for z, y, x in np.ndindex(2, 4, 4):
            box = tuple(slice(32 * n, 32 * n + 32) for n in (z, y, x))
            assert is_of_one_writing(stored[box], noise[box])
        names = [name for name, _ in zarr.open_group(url, mode="r").members(max_depth=None)]
        assert names == ["0"]
        assert xr.open_zarr(url, consolidated=False)["0"].shape == shape
    assert partial_folders > 0, "no process was killed in the middle of a block"


def test_partial_files_of_killed_runs_are_removed(tmp_path: Path, ids: NDArray[np.uint64]) -> None:
    url = create_store(str(tmp_path / "out.zarr"))
    partial = tmp_path / "out.zarr" / "0" / ".partial-killed-0123456789ab"
    partial.mkdir()
    (partial / "c.0.0.0").write_bytes(b"half")
    opened(url).write_block(WHOLE, ids)
    assert block_array.remove_partial(url, "0") == 1
    assert sorted(path.name for path in (tmp_path / "out.zarr" / "0").iterdir()) == ["c", "zarr.json"]
    assert block_array.remove_partial("memory://nothing/absent.zarr", "0") == 0
    np.testing.assert_array_equal(read(url), ids)


@pytest.mark.long
def test_a_concurrent_reader_sees_complete_chunks(tmp_path: Path) -> None:
    shape = (32, 64, 64)
    url = create_store(str(tmp_path / "out.zarr"), shape=shape)
    noise = np.random.default_rng(0).integers(1, 2**60, shape, dtype=np.uint64)
    stored, first_voxels = zarr.open_array(url, path="0", mode="r"), set()
    with writer(url, 60) as process:
        while process.poll() is None:
            for y, x in np.ndindex(2, 2):
                box = (slice(None), slice(32 * y, 32 * y + 32), slice(32 * x, 32 * x + 32))
                chunk = stored[box]
                assert is_of_one_writing(chunk, noise[box])
                first_voxels.add(int(chunk.flat[0]))
    assert process.returncode == 0
    assert len(first_voxels) > 3


# ----------------------------------------------------------------------------------------------- refused before work


@pytest.mark.parametrize("credentials", ["unknown key", "wrong secret", "may only read", "nobody"])
def test_refused_access_is_one_clear_error(s3_server: Any, in_s3: str, credentials: str) -> None:
    overrides = {
        "unknown key": {"AWS_ACCESS_KEY_ID": "nobody"},
        "wrong secret": {"AWS_SECRET_ACCESS_KEY": "planted-secret"},
        "may only read": s3_server.reader,
        "nobody": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    }[credentials]
    started = time.perf_counter()
    with (
        s3_server.environment(**overrides),
        pytest.raises(AccessRefusedError, match=f"Access was refused to {in_s3} .*permission") as caught,
    ):
        zarr_stores.create_group(in_s3)
    assert time.perf_counter() - started < 12  # with repeated attempts it would take 15 s
    assert "-aws-secret.json" in str(caught.value)
    assert "planted-secret" not in f"{caught.value!r} {caught.value.__context__!r}"


def test_a_refused_target_is_not_taken_for_a_free_one(s3_server: Any, in_s3: str) -> None:
    with s3_server.environment(AWS_SECRET_ACCESS_KEY="guess"), pytest.raises(AccessRefusedError, match="refused"):
        StoreTarget(in_s3).occupied()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        zarr_stores.create_group(str(tmp_path / "out.zarr"))


def test_a_read_only_disk_is_an_error() -> None:
    error = OSError(errno.EROFS, "Read-only file system")
    message = r"^/mnt/out.zarr cannot be written: Read-only file system\.$"
    with pytest.raises(AccessRefusedError, match=message), buckets.clear_errors("/mnt/out.zarr"):
        raise error


def test_a_missing_bucket_is_named(gcs_server: Any) -> None:
    pytest.importorskip("gcsfs")
    with gcs_server.environment(), pytest.raises(FileNotFoundError, match="the bucket 'never-made' does not exist"):
        zarr_stores.create_group("gs://never-made/out.zarr")


def test_an_unreachable_endpoint_is_named(s3_server: Any, in_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "RETRIES", 1)
    with (
        s3_server.environment(AWS_ENDPOINT_URL_S3="http://127.0.0.1:1"),
        pytest.raises(OSError, match=f"^{in_s3}: .*http://127.0.0.1:1/") as caught,
    ):
        zarr_stores.create_group(in_s3)
    assert "\n" not in str(caught.value)


def test_an_extra_that_is_not_installed_is_named(in_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets._needed.cache_clear()
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ImportError, match=r"pip install 'imagery_dask\[s3\]'"):
        zarr_stores.create_group(in_s3)


def test_a_store_in_memory_needs_threads_of_this_process(processes: Client, threads: Client, tmp_path: Path) -> None:
    targets.check_process("memory://here/out.zarr", threads)
    targets.check_process(str(tmp_path / "out.zarr"), processes)
    with pytest.raises(ValueError, match="memory://here/out.zarr is in the memory of this process.*bucket"):
        targets.check_process("memory://here/out.zarr", processes)


def test_workers_that_cannot_write_to_the_store_are_an_error(
    processes: Client, threads: Client, tmp_path: Path, s3_server: Any, in_s3: str
) -> None:
    """Workers with another environment have other credentials, or none."""
    zarr_stores.check_reachable(create_store(str(tmp_path / "out.zarr")), processes)
    assert [path.name for path in (tmp_path / "out.zarr").glob(".*")] == []
    with pytest.raises(FileNotFoundError, match="2 workers cannot write .*share"):
        zarr_stores.check_reachable(str(tmp_path / "nowhere.zarr"), processes)
    with s3_server.environment():
        create_store(in_s3)
        zarr_stores.check_reachable(in_s3, threads)
        processes.run(set_endpoint, s3_server.endpoint_url)
        try:
            with pytest.raises(AccessRefusedError, match=f"2 workers cannot write {in_s3}; tcp.*refused"):
                zarr_stores.check_reachable(in_s3, processes)
        finally:
            processes.run(set_endpoint, None)


def set_endpoint(url: str | None) -> None:
    os.environ.pop("AWS_ENDPOINT_URL_S3", None)
    if url is not None:
        os.environ["AWS_ENDPOINT_URL_S3"] = url


# -------------------------------------------------------------------------------------------------------- credentials


def test_secret_files_of_cloudvolume_are_used(s3_server: Any, in_s3: str, ids: NDArray[np.uint64]) -> None:
    """The file of the bucket has precedence over the general one, and both over the environment."""
    bucket = in_s3.split("/")[2]
    own, general = Path(secretpath(f"{bucket}-aws-secret.json")), Path(secretpath("aws-secret.json"))
    own.parent.mkdir(parents=True, exist_ok=True)
    keys = {"AWS_ACCESS_KEY_ID": s3_server.access_key, "AWS_SECRET_ACCESS_KEY": s3_server.secret_key}
    try:
        general.write_text(json.dumps(keys | {"AWS_SECRET_ACCESS_KEY": "guess"}))
        with s3_server.environment():
            with pytest.raises(AccessRefusedError):
                create_store(in_s3)
            own.write_text(json.dumps(keys))
        with s3_server.environment(AWS_SECRET_ACCESS_KEY="guess", AWS_SESSION_TOKEN="old"):
            opened(create_store(in_s3)).write_block(WHOLE, ids)
            np.testing.assert_array_equal(read(in_s3), ids)
    finally:
        own.unlink(missing_ok=True)
        general.unlink(missing_ok=True)


def test_aliases_of_cloudfiles_are_used(s3_server: Any, in_s3: str, ids: NDArray[np.uint64]) -> None:
    secret = Path(secretpath("nearby-secret.json"))
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text(
        json.dumps({"AWS_ACCESS_KEY_ID": s3_server.access_key, "AWS_SECRET_ACCESS_KEY": s3_server.secret_key})
    )
    url = in_s3.replace("s3://", "nearby://")
    cloudfiles.paths.add_alias("nearby", f"s3://{s3_server.endpoint_url}/")
    try:
        opened(create_store(url)).write_block(WHOLE, ids)
        np.testing.assert_array_equal(read(url), ids)
    finally:
        cloudfiles.paths.remove_alias("nearby")
        secret.unlink()
    with s3_server.environment():
        np.testing.assert_array_equal(read(in_s3), ids)


def test_a_pickled_array_contains_no_credentials(s3_server: Any, in_s3: str, ids: NDArray[np.uint64]) -> None:
    with s3_server.environment():
        array = opened(create_store(in_s3))
        sent = pickle.dumps(array)
        assert s3_server.secret_key.encode() not in sent
        assert s3_server.access_key.encode() not in sent
        assert s3_server.secret_key not in repr(array)
        pickle.loads(sent).write_block(WHOLE, ids)
        np.testing.assert_array_equal(read(in_s3), ids)


# ---------------------------------------------------------------------------------------------------------- overwriting


def test_stores_are_replaced_on_every_target(url: str, ids: NDArray[np.uint64]) -> None:
    target = StoreTarget(url)
    assert not target.occupied()
    opened(create_store(url)).write_block(WHOLE, ids)
    assert target.occupied()
    new_url = target.beside("1234abcd")
    if not target.is_local:
        assert new_url == url
        target.clear(new_url)
        assert not target.occupied()
    opened(create_store(new_url)).write_block((slice(0, 32), *WHOLE[1:]), ids[:32])
    if target.is_local:
        np.testing.assert_array_equal(read(url), ids)
        target.swap(new_url)
    np.testing.assert_array_equal(read(url)[32:], 0)
    np.testing.assert_array_equal(read(url)[:32], ids[:32])


def test_a_store_whose_name_begins_equally_is_not_removed(url: str, ids: NDArray[np.uint64]) -> None:
    opened(create_store(url)).write_block(WHOLE, ids)
    opened(create_store(f"{url}2")).write_block(WHOLE, ids)
    StoreTarget(url).clear(url)
    assert not StoreTarget(url).occupied()
    np.testing.assert_array_equal(read(f"{url}2"), ids)


def test_foreign_objects_are_not_replaced(url: str) -> None:
    system, path = buckets.files_at(url)
    system.makedirs(path, exist_ok=True)
    system.pipe_file(f"{path}/chapter.tex", b"years of work")
    with pytest.raises(FileExistsError, match="is not a zarr store"):
        StoreTarget(url).occupied()
    create_store(url)
    with pytest.raises(FileExistsError, match=r"chapter\.tex"):
        StoreTarget(url).occupied()
    assert system.cat_file(f"{path}/chapter.tex") == b"years of work"


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"zarr_format": 9}', b"\xff"])
def test_a_folder_with_other_metadata_is_not_a_zarr_store(tmp_path: Path, content: bytes) -> None:
    for name in ("zarr.json", ".zgroup", ".zarray"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(FileExistsError, match="is not a zarr store"):
            StoreTarget(str(folder)).occupied()


@pytest.mark.long
def test_a_folder_of_many_objects_is_refused_quickly(s3_server: Any, in_s3: str) -> None:
    bucket, _, prefix = in_s3.removeprefix("s3://").partition("/")
    with s3_server._closing_client() as client:

        def put(number: int) -> None:
            client.put_object(Bucket=bucket, Key=f"{prefix}/{number}", Body=b"x")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(2100)))
    with s3_server.environment():
        started = time.perf_counter()
        with pytest.raises(FileExistsError, match="is not a zarr store"):
            StoreTarget(in_s3).occupied()
        assert time.perf_counter() - started < 5


# ------------------------------------------------------------------------------------------------------------- exports


def test_arrays_are_exported_to_every_target_without_credentials_in_tasks(
    url: str, ids: NDArray[np.uint64], threads: Client, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    sent: list[bytes] = []
    submit = Client.submit

    def record_and_submit(self: Client, function: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(pickle.dumps((function, args)))
        return submit(self, function, *args, **kwargs)

    monkeypatch.setattr(Client, "submit", record_and_submit)
    configure("export.small_block_bytes", 2**18)
    configure("run.batch_blocks", 1)
    options: dict[str, Any] = {"chunks": (32, 32, 32), "progress": False}
    report = to_zarr(ids, url, cluster=threads, **options)
    assert report.ok
    assert len(sent) == report.blocks > 1
    assert b"tests-secret" not in b"".join(sent)
    np.testing.assert_array_equal(read(url).T, ids)
    assert to_zarr(ids, url, **options).before == report.blocks  # the same export is complete already
    with pytest.raises(FileExistsError, match=r"out\.zarr exists already.*arguments: image array is another one"):
        to_zarr(ids + np.uint64(1), url, **options)
    to_zarr(ids + np.uint64(1), url, overwrite=True, **options)
    np.testing.assert_array_equal(read(url).T, ids + np.uint64(1))


def test_a_refused_export_computes_nothing(
    s3_server: Any, in_s3: str, processes: Client, ids: NDArray[np.uint64]
) -> None:
    def fail(block: Any) -> Any:
        raise AssertionError("the array was computed")

    array = da.from_array(ids, chunks=32).map_blocks(fail, dtype=ids.dtype)
    with s3_server.environment(**s3_server.reader), pytest.raises(AccessRefusedError, match="refused"):
        to_zarr(array, in_s3, progress=False)
    with pytest.raises(ValueError, match="memory of this process"):
        to_zarr(array, "memory://nowhere/out.zarr", cluster=processes, progress=False)


@pytest.mark.parametrize("folder", ["2024", "c"])
def test_a_zarr_store_with_a_foreign_folder_is_not_replaced(tmp_path: Path, folder: str) -> None:
    to_zarr(np.ones((8, 8, 8), np.uint8), tmp_path / "o.zarr", progress=False)
    foreign = tmp_path / "o.zarr" / folder / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds '{folder}'"):
        to_zarr(np.ones((8, 8, 8), np.uint8), tmp_path / "o.zarr", overwrite=True, progress=False)
    assert foreign.read_text() == "mine"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_written_by_zarr_may_be_replaced(tmp_path: Path, zarr_format: Any) -> None:
    encoding = {"name": "v2", "separator": "."} if zarr_format == 2 else None
    zarr.create_array(
        tmp_path / "o.zarr", data=np.ones((8, 8, 8)), chunks=(4, 4, 4), zarr_format=zarr_format,
        chunk_key_encoding=encoding,
    )  # fmt: skip
    to_zarr(np.ones((8, 8, 8), np.uint8), tmp_path / "o.zarr", overwrite=True, progress=False)
