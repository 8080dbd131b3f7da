"""The control that tells if a server answers 403 for files that do not exist."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagery_dask.errors import AccessRefusedError, SourceError
from imagery_dask.sources.files.http_files import StatusError
from imagery_dask.sources.requests.absence import AbsenceControl, says_no_reason


class Server:
    """A server with one file, and what it answers for others."""

    def __init__(self, absent: type[Exception] | None = AccessRefusedError) -> None:
        self.absent, self.info, self.asked = absent, True, list[str]()

    def exists(self, key: str) -> bool:
        self.asked.append(key)
        if key == "em/info" and self.info:
            return True
        if self.absent is not None:
            raise self.absent(key)
        return False


def test_a_server_that_refuses_what_does_not_exist_is_asked_once() -> None:
    server = Server()
    control = AbsenceControl("here", server.exists)
    together = threading.Barrier(8)

    def ask(_: int) -> bool:
        together.wait()
        return control.hides_absence("em/info")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    info, other = server.asked
    assert info == "em/info"
    assert other.startswith("em/imagery-dask-control-")


def test_a_server_that_says_what_does_not_exist_is_asked_once() -> None:
    server = Server(absent=None)
    control = AbsenceControl("here", server.exists)
    assert not any(control.hides_absence("em/info") for _ in range(3))
    assert len(server.asked) == 2


@pytest.mark.parametrize("absent", [AccessRefusedError, None], ids=["refused", "gone"])
def test_without_a_readable_file_nothing_is_known(absent: type[Exception] | None) -> None:
    server = Server(absent)
    server.info = False
    control = AbsenceControl("here", server.exists)
    assert not control.hides_absence("em/info")
    assert server.asked == ["em/info"]
    server.info = True
    assert control.hides_absence("em/info") == (absent is not None)


def test_a_control_that_fails_is_repeated() -> None:
    server = Server(absent=SourceError)
    control = AbsenceControl("here", server.exists)
    for _ in range(2):
        with pytest.raises(SourceError):
            control.hides_absence("em/info")
    server.absent = AccessRefusedError
    assert control.hides_absence("em/info")


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (403, "", True), (403, "AccessDenied", True), (403, "ExpiredToken", False),
        (403, "SignatureDoesNotMatch", False), (401, "", False), (404, "", False),
    ],
)  # fmt: skip
def test_only_a_403_without_a_reason_may_be_the_answer_for_an_absent_file(
    status: int, reason: str, expected: bool
) -> None:
    assert says_no_reason(StatusError(f"HTTP {status}", status, {}, reason)) is expected


def test_a_local_file_without_permission_is_refused() -> None:
    assert not says_no_reason(PermissionError(13, "Permission denied"))
