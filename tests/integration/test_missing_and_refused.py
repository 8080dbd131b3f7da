"""Missing, refused and failing chunks are distinguished; only missing chunks may become 0."""

from __future__ import annotations

import json
import posixpath
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.http_server import Fault, FileServer
from support.volumes import coordinate_volume, delete_chunks, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import (
    AccessRefusedError,
    CorruptChunkError,
    MissingChunkError,
    SourceError,
    SourceNotFoundError,
)
from imagery_dask.sources import collect_counts

SHAPE = (96, 64, 32)  # 3 x 2 x 2 chunks
OFFSET = (64, -32, 16)
STOP = tuple(a + n for a, n in zip(OFFSET, SHAPE, strict=True))
GONE = (96, -32, 32)  # first voxel of a chunk that is deleted
GONE_KEY = "8_8_40/96-128_-32-0_32-48"
CHUNK = "/em/8_8_40/64-96_-32-0_16-32"

sharded = pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])


@pytest.fixture
def data() -> Any:
    return coordinate_volume(SHAPE, OFFSET, np.uint16)


@pytest.fixture
def serve(
    tmp_path: Path, data: Any, http_server_factory: Callable[..., FileServer]
) -> Callable[..., tuple[FileServer, str]]:
    """Write the volume below ``tmp_path / "em"`` and serve it."""

    def start(**options: Any) -> tuple[FileServer, str]:
        write_volume(tmp_path / "em", data, voxel_offset=OFFSET, **options)
        server = http_server_factory(tmp_path)
        return server, f"precomputed://{server.url}/em"

    return start


@contextmanager
def faster_than(seconds: float) -> Iterator[None]:
    """Check that the block takes less time."""
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < seconds


def read(client: ImageryClient, bounds: Any = (OFFSET, STOP)) -> Any:
    return client.image_cutout(bounds).compute(scheduler="synchronous")


def answer(status: int, path: str, times: int = 10**9, **options: Any) -> Callable[[str, int], Fault | None]:
    """Return faults that answer the first requests of a path (or of all below it, if it ends in "/") with a status."""

    def fault(requested: str, n: int) -> Fault | None:
        hit = requested.startswith(path) if path.endswith("/") else requested == path
        return Fault(status, **options) if hit and n <= times else None

    return fault


# ------------------------------------------------------------------------------------------------------ missing


@sharded
@pytest.mark.parametrize("remote", [False, True], ids=["disk", "http"])
def test_a_missing_chunk_is_zero_and_counted(
    tmp_path: Path, data: Any, serve: Callable[..., tuple[FileServer, str]], sharded: bool, remote: bool
) -> None:
    _, url = serve(sharding=sharded)
    local = f"precomputed://file://{tmp_path / 'em'}"
    (gone,) = delete_chunks(local, 0, lambda start: start == GONE)
    expected = data.copy()
    expected[gone] = 0
    client = ImageryClient(image_source=url if remote else local)
    with collect_counts() as counts:
        np.testing.assert_array_equal(read(client), expected)
    assert (counts.chunks, counts.missing, counts.missing_keys) == (12, 1, [GONE_KEY])
    with collect_counts() as counts:
        read(client, ((64, -32, 16), (96, 32, 48)))
    assert (counts.chunks, counts.missing) == (4, 0)
    report = to_zarr(client.image_volume(), tmp_path / "out.zarr", chunks=(32, 32, 16), progress=False)
    assert report.ok
    assert (report.counts.missing, report.counts.missing_keys) == (1, [GONE_KEY])


@sharded
@pytest.mark.parametrize("remote", [False, True], ids=["disk", "http"])
def test_a_missing_chunk_is_an_error_on_request(
    tmp_path: Path, serve: Callable[..., tuple[FileServer, str]], sharded: bool, remote: bool
) -> None:
    server, url = serve(sharding=sharded)
    local = f"precomputed://file://{tmp_path / 'em'}"
    delete_chunks(local, 0, lambda start: start == GONE)
    client = ImageryClient(image_source=url if remote else local, missing="error")
    with pytest.raises(MissingChunkError, match=f"{GONE_KEY} of .*em") as caught:
        read(client)
    assert "missing='fill'" in str(caught.value)
    assert read(client, ((64, -32, 16), (96, 32, 48))).any()
    assert server.count(lambda request: request.status == 404 and GONE_KEY in request.path) == int(
        remote and not sharded
    )


@sharded
def test_a_missing_shard_counts_every_chunk_of_it(tmp_path: Path, data: Any, sharded: bool) -> None:
    path = write_volume(tmp_path / "em", data, voxel_offset=OFFSET, sharding=sharded)
    delete_chunks(path, 0, lambda start: True)
    client = ImageryClient(image_source=path)
    with collect_counts() as counts:
        assert not read(client).any()
    assert (counts.chunks, counts.missing, len(set(counts.missing_keys))) == (12, 12, 12)


