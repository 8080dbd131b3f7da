"""Requests in flight, counted at servers of different latency; failures among many requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.http_server import Fault, FileServer
from support.settings import Configure

from imagery_dask.errors import AccessRefusedError, SourceError
from imagery_dask.sources import collect_counts
from imagery_dask.sources.files import connections
from imagery_dask.sources.files.in_flight import FEWEST, Link, link_of
from imagery_dask.sources.requests.transport import Request, Transport

FILES = 300
LARGE = 2**18


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(FILES):
        (tmp_path / f"{number}").write_bytes(content(number))
    (tmp_path / "large").write_bytes(bytes(range(256)) * (LARGE // 256))
    return tmp_path


def content(number: int) -> bytes:
    return b"%d " % number * (number + 1)


def opened(server: FileServer) -> Transport:
    """Return a transport that has read one file, as every volume has read its info."""
    transport = Transport(f"precomputed://{server.url}")
    assert transport.get(Request("0")) is not None
    server.reset()
    return transport


def read(transport: Transport, numbers: range = range(FILES)) -> list[bytes | None]:
    found = transport.get_many([Request(str(number), most=2**16) for number in numbers])
    return [None if blob is None else bytes(blob.decompressed()) for _, blob in found]


@pytest.mark.parametrize(("latency_s", "fewest", "most"), [(0.0, 1, FEWEST), (0.5, 65, 256)], ids=["fast", "slow"])
def test_requests_in_flight_follow_the_server(
    folder: Path, latency_s: float, fewest: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileServer(folder, latency_s=latency_s) as server:
        transport = opened(server)
        if not latency_s:  # however busy this machine is
            link_of(server.url).answered(0.0001)
            monkeypatch.setattr(Link, "answered", lambda *_: None)
        assert read(transport) == [content(number) for number in range(FILES)]
        assert fewest <= server.max_in_flight <= most
        assert len(server.requests) == FILES


def test_an_overloaded_server_has_fewer_requests_in_flight(folder: Path, configure: Configure) -> None:
    configure("requests.first_pause_s", 0.01)
    with FileServer(folder, latency_s=0.05, faults=lambda path, nth: Fault(status=429) if nth == 1 else None) as server:
        transport = Transport(f"precomputed://{server.url}")
        transport.get(Request("0"))
        before = link_of(server.url).in_flight
        with collect_counts() as counts:
            assert read(transport, range(1, 200)) == [content(number) for number in range(1, 200)]
        assert link_of(server.url).in_flight < before
        assert (counts.requests, counts.retries) == (2 * 199, 199)


def test_failures_among_many_are_those_of_single_requests(folder: Path, configure: Configure) -> None:
    configure("requests.first_pause_s", 0.01)
    faults = {"/3": Fault(status=503), "/5": Fault(cut=5), "/7": Fault(reset=True), "/8": Fault(status=500)}
    with FileServer(folder, faults=lambda path, nth: faults.get(path) if nth == 1 else None) as server:
        transport = opened(server)
        (folder / "9").unlink()
        expected = [None if number == 9 else content(number) for number in range(30)]
        with collect_counts() as counts:
            assert read(transport, range(30)) == expected
        assert (counts.requests, counts.retries) == (34, 4)
        assert server.count("/9") == 1
    with FileServer(folder, faults=lambda path, nth: Fault(status=403) if path == "/4" else None) as server:
        transport = opened(server)
        with pytest.raises(AccessRefusedError, match="/4 "):
            read(transport, range(9))
        assert server.count("/4") == 1


def test_a_server_that_is_gone_is_an_error(folder: Path, configure: Configure) -> None:
    configure("requests.attempts", 2)
    configure("requests.first_pause_s", 0.01)
    with FileServer(folder) as server:
        transport = opened(server)
    connections.close_idle()
    with pytest.raises(SourceError, match="/0 failed.*no connection"):
        read(transport, range(9))


def test_a_read_that_ends_early_keeps_no_connection_in_flight(folder: Path) -> None:
    with FileServer(folder, latency_s=0.02) as server:
        transport = opened(server)
        found = transport.get_many([Request(str(number)) for number in range(100)])
        assert next(found)[1] is not None
        found.close()  # type: ignore[attr-defined]
        assert read(transport) == [content(number) for number in range(FILES)]


def test_redirects_are_followed_by_single_requests(folder: Path) -> None:
    with FileServer(folder) as target:
        moved = lambda path, nth: Fault(status=302, headers={"Location": target.url + path})  # noqa: E731
        with FileServer(folder) as server:
            transport = opened(server)
            server.faults = moved
            for _ in range(2):
                assert read(transport, range(20)) == [content(number) for number in range(20)]
            assert 40 <= len(server.requests) <= 60
        assert len(target.requests) == 40


def test_large_files_and_ranges_are_received_whole(folder: Path) -> None:
    whole = bytes(range(256)) * (LARGE // 256)
    with FileServer(folder) as server:
        transport = opened(server)
        wanted = [
            Request("large"),
            Request("large", 1000, 200_000),
            Request("large", 0, 10),
            Request("large", most=1000),
        ]
        blobs = [blob for _, blob in transport.get_many(wanted)]
    found = [bytes(blob.content) for blob in blobs if blob is not None]
    assert found == [whole, whole[1000:200_000], whole[:10], whole[:1000]]
    assert ["more than 1000 bytes" in blob.damage for blob in blobs if blob is not None] == [False, False, False, True]


def test_a_silent_server_is_given_up(folder: Path, configure: Configure) -> None:
    configure("requests.attempts", 1)
    with FileServer(folder) as server:
        transport = opened(server)
        configure("requests.timeout_s", (0.5, 0.2))
        server.latency_s = 2.0
        with pytest.raises(SourceError, match="timed out|too slowly"):
            read(transport, range(3))
