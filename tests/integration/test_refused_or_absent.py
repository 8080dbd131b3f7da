"""Servers that answer HTTP 403 for files that do not exist: buckets that allow reading, and not listing.

Whether a 403 for a chunk means "absent or refused" or "refused" is told by a control, a file that surely does not
exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.buckets import environment
from support.http_server import Fault, FileServer, Request
from support.volumes import coordinate_volume, delete_chunks, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import AccessRefusedError, BlockFailedError, MissingChunkError, TooManyMissingError
from imagery_dask.export.core.provenance import KEY
from imagery_dask.export.reports.status import status_of
from imagery_dask.run import RunReport
from imagery_dask.sources import collect_counts
from imagery_dask.testing.cave import http_base

SHAPE = (96, 64, 32)  # 3 x 2 x 2 chunks of 32 x 32 x 16
CHUNK = (32, 32, 16)
OFFSET = (64, -32, 16)
STOP = tuple(a + n for a, n in zip(OFFSET, SHAPE, strict=True))
FOLDER = "/bucket/em/8_8_40/"
DENIED = 403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
# Protocols by which the same server is asked.
PROTOCOLS = ("http", "s3", "gcs")

kinds = pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
everywhere = pytest.mark.parametrize("protocol", PROTOCOLS)


def is_gone(start: tuple[int, int, int]) -> bool:
    """Select eight chunks; of the sharded volume they are all that two shard files have."""
    return start[0] < 128


@pytest.fixture
def data() -> Any:
    return coordinate_volume(SHAPE, OFFSET, np.uint16)


class Served:
    """A volume without some of its chunks, at a server that answers 403 for what does not exist."""

    def __init__(self, server: FileServer, path: str, url: str, expected: Any, missing: int) -> None:
        self.server, self.path, self.url, self.expected, self.missing = server, path, url, expected, missing

    def client(self, **options: Any) -> ImageryClient:
        return ImageryClient(image_source=self.url, **options)

    def controls(self) -> list[Request]:
        return [request for request in self.server.requests if "control" in request.path]


Serve = Callable[..., Served]
Command = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path, data: Any, http_server_factory: Callable[..., FileServer]) -> Iterator[Serve]:
    variables = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    before: list[Any] = []

    def start(protocol: str = "http", sharded: bool = False, absent: Any = DENIED) -> Served:
        path = write_volume(tmp_path / "root" / "bucket" / "em", data, voxel_offset=OFFSET, sharding=sharded)
        expected = data.copy()
        removed = delete_chunks(path, 0, is_gone)
        for gone in removed:
            expected[gone] = 0
        server = http_server_factory(tmp_path / "root")
        server.absent = absent
        urls = {"http": f"{server.url}/bucket/em", "s3": "s3://bucket/em", "gcs": "gs://bucket/em"}
        endpoint = {
            "s3": {"AWS_ENDPOINT_URL_S3": server.url, **variables},
            "gcs": {"STORAGE_EMULATOR_HOST": server.url},
        }
        before.append(environment(endpoint.get(protocol, {})))
        before[-1].__enter__()
        return Served(server, path, f"precomputed://{urls[protocol]}", expected, len(removed))

    yield start
    for context in before:
        context.__exit__(None, None, None)


def read(client: ImageryClient, bounds: Any = (OFFSET, STOP)) -> Any:
    return client.image_cutout(bounds).compute(scheduler="synchronous")


# ---------------------------------------------------------------------------------------------------------- cutouts


@kinds
@everywhere
def test_a_refused_or_absent_chunk_is_zero_and_counted_apart(
    serve: Serve, sharded: bool, protocol: str, logged_warnings: list[str]
) -> None:
    served = serve(protocol, sharded)
    client = served.client()
    with collect_counts() as counts:
        np.testing.assert_array_equal(read(client), served.expected)
    assert 0 < counts.refused_or_absent <= counts.missing == served.missing
    if not sharded:
        assert counts.refused_or_absent_keys == counts.missing_keys
    assert len(served.controls()) == 1
    assert served.controls()[0].path.startswith("/bucket/em/imagery-dask-control-")
    (warning,) = [text for text in logged_warnings if "HTTP 403 both" in text]
    assert "em" in warning
    # The server is asked once for each volume.
    with collect_counts() as counts:
        read(client)
    assert counts.refused_or_absent
    assert len(served.controls()) == 1
    assert sum("HTTP 403 both" in text for text in logged_warnings) == 1


@kinds
@everywhere
def test_missing_error_fails_and_says_that_it_may_be_refused(serve: Serve, sharded: bool, protocol: str) -> None:
    served = serve(protocol, sharded)
    with pytest.raises(MissingChunkError, match=r"8_8_40/\S+ of .*em is absent or refused: .*HTTP 403") as caught:
        read(served.client(missing="error"))
    assert "missing='fill'" in str(caught.value)
    assert "listing" in str(caught.value)


@kinds
@everywhere
def test_a_refusal_stays_one_where_absent_files_are_404(serve: Serve, sharded: bool, protocol: str) -> None:
    """The control: the same answer for chunks, from a server that says what does not exist."""
    served = serve(protocol, sharded, absent=(404, b"<Error><Code>NoSuchKey</Code></Error>"))
    served.server.faults = refuse(FOLDER)
    for missing in ("fill", "error"):
        with pytest.raises(AccessRefusedError, match="Access was refused to .*8_8_40"):
            read(served.client(missing=missing))
    assert [request.status for request in served.controls()] == [404]


@pytest.mark.long
def test_a_volume_of_which_all_is_refused_now_is_refused(serve: Serve) -> None:
    """A 403 for the info, too: no chunk becomes 0."""
    served = serve()
    client = served.client()
    served.server.faults = refuse("/bucket/em/")
    with pytest.raises(AccessRefusedError, match="Access was refused"):
        read(client)
    assert not served.controls()


@pytest.mark.long
@kinds
def test_what_is_refused_later_is_refused(serve: Serve, sharded: bool) -> None:
    """A permission that ends after the control: the info is read again for each read with missing chunks."""
    served = serve(sharded=sharded)
    client = served.client(cache_bytes=0)
    np.testing.assert_array_equal(read(client), served.expected)
    served.server.faults = refuse("/bucket/em/")
    with pytest.raises(AccessRefusedError, match="Access was refused to .*info"):
        read(client)


@pytest.mark.long
@everywhere
def test_an_expired_token_is_refused(serve: Serve, protocol: str) -> None:
    """Where a bucket says why it refuses, the control is not needed."""
    if protocol == "http":
        pytest.skip("HTTP has no codes")
    served = serve(protocol)
    client = served.client()
    served.server.faults = lambda path, n: Fault(403, body=EXPIRED) if path.startswith(FOLDER) else None
    with pytest.raises(AccessRefusedError, match="ExpiredToken"):
        read(client)
    assert not served.controls()


def test_401_is_refused(serve: Serve) -> None:
    served = serve(absent=(401, b""))
    with pytest.raises(AccessRefusedError, match="401"):
        read(served.client())


@pytest.mark.long
def test_a_shard_that_is_removed_while_it_is_read_is_counted(serve: Serve, tmp_path: Path, data: Any) -> None:
    served = serve(sharded=True)
    client = served.client(cache_bytes=0)
    read(client)  # keeps the indices
    for shard in (tmp_path / "root" / "bucket" / "em" / "8_8_40").iterdir():
        shard.unlink()
    with collect_counts() as counts:
        assert not read(client).any()
    assert counts.missing == 12
    assert counts.refused_or_absent >= 4


@pytest.mark.long
def test_connections_are_used_again_after_refusals(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    client = served.client(cache_bytes=0)
    opened: list[object] = []
    handle = http_base.Handler.handle
    assert issubclass(http_base.Handler, BaseHTTPRequestHandler)

    def counted(handler: Any) -> None:
        opened.append(handler.client_address)
        handle(handler)

    for _ in range(3):
        read(client)
    monkeypatch.setattr(http_base.Handler, "handle", counted)
    for _ in range(5):
        read(client)
    assert len(opened) <= 2


@pytest.mark.long
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_volume(tmp_path / "em", data, voxel_offset=OFFSET)
    client = ImageryClient(image_source=path)
    opened = open

    def refusing(name: Any, *args: Any, **options: Any) -> Any:
        if "8_8_40" in str(name):
            raise PermissionError(13, "Permission denied", name)
        return opened(name, *args, **options)

    monkeypatch.setattr("imagery_dask.sources.files.local_files.open", refusing, raising=False)
    with pytest.raises(AccessRefusedError, match="Permission denied"):
        read(client)


def refuse(prefix: str) -> Callable[[str, int], Fault | None]:
    return lambda path, n: Fault(DENIED[0], body=DENIED[1]) if path.startswith(prefix) else None


# ---------------------------------------------------------------------------------------------------------- exports


@pytest.mark.long
@kinds
@everywhere
def test_an_export_counts_them_apart_and_is_resumed(
    tmp_path: Path, serve: Serve, sharded: bool, protocol: str, command: Command
) -> None:
    served = serve(protocol, sharded)
    volume, out, page = served.client().image_volume(), tmp_path / "out.zarr", tmp_path / "report.html"
    options: dict[str, Any] = {"chunks": CHUNK, "block_mib": 0.01, "report": page}

    def stop(report: RunReport) -> None:
        if report.done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_zarr(volume, out, progress=stop, **options)
    (status,) = status_of(out)
    assert (status.state, status.done < 12) == ("interrupted", True)
    report = to_zarr(volume, out, progress=False, **options)
    assert (report.ok, report.before > 0) == (True, True)
    counts = report.counts
    assert 0 < counts.refused_or_absent <= counts.missing == served.missing
    assert len(set(counts.missing_keys)) == served.missing
    assert sum(one.refused_or_absent for one in report.counts_of.values()) == counts.refused_or_absent
    assert "of these refused or absent" in repr(report)
    stored = np.asarray(zarr.open_group(out, mode="r")["0"]).T  # type: ignore[arg-type]
    np.testing.assert_array_equal(stored.squeeze(), served.expected)
    # Each record tells them apart.
    attributes = dict(zarr.open_group(out, mode="r").attrs[KEY])  # type: ignore[call-overload]
    assert attributes["source_chunks_missing"] == served.missing
    assert attributes["source_chunks_refused_or_absent"] == counts.refused_or_absent
    rows = [json.loads(line) for line in (tmp_path / "out.zarr.receipts" / "ledger.jsonl").read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds.count("refused or absent chunk") == counts.refused_or_absent
    assert kinds.count("missing chunk") == counts.missing - counts.refused_or_absent
    (status,) = status_of(out)
    assert (status.missing, status.refused_or_absent) == (counts.missing, counts.refused_or_absent)
    assert "are refused or absent: the server answers HTTP 403 for both" in page.read_text()
    assert f"refused or absent (HTTP 403 for both): {counts.refused_or_absent}\n" in command("status", out).out
    # The same call again does nothing, and reports the same.
    again = to_zarr(volume, out, progress=False, **options)
    assert (again.before, again.counts.refused_or_absent) == (again.blocks, counts.refused_or_absent)


@pytest.mark.long
@kinds
def test_a_later_answer_replaces_the_count(tmp_path: Path, serve: Serve, sharded: bool) -> None:
    """Once the server says what does not exist, blocks that are done again count it as missing."""
    served = serve(sharded=sharded)
    volume, out = served.client().image_volume(), tmp_path / "out.zarr"
    options: dict[str, Any] = {"chunks": CHUNK, "block_mib": 0.01, "progress": False}
    assert to_zarr(volume, out, **options).counts.refused_or_absent
    served.server.absent = 404, b""
    report = to_zarr(volume, out, redo_missing=True, **options)
    assert (report.counts.missing, report.counts.refused_or_absent) == (served.missing, 0)
    (status,) = status_of(out)
    assert (status.missing, status.refused_or_absent) == (served.missing, 0)


def test_max_missing_counts_them(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    volume = served.client().image_volume()
    options: dict[str, Any] = {"chunks": CHUNK, "block_mib": 0.01, "progress": False}
    with pytest.raises(TooManyMissingError, match="do not exist or are refused .HTTP 403 is the answer to both for "):
        to_zarr(volume, tmp_path / "few.zarr", max_missing=served.missing - 1, **options)
    assert to_zarr(volume, tmp_path / "all.zarr", max_missing=served.missing, **options).ok


@pytest.mark.long
@kinds
def test_the_command_fails_with_missing_error(tmp_path: Path, serve: Serve, sharded: bool, command: Command) -> None:
    served = serve(sharded=sharded)
    arguments = ("export", "zarr", tmp_path / "out.zarr", "--image-source", served.url, "--bounds",
                 *OFFSET, *STOP, "--chunks", "32,32,16", "--block-mib", "0.01")  # fmt: skip
    done = command(*arguments, "--missing", "error")
    assert done.code == 1
    assert "is absent or refused: the server answers HTTP 403" in done.error
    done = command(*arguments, "--overwrite")
    assert done.code == 0
    assert "of them are refused or absent: the server answers HTTP 403 in both cases" in done.out


@pytest.mark.long
def test_blocks_fail_with_missing_error(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    with pytest.raises(BlockFailedError, match="absent or refused"):
        to_zarr(
            served.client(missing="error").image_volume(), tmp_path / "out.zarr", chunks=CHUNK, block_mib=0.01,
            progress=False,
        )  # fmt: skip


@pytest.mark.long
@kinds
def test_an_export_ends_when_all_is_refused_later(tmp_path: Path, serve: Serve, sharded: bool) -> None:
    """A permission that ends after the control has shown that absence is hidden."""
    served = serve(sharded=sharded)
    volume = served.client().image_volume()
    served.server.faults = None

    def withdraw(report: RunReport) -> None:
        if report.counts.refused_or_absent:
            served.server.faults = refuse("/bucket/em/")

    with pytest.raises(AccessRefusedError, match="Access was refused"):
        to_zarr(volume, tmp_path / "out.zarr", chunks=CHUNK, block_mib=0.01, progress=withdraw)
