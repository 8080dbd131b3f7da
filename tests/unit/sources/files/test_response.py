"""Answers are parsed as they arrive, in pieces of any size, with any framing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.sources.files.response import Response

BODY = bytes(range(256)) * 3
HEAD = b"HTTP/1.1 200 OK\r\nX-Name: one\r\nx-name: two\r\n"
CHUNKED = b"".join(
    b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:1], BODY[1:300], BODY[300:])
) + b"0\r\nTrailer: x\r\n\r\n"  # fmt: skip
# Each with True if the connection can be used again.
FRAMINGS = {
    "length": (HEAD + b"Content-Length: 768\r\n\r\n" + BODY, True),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED, True),
    "end": (HEAD + b"\r\n" + BODY, False),
    "1.0": (HEAD.replace(b"1.1", b"1.0") + b"Content-Length: 768\r\n\r\n" + BODY, False),
    "close": (HEAD + b"Connection: close\r\nContent-Length: 768\r\n\r\n" + BODY, False),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 768\r\n\r\n" + BODY, True),
}


def answered(pieces: Sequence[bytes], read: int) -> tuple[Response, bytes, list[bool]]:
    """Send the pieces of an answer, close the connection, and read the body in steps."""
    ours, theirs = socket.socketpair()
    done: list[bool] = []

    def send() -> None:
        with theirs, suppress(OSError):  # nobody reads the rest of a bad answer
            for piece in pieces:
                theirs.sendall(piece)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with ours, Response("http://host/file", ours, done.append) as response:
            body = b""
            while piece := response.read_up_to(read):
                body += piece
    finally:
        sender.join()
    return response, body, done


@given(st.sampled_from(sorted(FRAMINGS)), st.lists(st.integers(0, 1200), max_size=6), st.integers(1, 1000))
def test_bodies_do_not_depend_on_how_they_arrive(framing: str, cuts: list[int], read: int) -> None:
    answer, is_reusable = FRAMINGS[framing]
    edges = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    pieces = [answer[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
    response, body, done = answered(pieces, read)
    assert (response.status, body, done) == (200, BODY, [is_reusable])
    assert response.headers["x-name"] == "one, two"


@pytest.mark.parametrize("framing", [name for name, (_, is_reusable) in FRAMINGS.items() if is_reusable])
def test_another_answer_behind_the_first_ends_the_connection(framing: str) -> None:
    answer, _ = FRAMINGS[framing]
    _, body, done = answered([answer + answer], 1000)
    assert (body, done) == (BODY, [False])


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_end_with_their_headers(status: int) -> None:
    response, body, done = answered([b"HTTP/1.1 %d None\r\nContent-Length: 5\r\n\r\n" % status], 10)
    assert (response.status, body) == (status, b"")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-", "without an answer"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", "truncated"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 2**21, "headers have more"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_an_answer_is_an_error(answer: bytes, reason: str) -> None:
    with pytest.raises(ConnectionError, match=reason):
        answered([answer], 100)


def test_a_short_body_is_shorter_than_promised() -> None:
    response, body, done = answered([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"], 100)
    assert (body, done) == (b"abc", [False])
    with pytest.raises(ConnectionError, match="3 of 5 bytes"):
        response.check_length(len(body), 100)
