"""Workers that end while they are prepared are waited for, a few times."""

from __future__ import annotations

import pytest
from distributed.comm import CommClosedError

from imagery_dask.cluster import worker_plugin
from imagery_dask.cluster.worker_plugin import ATTEMPTS, prepare_workers


class DyingClient:
    """A client, some of whose first registrations fail."""

    status = "running"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.registered = self.waited = 0
        self.scheduler = self
        self.address = "tcp://127.0.0.1:1"

    def register_plugin(self, plugin: object, name: str) -> None:
        self.registered += 1
        if self.registered <= self.failures:
            raise CommClosedError("in <TCP (closed)>")

    def wait_for_workers(self, count: int, timeout: float) -> None:
        self.waited += 1


@pytest.fixture(autouse=True)
def _same_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_plugin, "check_versions", lambda client: {})


def test_workers_that_end_are_waited_for() -> None:
    client = DyingClient(2)
    prepare_workers(client)
    assert (client.registered, client.waited) == (3, 2)


def test_workers_that_end_again_and_again_are_one_error() -> None:
    client = DyingClient(ATTEMPTS)
    with pytest.raises(OSError, match=r"^A worker ended while it was prepared, 4 times in a row\. It may have been"):
        prepare_workers(client)


def test_a_lost_scheduler_is_not_waited_for() -> None:
    client = DyingClient(1)
    client.status = "closed"
    with pytest.raises(CommClosedError):
        prepare_workers(client)
    assert client.waited == 0
