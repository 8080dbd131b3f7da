"""Sources that answer late, wrongly or not at all, on schedule: transient faults are invisible, lasting ones named."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from distributed import Client
from integration.stores import written
from support.http_server import Fault, FileServer
from support.settings import Configure
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import AccessRefusedError, CorruptChunkError, MissingChunkError, SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.sources import collect_counts
from imagery_dask.sources.precomputed.precomputed_volume import PrecomputedVolume
from imagery_dask.sources.volumes import stored_volume
from imagery_dask.sources.volumes.stored_volume import DECODE_ATTEMPTS

SHAPE = (96, 64, 32)  # 3 x 2 x 2 chunks
OFFSET = (64, -32, 16)
STOP = tuple(a + n for a, n in zip(OFFSET, SHAPE, strict=True))
CHUNKS = 12
FOLDER = "/em/8_8_40/"
KEY = "8_8_40/64-96_-32-0_16-32"
CHUNK = f"/em/{KEY}"

# PNG chunks: a corrupt one does not decode, with or without compression of the transport.
PICTURE = coordinate_volume(SHAPE, OFFSET, np.uint8)
FEW_SHARDS = {"encoding": "png", "sharding": {"preshift_bits": 1, "minishard_bits": 1, "shard_bits": 1}}

Serve = Callable[..., tuple[FileServer, str]]

sharded = pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])


@pytest.fixture(autouse=True)
def _short_pauses(configure: Configure) -> None:
    configure("requests.first_pause_s", 0.01)


@pytest.fixture
def data() -> Any:
    return coordinate_volume(SHAPE, OFFSET, np.uint16)


@pytest.fixture
def serve(tmp_path: Path, data: Any, http_server_factory: Callable[..., FileServer]) -> Serve:
    """Write the volume below ``tmp_path / "em"`` and serve it."""

    def start(voxels: Any = data, **options: Any) -> tuple[FileServer, str]:
        write_volume(tmp_path / "em", voxels, voxel_offset=OFFSET, **options)
        server = http_server_factory(tmp_path)
        return server, f"precomputed://{server.url}/em"

    return start


def read(client: ImageryClient, bounds: Any = (OFFSET, STOP)) -> Any:
    return client.image_cutout(bounds).compute(scheduler="synchronous")


def scheduled(path: str, **faults: Fault) -> Callable[[str, int], Fault | None]:
    """Return faults of a path (or of each below it, if it ends in "/") by the number of the request: ``n1=...``."""

    def fault(requested: str, n: int) -> Fault | None:
        hit = requested.startswith(path) if path.endswith("/") else requested == path
        return faults.get(f"n{n}", faults.get("always")) if hit else None

    return fault


def in_seconds(seconds: float) -> str:
    """Return the HTTP date that is some seconds from now."""
    return formatdate(time.time() + seconds, usegmt=True)


# ------------------------------------------------------------------------------------------------- transient failures

BUSY = Fault(503)
PASSING = {
    "429": Fault(429),
    "429, seconds": Fault(429, headers={"Retry-After": "0.05"}),
    "429, a date that passed": Fault(429, headers={"Retry-After": in_seconds(-100)}),
    "429, nonsense": Fault(429, headers={"Retry-After": "soon"}),
    "503": BUSY,
    "503, seconds": Fault(503, headers={"Retry-After": "0"}),
    "hang": Fault(delay_s=1.5),
    "cut": Fault(cut=5),
    "cut at once": Fault(cut=0),
    "reset": Fault(reset=True),
}


@sharded
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_transient_failures_are_tried_again(
    data: Any, serve: Serve, configure: Configure, fault: Fault, sharded: bool
) -> None:
    configure("requests.timeout_s", (5, 0.4))
    server, url = serve(sharding=sharded)
    client = ImageryClient(image_source=url)
    server.reset()
    server.faults = scheduled(FOLDER, n1=fault)
    with collect_counts() as counts:
        np.testing.assert_array_equal(read(client), data)
    paths = {request.path for request in server.requests if request.path.startswith(FOLDER)}
    assert (counts.chunks, counts.missing) == (CHUNKS, 0)
    assert counts.retries == len(paths) > 0
    if not fault.delay_s:
        assert counts.requests == server.count(FOLDER)


def test_different_failures_in_succession_are_tried_again(data: Any, serve: Serve) -> None:
    server, url = serve()
    client = ImageryClient(image_source=url)
    server.faults = scheduled(FOLDER, n1=BUSY, n2=Fault(reset=True), n3=Fault(429), n4=Fault(cut=3))
    with collect_counts() as counts:
        np.testing.assert_array_equal(read(client), data)
    assert (counts.requests, counts.retries) == (5 * CHUNKS, 4 * CHUNKS)


@pytest.mark.parametrize(
    "fault",
    [BUSY, Fault(429), Fault(reset=True), Fault(cut=5), Fault(delay_s=1.5)],
    ids=["503", "429", "reset", "cut", "hang"],
)
def test_a_lasting_failure_names_the_chunk(serve: Serve, configure: Configure, fault: Fault) -> None:
    configure("requests.timeout_s", (5, 0.1))
    configure("requests.attempts", 3)
    server, url = serve()
    client = ImageryClient(image_source=url)
    server.faults = scheduled(CHUNK, always=fault)
    with pytest.raises(SourceError, match=f"{KEY} failed") as failed:
        read(client, (OFFSET, (70, -20, 20)))
    assert url in str(failed.value)
    assert not isinstance(failed.value, (AccessRefusedError, MissingChunkError, CorruptChunkError))
    if not fault.delay_s:
        assert server.count(CHUNK) == 3


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("form", "at_least"), [("1", 1.0), ("date", 0.9)])
def test_the_wait_of_retry_after_is_respected(data: Any, serve: Serve, status: int, form: str, at_least: float) -> None:
    server, url = serve()
    client = ImageryClient(image_source=url)
    retry_after = in_seconds(2.0) if form == "date" else form
    server.faults = scheduled(CHUNK, n1=Fault(status, headers={"Retry-After": retry_after}))
    started = time.monotonic()
    np.testing.assert_array_equal(read(client), data)
    assert at_least <= time.monotonic() - started < 20
    assert server.count(CHUNK) == 2


@pytest.mark.parametrize("form", ["86400", "date"])
def test_the_wait_of_retry_after_is_limited(data: Any, serve: Serve, configure: Configure, form: str) -> None:
    configure("requests.longest_retry_after_s", 0.3)
    server, url = serve()
    client = ImageryClient(image_source=url)
    retry_after = in_seconds(86400) if form == "date" else form
    server.faults = scheduled(CHUNK, n1=Fault(503, headers={"Retry-After": retry_after}))
    started = time.monotonic()
    np.testing.assert_array_equal(read(client), data)
    assert 0.3 <= time.monotonic() - started < 20


@sharded
@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_not_tried_again(serve: Serve, status: int, sharded: bool) -> None:
    server, url = serve(sharding=sharded)
    client = ImageryClient(image_source=url)
    server.reset()
    server.faults = scheduled(FOLDER, always=Fault(status, headers={"Retry-After": "0"}))
    with collect_counts() as counts, pytest.raises(AccessRefusedError, match=f"HTTP {status}"):
        read(client, (OFFSET, (70, -20, 20)))
    # A 403 may be the answer for what does not exist: the info, and a file that does not, are asked for once.
    control = [200, 404] if status == 403 else []
    assert [request.status for request in server.requests] == [status, *control]
    assert counts.retries == 0


def test_the_first_missing_chunk_is_named(serve: Serve) -> None:
    server, url = serve()
    client = ImageryClient(image_source=url, missing="error")
    server.faults = lambda path, n: Fault(404) if path.endswith(("_16-32", "_32-48")) and "_0-32_" in path else None
    with pytest.raises(MissingChunkError, match="8_8_40/64-96_0-32_16-32 of .*em"):
        read(client)
    server.reset()
    with collect_counts() as counts:
        read(ImageryClient(image_source=url))
    assert (counts.missing, counts.retries) == (6, 0)
    assert counts.first(2) == ["8_8_40/64-96_0-32_16-32", "8_8_40/96-128_0-32_16-32"]
    assert len(set(counts.missing_keys)) == 6


# ----------------------------------------------------------------------------------------------------- corrupt chunks


@pytest.mark.parametrize("compress", ["gzip", "br", False], ids=["gzip", "br", "plain"])
@pytest.mark.parametrize("times", [1, DECODE_ATTEMPTS - 1])
def test_a_corrupt_chunk_is_fetched_again(data: Any, serve: Serve, compress: Any, times: int) -> None:
    server, url = serve(compress=compress)
    client = ImageryClient(image_source=url)
    # Uncompressed raw voxels decode whatever their values, so only a wrong length is noticed.
    wrong = Fault(corrupt=True) if compress else Fault(200, body=b"half")
    server.faults = scheduled(CHUNK, **{f"n{n + 1}": wrong for n in range(times)})
    with collect_counts() as counts:
        np.testing.assert_array_equal(read(client), data)
    assert (counts.chunks, counts.missing) == (CHUNKS, 0)
    assert (counts.requests, counts.retries) == (CHUNKS + times, times)
    cache_control = [request.cache_control for request in server.requests if request.path == CHUNK]
    assert cache_control == [None] + ["no-cache"] * times


@pytest.mark.parametrize("compress", ["gzip", False], ids=["gzip", "plain"])
@pytest.mark.parametrize(
    ("chunks", "broken"),
    [(CHUNKS, [1]), (CHUNKS, [1, 2]), *((8, n) for n in ([1], [2], [3], [4], [1, 2], [3, 4], [2, 5]))],
    ids=str,
)
def test_corrupt_parts_of_a_shard_are_fetched_again(
    serve: Serve, compress: Any, chunks: int, broken: list[int]
) -> None:
    """A shard is read whole, or by requests for its index, then for its minishards' indices, then for chunks."""
    server, url = serve(PICTURE, **FEW_SHARDS, compress=compress)
    end = 8 * chunks  # along x, in voxels
    client = ImageryClient(image_source=url)
    server.reset()
    server.faults = scheduled(FOLDER, **{f"n{n}": Fault(corrupt=True) for n in broken})
    with collect_counts() as counts:
        voxels = read(client, (OFFSET, (OFFSET[0] + end, *STOP[1:])))
    np.testing.assert_array_equal(voxels, PICTURE[:end])
    assert (counts.chunks, counts.missing) == (chunks, 0)
    assert counts.retries > 0
    assert counts.requests == server.count()


