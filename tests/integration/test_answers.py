"""Answers over HTTP: which are data, which mean that a file does not exist, and how much of them is read."""

from __future__ import annotations

import gzip
import os
import socket
import string
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import zstandard
from support.buckets import GcsServer, S3Server
from support.http_server import Fault, FileServer
from support.settings import Configure
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_precomputed
from imagery_dask.errors import InvalidInfoError, SourceError
from imagery_dask.sources import collect_counts
from imagery_dask.sources.requests.transport import Request, Transport

SHAPE = (64, 32, 16)  # 2 chunks
CHUNK = "/em/8_8_40/0-32_0-32_0-16"
NAMES = ["".join(c for c in string.printable if c.isprintable() and c not in '/"\\ '), "a b", "8%5F8", "+", "#", "?x"]
# Relative to the folder with the info.
RELATIVE = ["mip/", "./mip", "a/./mip", "a/../mip", "../beside/mip", "a/b/../../../other"]
PAGE = b"<!DOCTYPE html>\n<html><head><title>Please log in</title></head></html>"

Serve = Callable[..., tuple[FileServer, str]]


@pytest.fixture(autouse=True)
def _short_pauses(configure: Configure) -> None:
    configure("requests.first_pause_s", 0.01)


@pytest.fixture
def data() -> Any:
    return coordinate_volume(SHAPE, dtype=np.uint16)


@pytest.fixture
def serve(tmp_path: Path, data: Any, http_server_factory: Callable[..., FileServer]) -> Serve:
    def start(**options: Any) -> tuple[FileServer, str]:
        write_volume(tmp_path / "em", data, **options)
        server = http_server_factory(tmp_path)
        return server, f"{server.url}/em"

    return start


def read(source: str | Path) -> Any:
    return ImageryClient(image_source=source).image_cutout([[0, 0, 0], SHAPE]).compute(scheduler="synchronous")


def with_key(folder: Path, data: Any, key: str) -> None:
    """Write a volume whose scale has a given key."""
    write_volume(folder, data, compress=False)
    target = Path(os.path.normpath(folder / key))
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / "8_8_40").rename(target)
    info = (folder / "info").read_text()
    assert '"8_8_40"' in info
    (folder / "info").write_text(info.replace('"8_8_40"', '"' + key + '"'))


@pytest.mark.parametrize("name", NAMES)
def test_names_have_any_characters(
    tmp_path: Path, data: Any, http_server_factory: Callable[..., FileServer], name: str
) -> None:
    with_key(tmp_path / name, data, name)
    server = http_server_factory(tmp_path)
    escaped = name.replace("%", "%25")  # as in any URL; the other characters may be written as they are
    for source in (str(tmp_path / name), f"file://{tmp_path / name}", f"{server.url}/{escaped}"):
        with collect_counts() as counts:
            np.testing.assert_array_equal(read(source), data)
        assert (counts.chunks, counts.missing) == (2, 0)


def test_names_of_folders_end_with_spaces(tmp_path: Path, data: Any) -> None:
    with_key(tmp_path / "em ", data, "mip ")
    folder = tmp_path / "em "
    for source in (folder, str(folder), f"file://{folder}", f"precomputed://file://{folder}"):
        np.testing.assert_array_equal(read(source), data)


def test_names_in_s3_have_any_characters(tmp_path: Path, data: Any, s3_server: S3Server) -> None:
    for number, name in enumerate(NAMES):
        with_key(tmp_path / str(number), data, name)
        url = s3_server.upload(tmp_path / str(number), "shared", f"names/{name}")
        with s3_server.environment():
            np.testing.assert_array_equal(read(url), data)


def test_volumes_are_written_with_names_of_any_characters(tmp_path: Path, data: Any, s3_server: S3Server) -> None:
    options: dict[str, Any] = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20), "chunks": (32, 32, 16)}
    name = NAMES[0].translate({ord(c): None for c in "*?[]"})  # patterns of paths
    with s3_server.environment():
        s3_server.create_bucket("shared")
        for url in (str(tmp_path / name), f"s3://shared/written/{name}"):
            to_precomputed(data, url, progress=False, **options)
            np.testing.assert_array_equal(read(url), data)


def test_names_in_google_cloud_storage_have_any_characters(tmp_path: Path, data: Any, gcs_server: GcsServer) -> None:
    for number, name in enumerate(NAMES):
        with_key(tmp_path / str(number), data, name)
        url = gcs_server.upload(tmp_path / str(number), "names", f"names/{name}")
        with gcs_server.environment():
            np.testing.assert_array_equal(read(url), data)


@pytest.mark.parametrize("store", ["disk", "http", "s3", "gs"])
def test_keys_of_scales_are_relative_paths(
    tmp_path: Path, data: Any, store: str, request: pytest.FixtureRequest, http_server_factory: Any
) -> None:
    for number, key in enumerate(RELATIVE):
        with_key(tmp_path / str(number) / "em", data, key)
    url, environment = str(tmp_path), nullcontext()
    if store == "http":
        url = http_server_factory(tmp_path).url
    elif store in ("s3", "gs"):
        server = request.getfixturevalue("s3_server" if store == "s3" else "gcs_server")
        url, environment = server.upload(tmp_path, "shared", "relative"), server.environment()
    with environment:
        for number in range(len(RELATIVE)):
            np.testing.assert_array_equal(read(f"{url}/{number}/em"), data)