@sharded
def test_voxels_outside_are_zero_and_not_missing(
    data: Any, serve: Callable[..., tuple[FileServer, str]], sharded: bool
) -> None:
    server, url = serve(sharding=sharded)
    client = ImageryClient(image_source=url, missing="error", outside="fill")
    server.reset()
    with collect_counts() as counts:
        assert not read(client, ((0, 0, 0), (60, 30, 10))).any()
        assert not read(client, ((STOP[0], -32, 16), (STOP[0] + 40, 0, 32))).any()
    assert (counts.chunks, counts.missing, server.requests) == (0, 0, [])
    with collect_counts() as counts:
        border = read(client, ((50, -40, 10), (70, 40, 20)))
    np.testing.assert_array_equal(border[14:, 8:72, 6:], data[:6, :, :4])
    border[14:, 8:72, 6:] = 0
    assert not border.any()
    assert (counts.chunks, counts.missing) == (2, 0)


# ------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_chunk_is_refused_at_once(serve: Callable[..., tuple[FileServer, str]], status: int) -> None:
    server, url = serve()
    client = ImageryClient(image_source=url)
    server.faults = answer(status, CHUNK)
    with faster_than(8), pytest.raises(AccessRefusedError, match="Access was refused to .*em/8_8_40") as caught:
        read(client, (OFFSET, (70, -20, 20)))
    assert url in str(caught.value)
    assert str(status) in str(caught.value)
    assert server.count(CHUNK) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_info_is_refused_at_once(serve: Callable[..., tuple[FileServer, str]], status: int) -> None:
    server, url = serve()
    server.faults = answer(status, "/em/info")
    with faster_than(8), pytest.raises(AccessRefusedError, match=f"Access was refused to {url}/info"):
        ImageryClient(image_source=url)
    assert [request.status for request in server.requests] == [status]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_shard_index_is_refused_at_once(serve: Callable[..., tuple[FileServer, str]], status: int) -> None:
    server, url = serve(sharding=True)
    client = ImageryClient(image_source=url)
    server.faults = answer(status, "/em/8_8_40/")
    with faster_than(8), pytest.raises(AccessRefusedError, match=r"Access was refused to .*\.shard"):
        read(client, (OFFSET, (70, -20, 20)))
    assert server.count(".shard") == 1


def test_refused_ranges_of_a_shard_are_an_error(data: Any, serve: Callable[..., tuple[FileServer, str]]) -> None:
    """The indices were read before the permission was withdrawn."""
    server, url = serve(sharding=True)
    client = ImageryClient(image_source=url, cache_bytes=0)
    np.testing.assert_array_equal(read(client), data)
    server.faults = answer(403, "/em/8_8_40/")
    with faster_than(8), pytest.raises(AccessRefusedError, match="Access was refused"):
        read(client)


def test_a_refused_export_ends_at_once(tmp_path: Path, serve: Callable[..., tuple[FileServer, str]]) -> None:
    server, url = serve()
    client = ImageryClient(image_source=url)
    server.faults = answer(403, "/em/8_8_40/")
    with faster_than(10), pytest.raises(AccessRefusedError, match="Access was refused"):
        to_zarr(client.image_volume(), tmp_path / "out.zarr", chunks=(32, 32, 16), progress=False)


# ------------------------------------------------------------------------------------------------ no such volume


def test_a_folder_without_info_is_not_a_volume(tmp_path: Path, file_server: FileServer) -> None:
    for source in (f"precomputed://{file_server.url}/nothing", str(tmp_path / "nothing")):
        with pytest.raises(SourceNotFoundError, match="no precomputed volume at .*nothing"):
            ImageryClient(image_source=source)
    # Nor is it zarr or N5, nor in a dataset of webknossos.
    of_zarr = ["zarr.json", ".zarray", ".zgroup", ".zattrs", "attributes.json", "s0/attributes.json"]
    of_webknossos = ["datasource-properties.json", "../datasource-properties.json", "header.wkw"]
    paths = [posixpath.normpath(f"/nothing/{name}") for name in ("info", *of_zarr, *of_webknossos)]
    requested = [request.path for request in file_server.requests]
    assert (requested[0], sorted(requested)) == (paths[0], sorted(paths))


IMAGE = {"type": "image", "data_type": "uint8", "num_channels": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html>moved</html>", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        (json.dumps({"@type": "neuroglancer_annotations_v1"}), "not an image or segmentation volume"),
        (json.dumps({**IMAGE, "scales": [{"key": "a"}]}), "not an image or segmentation volume"),
        (json.dumps({**IMAGE, "scales": []}), "no usable scale"),
    ],
    ids=["html", "list", "annotations", "half a scale", "no scales"],
)  # fmt: skip
def test_an_info_that_describes_no_volume_is_an_error(
    tmp_path: Path, file_server: FileServer, content: str, message: str
) -> None:
    (tmp_path / "em").mkdir()
    (tmp_path / "em" / "info").write_text(content)
    for source in (f"precomputed://{file_server.url}/em", str(tmp_path / "em")):
        with pytest.raises(SourceError, match=message) as caught:
            ImageryClient(image_source=source)
        assert "em" in str(caught.value)