@pytest.mark.parametrize("kind", ["corrupt", "short"])
def test_a_chunk_that_stays_corrupt_is_named(serve: Serve, kind: str) -> None:
    server, url = serve()
    client = ImageryClient(image_source=url)
    wrong = Fault(corrupt=True) if kind == "corrupt" else Fault(200, body=b"half")
    server.faults = scheduled(CHUNK, always=wrong)
    with pytest.raises(CorruptChunkError, match=f"{KEY} of .*em does not decode .*fetched 3 times") as failed:
        read(client)
    assert isinstance(failed.value, SourceError)
    assert url in str(failed.value)
    assert server.count(CHUNK) == DECODE_ATTEMPTS == 3


@pytest.mark.parametrize("compress", ["gzip", False], ids=["gzip", "plain"])
@pytest.mark.parametrize("part", ["shard index", "minishard index", "everything"])
def test_a_shard_that_stays_corrupt_names_the_chunk(serve: Serve, tmp_path: Path, compress: Any, part: str) -> None:
    server, url = serve(PICTURE, **FEW_SHARDS, compress=compress)
    for shard in (tmp_path / "em" / "8_8_40").glob("*.shard"):
        content = bytearray(shard.read_bytes())
        index = np.frombuffer(content[:32], "<u8").reshape(2, 2) + 32
        if part == "shard index":
            content[:32] = bytes(255 - byte for byte in content[:32])
        elif part == "minishard index":
            for start, stop in index.tolist():
                content[start:stop] = bytes(255 - byte for byte in content[start:stop])
        else:
            content[:] = np.random.default_rng(0).bytes(len(content))
        shard.write_bytes(bytes(content))
    for source in (url, str(tmp_path / "em")):
        with pytest.raises(CorruptChunkError, match="8_8_40/[0-9_-]+ of .*em does not decode .*fetched 3 times"):
            read(ImageryClient(image_source=source))
    assert server.count() < 60