def test_a_query_is_sent_with_each_request(data: Any, serve: Serve) -> None:
    server, url = serve()
    np.testing.assert_array_equal(read(f"{url}?token=abc&v=1"), data)
    assert [request.query for request in server.requests] == ["token=abc&v=1"] * 3


# ------------------------------------------------------------------------------------------------- what is data


def answered(serve: Serve, **answer: Any) -> tuple[FileServer, str]:
    server, url = serve(compress=False)
    ImageryClient(image_source=url)
    server.faults = lambda path, n: Fault(**answer) if path == CHUNK else None
    server.reset()
    return server, url


@pytest.mark.parametrize("status", [404, 410])
def test_files_that_do_not_exist_are_missing(data: Any, serve: Serve, status: int) -> None:
    _, url = answered(serve, status=status)
    with collect_counts() as counts:
        voxels = read(url)
    assert counts.missing == 1
    assert not voxels[:32].any()
    np.testing.assert_array_equal(voxels[32:], data[32:])


@pytest.mark.parametrize("status", [201, 202, 203, 204, 205, 206, 300, 302, 304, 307, 400, 402, 405, 451])
def test_other_answers_are_errors(serve: Serve, status: int) -> None:
    server, url = answered(serve, status=status)
    with pytest.raises(SourceError, match=f"8_8_40/0-32_0-32_0-16 failed: .*HTTP {status}"):
        read(url)
    assert server.count(CHUNK) == 1


@pytest.mark.parametrize("status", [204, 202, 302, 304])
def test_an_info_that_is_no_data_is_not_a_missing_volume(serve: Serve, status: int) -> None:
    server, url = serve()
    server.faults = lambda path, n: Fault(status) if path == "/em/info" else None
    with pytest.raises(SourceError, match=f"HTTP {status}") as caught:
        ImageryClient(image_source=url)
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("page", [404, 200])
def test_a_redirect_to_a_login_page_is_an_error(serve: Serve, tmp_path: Path, page: int) -> None:
    server, url = answered(serve, status=302, headers={"Location": "/login?next=em"})
    if page == 200:
        (tmp_path / "login").write_bytes(PAGE)
    with pytest.raises(SourceError, match="HTML page .*Please log in" if page == 200 else "HTTP 404 at .*/login"):
        read(url)


def test_a_redirect_to_the_same_file_elsewhere_is_followed(data: Any, serve: Serve, tmp_path: Path) -> None:
    server, url = answered(serve, status=302, headers={"Location": f"/other{CHUNK}"})
    with collect_counts() as counts:
        read(url)
    assert counts.missing == 1
    (tmp_path / "other").symlink_to(tmp_path)
    np.testing.assert_array_equal(read(url), data)


@pytest.mark.parametrize("part", ["info", "8_8_40/0-32_0-32_0-16"])
def test_pages_are_named(serve: Serve, part: str) -> None:
    server, url = serve()
    server.faults = lambda path, n: Fault(200, body=PAGE) if path == f"/em/{part}" else None
    with pytest.raises(SourceError, match="HTML page .*Please log in"):
        read(url)