def test_an_image_is_refused_as_segmentation(tmp_path: Path, data: Any) -> None:
    path = write_volume(tmp_path / "em", data)
    with pytest.raises(ValueError, match=r"segmentation_source .*em' is a layer of type 'image'"):
        ImageryClient(segmentation_source=path)


# ----------------------------------------------------------------------------------------------- transient failures


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@sharded
def test_transient_failures_are_tried_again(
    data: Any, serve: Callable[..., tuple[FileServer, str]], status: int, sharded: bool
) -> None:
    server, url = serve(sharding=sharded)
    client = ImageryClient(image_source=url)
    server.faults = answer(status, "/em/8_8_40/", times=2)
    with faster_than(20), collect_counts() as counts:
        np.testing.assert_array_equal(read(client), data)
    assert (counts.chunks, counts.missing) == (12, 0)
    paths = {request.path for request in server.requests if request.status == status}
    assert server.count(lambda request: request.status == status) == 2 * len(paths) > 0


def test_a_transient_failure_of_the_info_is_tried_again(
    data: Any, serve: Callable[..., tuple[FileServer, str]]
) -> None:
    server, url = serve()
    server.faults = answer(503, "/em/info", times=2)
    np.testing.assert_array_equal(read(ImageryClient(image_source=url)), data)
    assert [request.status for request in server.requests[:3]] == [503, 503, 200]


@pytest.mark.parametrize("compress", ["gzip", False], ids=["gzip", "plain"])
@sharded
def test_a_truncated_body_is_read_again(
    data: Any, serve: Callable[..., tuple[FileServer, str]], compress: Any, sharded: bool
) -> None:
    server, url = serve(compress=compress, sharding=sharded)
    client = ImageryClient(image_source=url)
    server.faults = lambda path, n: Fault(cut=7) if path.startswith("/em/8_8_40/") and n == 1 else None
    np.testing.assert_array_equal(read(client), data)


def test_a_server_that_keeps_failing_is_an_error(serve: Callable[..., tuple[FileServer, str]]) -> None:
    server, url = serve()
    client = ImageryClient(image_source=url)
    server.faults = answer(500, CHUNK)
    with faster_than(15), pytest.raises(SourceError, match="8_8_40/64-96_-32-0_16-32 failed: .*500") as caught:
        read(client)
    assert type(caught.value) is SourceError
    assert url in str(caught.value)
    assert 1 < server.count(CHUNK) < 10


def test_a_permanent_failure_is_not_tried_again(serve: Callable[..., tuple[FileServer, str]]) -> None:
    server, url = serve()
    client = ImageryClient(image_source=url)
    server.faults = answer(400, CHUNK)
    with faster_than(8), pytest.raises(SourceError, match="64-96_-32-0_16-32 failed: .*400"):
        read(client)
    assert server.count(CHUNK) == 1


@pytest.mark.parametrize("compress", ["gzip", "br"])
def test_a_chunk_that_does_not_decode_is_named(serve: Callable[..., tuple[FileServer, str]], compress: str) -> None:
    server, url = serve(compress=compress)
    client = ImageryClient(image_source=url)
    server.faults = lambda path, n: Fault(corrupt=True) if path == CHUNK else None
    with pytest.raises(CorruptChunkError, match="8_8_40/64-96_-32-0_16-32 of .*em does not decode"):
        read(client)


def test_a_chunk_truncated_on_disk_is_named(tmp_path: Path, data: Any) -> None:
    path = write_volume(tmp_path / "em", data, voxel_offset=OFFSET, compress=False)
    file = tmp_path / CHUNK.lstrip("/")
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(CorruptChunkError, match="8_8_40/64-96_-32-0_16-32 of .*em does not decode"):
        read(ImageryClient(image_source=path))


@pytest.mark.parametrize("compress", ["gzip", False], ids=["gzip", "plain"])
@pytest.mark.parametrize("remote", [False, True], ids=["disk", "http"])
def test_a_truncated_shard_is_not_missing_data(
    tmp_path: Path, serve: Callable[..., tuple[FileServer, str]], compress: Any, remote: bool
) -> None:
    """After an incomplete upload, the index names bytes beyond the end of the file."""
    _, url = serve(sharding=True, compress=compress)
    for shard in (tmp_path / "em" / "8_8_40").glob("*.shard"):
        shard.write_bytes(shard.read_bytes()[:200])
    client = ImageryClient(image_source=url if remote else str(tmp_path / "em"))
    with pytest.raises(SourceError, match=r"\.shard|8_8_40/"):
        read(client)


@pytest.mark.parametrize("compress", ["gzip", False], ids=["gzip", "plain"])
def test_shards_are_read_from_a_server_without_ranges(
    tmp_path: Path, data: Any, serve: Callable[..., tuple[FileServer, str]], compress: Any
) -> None:
    """Some servers (such as ``python -m http.server``) answer with the whole file, as HTTP allows."""
    server, url = serve(sharding=True, compress=compress)

    def whole(path: str, n: int) -> Fault | None:
        return Fault(200, body=(tmp_path / path.lstrip("/")).read_bytes()) if path.endswith(".shard") else None

    server.faults = whole
    np.testing.assert_array_equal(read(ImageryClient(image_source=url)), data)
