"""The local CAVE server counts the requests that it answers at the same time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import requests

from imagery_dask.testing.cave import CaveServer
from imagery_dask.testing.cave.http_base import Handler


def test_a_request_whose_answer_was_sent_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine, a client may send its next request before the server's thread has finished the last one."""
    finish, send_answer = threading.Event(), Handler.send_answer

    def send_and_stall(self: Handler, *arguments: Any) -> None:
        send_answer(self, *arguments)
        finish.wait(30)

    monkeypatch.setattr(Handler, "send_answer", send_and_stall)
    world: Any = None  # requests without a token are refused before the world is read
    with CaveServer(world) as server:
        try:
            for _ in range(2):
                assert requests.get(f"{server.url}/info/api/v2/datastacks", timeout=20).status_code == 401
            assert server.max_in_flight == 1
            server.reset()
            assert (server.requests, server.max_in_flight) == ([], 0)
        finally:
            finish.set()