def test_the_title_of_a_page_is_named_without_secrets(serve: Serve) -> None:
    page = b"<html><title>Log in for /em/info?token=SECRET&v=1, http://me:SECRET@host</title></html>"
    _, url = answered(serve, status=200, body=page)
    with pytest.raises(SourceError, match=r"HTML page .*/em/info\?token=\*\*\*") as caught:
        read(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("start", [0, 20, 1000])
@pytest.mark.parametrize("status", [200, 206])
def test_pages_in_place_of_ranges_are_named(serve: Serve, start: int, status: int) -> None:
    server, url = serve()
    headers = {"Content-Range": f"bytes {start}-{start + 99}/5000"}
    server.faults = lambda path, n: Fault(status, headers=headers if status == 206 else {}, body=PAGE)
    blob = Transport(url).get(Request("8_8_40/0.shard", start, start + 100))
    assert blob is not None
    assert "HTML page" in blob.damage


@pytest.mark.parametrize("sent", ["bytes 0-99/1000", "bytes 100-300/1000", "bytes 101-200/1000", "nonsense"])
def test_the_range_of_an_answer_is_compared(serve: Serve, sent: str) -> None:
    server, url = serve(compress=False)
    server.faults = lambda path, n: Fault(206, headers={"Content-Range": sent}, body=bytes(100))
    blob = Transport(url).get(Request(CHUNK.removeprefix("/em/"), 100, 200))
    assert blob is not None
    assert "bytes 100 to 200 were requested" in blob.damage


def test_several_parts_in_place_of_a_range_are_damage(serve: Serve) -> None:
    server, url = serve(compress=False)
    body = b"--X\r\nContent-Range: bytes 100-199/1000\r\n\r\n" + bytes(100) + b"\r\n--X--\r\n"
    headers = {"Content-Type": "multipart/byteranges; boundary=X"}
    server.faults = lambda path, n: Fault(206, headers=headers, body=body)
    blob = Transport(url).get(Request(CHUNK.removeprefix("/em/"), 100, 200))
    assert blob is not None
    assert "the server sent more" in blob.damage


COMPRESSED = {
    "identity": bytes, "Identity": bytes, "": bytes, "gzip": gzip.compress, "x-gzip": gzip.compress,
    "GZIP": gzip.compress, "gzip, identity": gzip.compress, "deflate": zlib.compress, "br": brotli.compress,
    "zstd": zstandard.compress, "gzip, br": lambda content: brotli.compress(gzip.compress(content)),
}  # fmt: skip


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_content_encodings_are_read(data: Any, serve: Serve, tmp_path: Path, encoding: str) -> None:
    server, url = serve(compress=False)
    body = COMPRESSED[encoding]((tmp_path / CHUNK.lstrip("/")).read_bytes())
    server.faults = lambda path, n: (
        Fault(200, headers={"Content-Encoding": encoding}, body=body) if path == CHUNK else None
    )
    np.testing.assert_array_equal(read(url), data)


def test_an_unknown_content_encoding_is_named(serve: Serve) -> None:
    answer = {"status": 200, "headers": {"Content-Encoding": "shrink"}, "body": b"abc"}
    _, url = answered(serve, **answer)
    with pytest.raises(SourceError, match="8_8_40/0-32_0-32_0-16.*compression 'shrink' is unknown"):
        read(url)


INFOS = {
    "nothing": b"", "half": b'{"scales": [', "zeros": bytes(100), "no text": b"\xff\xfe", "a page": PAGE,
    "nested lists": b"[" * 100_000, "nested objects": b'{"a": ' * 100_000, "many digits": b"1" * 10_000, 
    "null": b"null",
    "a list": b"[]", "a number": b"NaN", "nested": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("content", INFOS.values(), ids=INFOS)
def test_infos_that_are_none_are_refused(serve: Serve, tmp_path: Path, content: bytes) -> None:
    _, url = serve()
    (tmp_path / "em" / "info").write_bytes(content)
    for source in (url, str(tmp_path / "em")):
        with pytest.raises(InvalidInfoError, match="info.*em'") as caught:
            ImageryClient(image_source=source)
        assert len(str(caught.value)) < 600


# ------------------------------------------------------------------------------------------------- limits


@contextmanager
def endless(head: bytes, piece: bytes, pause_s: float = 0.0) -> Iterator[tuple[str, list[int]]]:
    """Answer each request with a head and the same piece of a body for ever; yield the URL and the bytes sent."""
    closing, sent = threading.Event(), [0]
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(head)
                while not closing.wait(pause_s):
                    connection.sendall(piece)
                    sent[0] += len(piece)
            except OSError:
                pass  # the client has enough

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection,)))
            threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/em", sent
    finally:
        closing.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("length", ["", "Content-Length: 3000000000\r\n"], ids=["no length", "length"])
def test_no_more_of_a_body_is_read_than_a_file_can_have(length: str) -> None:
    with endless(f"HTTP/1.1 200 OK\r\n{length}\r\n".encode(), bytes(65536)) as (url, sent):
        blob = Transport(url).get(Request("8_8_40/0", most=100_000))
    assert blob is not None
    assert len(blob.content) <= 100_000
    assert "more than 100000 bytes" in blob.damage
    assert sent[0] < 50_000_000  # in the buffers of the sockets


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 ", b"x"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["status", "header", "length", "no length", "chunked"],
)
def test_a_slow_answer_is_an_error(configure: Configure, head: bytes, piece: bytes) -> None:
    configure("requests.timeout_s", (0.1, 0.2))
    configure("requests.attempts", 1)
    with endless(head, piece, 0.1) as (url, sent), pytest.raises(SourceError, match="too slowly|timed out"):
        Transport(url).get(Request("8_8_40/0", most=20))


@pytest.fixture
def as_s3(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Transport]:
    """Return a function that opens a server as the endpoint of S3, whose requests boto3 makes."""

    def transport(url: str) -> Transport:
        server = S3Server(url.removesuffix("/em"))
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        return Transport(f"precomputed://s3://bucket-{url.rpartition(':')[2].replace('/', '-')}/em")

    return transport


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nX-A: ", "too slowly|timed out"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", "too slowly|timed out"),
        (b"HTTP/1.1 206 OK\r\nContent-Length: 3000000000\r\n\r\n", "HTTP 206, which is neither data"),
    ],
    ids=["header", "length", "size"],
)
def test_a_bucket_has_the_same_limits(
    configure: Configure, as_s3: Callable[[str], Transport], head: bytes, error: str
) -> None:
    configure("requests.timeout_s", (0.1, 0.4))
    configure("requests.attempts", 1)
    with endless(head, b"x", 0.1) as (url, _), pytest.raises(SourceError, match=error):
        as_s3(url).get(Request("8_8_40/0", most=20))
