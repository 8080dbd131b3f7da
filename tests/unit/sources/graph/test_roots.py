"""Lookups are exact for ids of any size, with a small server whose layers use the highest bit."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from support.dynamic import TOKEN, forget, impatient
from support.settings import Configure

from imagery_dask import kernels
from imagery_dask.arrays.remap import apply_rule
from imagery_dask.errors import ServerError
from imagery_dask.model.chunkedgraph import ChunkedGraph, RootQuery
from imagery_dask.model.labels import LabelRule
from imagery_dask.sources import collect_counts, look_up_roots, remember_token
from imagery_dask.sources.files.connections import close_idle
from imagery_dask.sources.graph import roots as lookups

Ids = NDArray[np.uint64]
LAYERS = 255
LOW = np.uint64(2**56 - 1)


def root_of(ids: Ids, layer: int = LAYERS) -> Ids:
    """Return the roots of supervoxels: neighbours have neighbouring roots, and multiples of 7 have none."""
    roots = (ids & LOW ^ np.uint64(1)) | np.uint64(layer << 56)
    return np.where(ids % np.uint64(7) == 0, np.uint64(0), roots)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    received: list[tuple[str, dict[str, str], Ids]]
    answer: Callable[[Ids, int], bytes]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        ids, query = np.frombuffer(body, "<u8").astype(np.uint64), dict(parse_qsl(urlsplit(self.path).query))
        self.server.received.append((urlsplit(self.path).path, query, ids))
        content = self.server.answer(ids, int(query.get("stop_layer", LAYERS)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[_Server]:
    forget()
    served = _Server(("127.0.0.1", 0), _Handler)
    served.received, served.answer = [], lambda ids, layer: root_of(ids, layer).tobytes()
    thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    close_idle()
    served.shutdown()
    served.server_close()
    thread.join()
    forget()


def address_of(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def query(server: _Server) -> RootQuery:
    address = address_of(server)
    remember_token(f"graphene://{address}/segmentation/table/t", TOKEN)
    return RootQuery(ChunkedGraph(address, "t", (8, 8, 8), (0, 0, 0), (8.0, 8.0, 40.0), LAYERS), 1_700_000_000)


def supervoxels(layer: int = 1) -> Ids:
    """Return ids that are equal as float64, up to the largest of a layer."""
    ends = [1, 2, 3, 2**53, 2**53 + 1, 2**53 + 2, 2**56 - 4, 2**56 - 3, 2**56 - 2]
    return np.array([(layer << 56) + end for end in ends], dtype=np.uint64)


@pytest.mark.parametrize("layer", [1, 127, 128, 254])
def test_roots_above_2_to_the_63_are_exact(server: _Server, query: RootQuery, layer: int) -> None:
    ids = np.append(np.uint64(0), supervoxels(layer))
    with collect_counts() as counts:
        roots = look_up_roots(query, ids)
    assert roots.dtype == np.uint64
    assert roots.tolist() == [0, *root_of(ids[1:]).tolist()]
    assert len(np.unique(roots[roots != 0])) == np.count_nonzero(roots)
    path, params, sent = server.received[0]
    assert path == "/segmentation/api/v1/table/t/roots_binary"
    assert params == {"timestamp": "1700000000"}
    assert sent.tolist() == ids[1:].tolist()  # 0 is not sent
    none = [int(value) for value in ids[1:] if value % np.uint64(7) == 0]
    assert (counts.root_requests, counts.ids_sent, counts.zero_roots) == (1, len(ids) - 1, len(none))
    assert counts.zero_root_ids == none
    with collect_counts() as again:
        assert look_up_roots(query, ids).tolist() == roots.tolist()
    assert (again.root_requests, again.ids_sent, again.zero_roots) == (0, 0, len(none))
    assert len(server.received) == 1


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("layer", [1, 200])
def test_blocks_of_large_ids_are_exact(query: RootQuery, order: Any, layer: int) -> None:
    ids = np.append(np.uint64(0), supervoxels(layer))
    block = np.random.default_rng(1).choice(ids, (9, 8, 7, 1))
    block = np.asarray(block, order=order)
    expected = np.where(block == 0, np.uint64(0), root_of(block))
    looked_up = apply_rule(block.copy(order), LabelRule(query=query))
    np.testing.assert_array_equal(looked_up, expected)
    assert looked_up.flags.f_contiguous == block.flags.f_contiguous
    listed = [int(value) for value in np.unique(expected)[1:4]]
    kept = apply_rule(block.copy(order), LabelRule(keep=tuple(listed), query=query))
    np.testing.assert_array_equal(
        kept, np.where(np.isin(expected, np.array(listed, np.uint64)), expected, np.uint64(0))
    )
    mask = apply_rule(block.copy(order), LabelRule(query=query, mask_of=listed[0]))
    np.testing.assert_array_equal(mask, expected == np.uint64(listed[0]))


def test_roots_that_do_not_fit_int64_are_an_error(query: RootQuery) -> None:
    block = supervoxels()[[0, 4]].reshape(2, 1, 1, 1)
    largest = int(root_of(block).max())
    assert largest > 2**63
    with pytest.raises(OverflowError, match=rf"{largest}.*convert_to_int64=False"):
        apply_rule(block, LabelRule(query=query, as_int64=True))


def test_ids_of_the_requested_layer_are_not_sent(server: _Server, query: RootQuery) -> None:
    own = supervoxels(LAYERS)
    assert look_up_roots(query, own).tolist() == own.tolist()
    assert look_up_roots(query, np.zeros(1, np.uint64)).tolist() == [0]
    assert look_up_roots(query, np.zeros(0, np.uint64)).tolist() == []
    assert server.received == []
    mixed = np.sort(np.concatenate([supervoxels()[:3], own]))
    assert look_up_roots(query, mixed).tolist() == [*root_of(supervoxels()[:3]).tolist(), *own.tolist()]
    assert server.received[0][2].tolist() == supervoxels()[:3].tolist()


def test_a_stop_layer_gives_the_nodes_of_that_layer(server: _Server, query: RootQuery) -> None:
    ids = supervoxels()
    second = RootQuery(query.graph, query.timestamp, stop_layer=2)
    assert look_up_roots(second, ids).tolist() == root_of(ids, 2).tolist()
    assert server.received[0][1] == {"timestamp": "1700000000", "stop_layer": "2"}
    assert look_up_roots(query, ids).tolist() == root_of(ids).tolist()  # the cache keeps layers apart
    first = RootQuery(query.graph, query.timestamp, stop_layer=1)
    assert look_up_roots(first, ids).tolist() == ids.tolist()
    assert len(server.received) == 2


def test_many_ids_are_sent_in_compressed_batches(server: _Server, query: RootQuery, configure: Configure) -> None:
    configure("graph.batch_ids", 4)
    configure("graph.gzip_above", 30)
    ids = supervoxels()
    with collect_counts() as counts:
        assert look_up_roots(query, ids).tolist() == root_of(ids).tolist()
    assert [len(sent) for _, _, sent in server.received] == [4, 4, 1]
    assert (counts.root_requests, counts.ids_sent) == (3, 9)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda ids, layer: root_of(ids)[:-1].tobytes(), "the answer for 9 ids has 64 bytes"),
        (lambda ids, layer: root_of(ids).tobytes() + b"x", "the answer for 9 ids has 73 bytes"),
        (lambda ids, layer: b"", "the answer for 9 ids has 0 bytes"),
        (lambda ids, layer: (root_of(ids) & LOW).tobytes(), "ids that are not of this graph"),
        (lambda ids, layer: ids[::-1].tobytes(), "ids that are not of this graph"),
    ],
    ids=["short", "long", "empty", "another layer", "supervoxels of others"],
)
def test_wrong_answers_are_requested_again_and_then_an_error(
    server: _Server, query: RootQuery, monkeypatch: pytest.MonkeyPatch, wrong: Any, reason: str
) -> None:
    impatient(monkeypatch)
    correct = server.answer
    server.answer = lambda ids, layer: (wrong if len(server.received) < 3 else correct)(ids, layer)
    ids = supervoxels()
    assert look_up_roots(query, ids).tolist() == root_of(ids).tolist()
    assert len(server.received) == 3
    forget_query = RootQuery(query.graph, query.timestamp - 1)
    server.answer = wrong
    with pytest.raises(ServerError, match=rf"POST /segmentation/api/v1/table/t/roots_binary failed.*{reason}"):
        look_up_roots(forget_query, ids)
    assert len(lookups._cache_of(forget_query)) == 0  # wrong answers are not cached


@pytest.mark.parametrize("order", ["F", "C"])
def test_remapping_is_exact(order: Any) -> None:
    ids = np.array([0, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1], np.uint64)
    values = np.roll(ids, 3)
    at = np.random.default_rng(0).integers(0, len(ids), (11, 7, 5, 1))
    block = np.asarray(ids[at], order=order)
    np.testing.assert_array_equal(kernels.remap(block, ids, values), values[at])


def test_remapping_an_empty_block_gives_an_empty_block() -> None:
    nothing = np.zeros((0, 3, 2, 1), np.uint64)
    assert kernels.remap(nothing, np.zeros(0, np.uint64), np.zeros(0, np.uint64)).shape == (0, 3, 2, 1)
    same = np.array([[2**63 + 1, 5]], np.uint64)
    assert kernels.remap(same, np.unique(same), np.unique(same)).tolist() == [[2**63 + 1, 5]]