def test_a_corrupt_shard_does_not_affect_other_shards(data: Any, serve: Serve, tmp_path: Path) -> None:
    _, url = serve(sharding=True)
    broken = sorted((tmp_path / "em" / "8_8_40").glob("*.shard"))[0]
    broken.write_bytes(b"\xff" * broken.stat().st_size)
    client = ImageryClient(image_source=url)
    cells = [[o + i * s for o, i, s in zip(OFFSET, cell, (32, 32, 16), strict=True)] for cell in np.ndindex(3, 2, 2)]
    lost = 0
    for x, y, z in cells:
        try:
            voxels = read(client, ((x, y, z), (x + 32, y + 32, z + 16)))
        except CorruptChunkError:
            lost += 1
            continue
        region = tuple(slice(a - o, a - o + n) for a, o, n in zip((x, y, z), OFFSET, (32, 32, 16), strict=True))
        np.testing.assert_array_equal(voxels, data[region])
    assert 0 < lost < CHUNKS


def test_rewritten_shards_are_read_with_their_new_indices(data: Any, serve: Serve, tmp_path: Path) -> None:
    """The cached indices refer to the previous files."""
    server, url = serve(sharding=True)
    client = ImageryClient(image_source=url, cache_bytes=0)
    np.testing.assert_array_equal(read(client), data)
    other = np.asfortranarray(np.random.default_rng(1).integers(0, 2**16, SHAPE).astype(np.uint16) // 7)
    write_volume(tmp_path / "em", other, voxel_offset=OFFSET, sharding=True)
    np.testing.assert_array_equal(read(client), other)
    server.reset()
    with collect_counts() as counts:
        np.testing.assert_array_equal(read(client), other)
    assert counts.retries == 0


@pytest.mark.parametrize("compress", ["gzip", False], ids=["gzip", "plain"])
@pytest.mark.parametrize("kind", ["corrupt", "short"])
@pytest.mark.parametrize("relabel", [False, True], ids=["voxels", "tables"])
def test_corrupt_label_chunks_are_fetched_again(
    tmp_path: Path, http_server_factory: Callable[..., FileServer], compress: Any, kind: str, relabel: bool
) -> None:
    ids = random_labels(SHAPE)
    write_volume(
        tmp_path / "em", ids, voxel_offset=OFFSET, layer_type="segmentation", encoding="compressed_segmentation",
        compress=compress,
    )  # fmt: skip
    server = http_server_factory(tmp_path)
    content = next((tmp_path / "em" / "8_8_40").glob(Path(KEY).name + "*")).read_bytes()
    headers = {"Content-Encoding": "gzip"} if compress else {}
    short = Fault(200, headers=headers, body=content[: len(content) // 2])
    wrong = Fault(corrupt=True) if kind == "corrupt" else short
    volume = PrecomputedVolume(f"{server.url}/em")
    box = VoxelGrid.between(OFFSET, STOP, (8, 8, 40))
    mixed = (lambda table: table * np.uint64(0x9E3779B97F4A7C15)) if relabel else None
    server.faults = scheduled(CHUNK, n1=wrong)
    voxels, counts = volume.read(0, box, "fill", "F", mixed)
    np.testing.assert_array_equal(voxels[..., 0], ids if mixed is None else mixed(ids))
    assert (counts.requests, counts.retries) == (CHUNKS + 1, 1)
    server.faults = scheduled(CHUNK, always=wrong)
    with pytest.raises(CorruptChunkError, match=KEY):
        volume.read(0, box, "fill", "F", mixed)


def test_a_chunk_with_a_wrong_checksum_is_fetched_again(data: Any, serve: Serve, tmp_path: Path) -> None:
    """Uncompressed raw voxels decode whatever their values, so only the store's checksum reveals the damage."""
    server, url = serve(compress=False)
    client = ImageryClient(image_source=url)

    def checksum_headers(path: str) -> dict[str, str]:
        digest = google_crc32c.value((tmp_path / path.lstrip("/")).read_bytes()).to_bytes(4, "big")
        text = base64.b64encode(digest).decode()
        return {"x-goog-hash": f"crc32c={text}", "x-goog-stored-content-encoding": "identity"}

    def fault(path: str, n: int) -> Fault:
        return Fault(headers=checksum_headers(path), corrupt=path == CHUNK and n < wrong)

    wrong, server.faults = 3, fault
    with collect_counts() as counts:
        np.testing.assert_array_equal(read(client), data)
    assert counts.retries == 2
    wrong = 10**9
    server.reset()
    with pytest.raises(CorruptChunkError, match=f"{KEY} of .*em .*crc32c"):
        read(client)
    assert server.count(CHUNK) == 3


def test_a_corrupt_chunk_that_disappears_is_missing(data: Any, serve: Serve) -> None:
    server, url = serve()
    server.faults = scheduled(CHUNK, n1=Fault(corrupt=True), always=Fault(404))
    expected = data.copy()
    expected[:32, :32, :16] = 0
    with collect_counts() as counts:
        np.testing.assert_array_equal(read(ImageryClient(image_source=url)), expected)
    assert counts.missing_keys == [KEY]
    server.reset()
    with pytest.raises(MissingChunkError, match=KEY):
        read(ImageryClient(image_source=url, missing="error"))


def test_an_incomplete_chunk_on_disk_is_read_again(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is still being written, as on a slow NFS server."""
    path = write_volume(tmp_path / "em", data, voxel_offset=OFFSET, compress=False)
    file = tmp_path / CHUNK.lstrip("/")
    content = file.read_bytes()
    file.write_bytes(content[:100])
    monkeypatch.setattr(stored_volume, "pause_s", lambda attempt: file.write_bytes(content) * 0)
    np.testing.assert_array_equal(read(ImageryClient(image_source=path)), data)


@pytest.mark.usefixtures("small_blocks")
def test_an_export_with_transient_failures_is_exact(data: Any, serve: Serve, tmp_path: Path, processes: Client) -> None:
    server, url = serve()
    volume = ImageryClient(image_source=url).image_volume()
    server.reset()
    server.faults = scheduled(FOLDER, n1=BUSY, n2=Fault(corrupt=True))
    report = to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=processes, progress=False)
    assert report.ok
    # The first blocks are also read by this process, which measures their compression.
    assert report.counts.chunks == CHUNKS
    assert 0 < report.counts.retries < report.counts.requests <= server.count()
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), data)
