"""The server of the viewer: on loopback only, behind a token, and gone when its view or its process is."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from imagery_dask.errors import AccessRefusedError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.viewer.launch import launch, layers_of
from imagery_dask.viewer.served import Answer

pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")
LARGE = 2**60 + 3


class Files:
    """Layer whose files a test defines."""

    name, kind, grid, coarsest_nm = "files", "image", VoxelGrid((0, 0, 0), (4, 4, 4), (8, 8, 40)), (8, 8, 40)

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.hold = threading.Event()

    def source(self, url: str) -> str:
        return f"precomputed://{url}"

    def display(self) -> dict[str, Any]:
        return {}

    def get(self, path: str, first: int | None = None, stop: int | None = None) -> Answer | None:
        self.asked.append((path, first, stop))
        if path == "refused":
            raise AccessRefusedError("no access to gs://bucket?token=secret")
        if path == "broken":
            raise OverflowError("too many ids")
        if path == "part":
            return Answer(b"cde", 2, 9)
        if path == "slow":
            self.hold.wait(20)
        return Answer(b"whole") if path in ("whole", "slow") else None


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def view(files: Files) -> Iterator[Any]:
    with launch([files], browser=False) as view:
        yield view


def test_files_are_answered(view: Any, files: Files) -> None:
    url = view.data_url(0)
    answer = requests.get(f"{url}/whole", timeout=20)
    assert (answer.status_code, answer.content) == (200, b"whole")
    part = requests.get(f"{url}/part", headers={"Range": "bytes=2-4"}, timeout=20)
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, b"cde", "bytes 2-4/9")
    requests.get(f"{url}/part", headers={"Range": "bytes=-5"}, timeout=20)
    assert files.asked == [("whole", None, None), ("part", 2, 5), ("part", -5, None)]
    assert requests.head(f"{url}/whole", timeout=20).headers["Content-Length"] == "5"


@pytest.mark.parametrize(("path", "status"), [("none", 404), ("refused", 403), ("broken", 500)])
def test_failures_have_a_status_and_no_secrets(view: Any, path: str, status: int) -> None:
    answer = requests.get(f"{view.data_url(0)}/{path}", timeout=20)
    assert answer.status_code == status
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_nothing_is_found_without_the_token(view: Any, files: Files) -> None:
    token = view.viewer.token
    assert re.fullmatch("[0-9a-f]{40}", token)
    other = token[:-1] + ("0" if token[-1] != "0" else "1")
    base = view.url.partition("/v/")[0]
    paths = [
        "", "v/", "data/", f"data/{other}/0/whole", f"data/{token[:-1]}/0/whole", "data//0/whole", f"v/{other}/",
        f"data/{token}/1/whole", f"data/{token}/-1/whole", f"events/{other}", f"neuroglancer/info/{other}.x",
    ]  # fmt: skip
    assert {path: requests.get(f"{base}/{path}", timeout=20).status_code for path in paths} == dict.fromkeys(paths, 404)
    assert files.asked == []


def test_pages_of_other_origins_are_not_allowed(view: Any) -> None:
    for url in (view.url, f"{view.data_url(0)}/whole"):
        answer = requests.get(url, headers={"Origin": "https://evil.org"}, timeout=20)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_credentials_of_this_machine_are_not_given(view: Any) -> None:
    url = view.url.replace("/v/", "/credentials/").rstrip("/")
    assert requests.post(url, json={"key": "google-brainmaps"}, timeout=20).status_code == 403


def test_two_views_have_different_tokens_and_one_server(view: Any) -> None:
    with launch([Files()], browser=False) as other:
        assert other.viewer.token != view.viewer.token
        assert other.url.partition("/v/")[0] == view.url.partition("/v/")[0]
    assert requests.get(other.url, timeout=20).status_code == 404
    assert requests.get(f"{other.data_url(0)}/whole", timeout=20).status_code == 404
    assert requests.get(view.url, timeout=20).status_code == 200


def test_a_view_that_moved_on_does_not_begin_its_reads(view: Any, files: Files) -> None:
    port = int(view.url.split(":")[2].split("/")[0])
    path = view.data_url(0).partition(f":{port}")[2]
    given_up = []
    for _ in range(40):  # more than the server reads at the same time
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        connection.sendall(f"GET {path}/slow HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        given_up.append(connection)
    while len(files.asked) < 16:
        time.sleep(0.01)
    for connection in given_up:
        connection.close()
    # Answered after the connections above were seen to be closed.
    assert requests.get(view.url, timeout=20).status_code == 200
    files.hold.set()
    assert requests.get(f"{view.data_url(0)}/whole", timeout=20).content == b"whole"
    assert len(files.asked) < 40


PROGRAM = """
import neuroglancer, numpy as np
neuroglancer.set_server_bind_address("0.0.0.0")
from imagery_dask.viewer import view_data
view = view_data(np.ones((8, 8, 8), np.uint8), resolution_nm=(8, 8, 40), browser=False)
print(view.url, flush=True)
input()
"""


def test_the_server_is_bound_to_loopback_and_ends_with_its_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().strip()  # type: ignore[union-attr]
        port = int(url.split(":")[2].split("/")[0])
        listening = [c.laddr for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]
        assert requests.get(url, timeout=20).status_code == 200
    finally:
        process.communicate("\n", timeout=30)
    assert process.returncode == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_selected_objects_get_the_colors_of_pictures() -> None:
    labels = np.full((4, 4, 4), LARGE, np.uint64)
    served = layers_of({"seg": labels, "em": labels.astype(np.uint8)}, (8, 8, 40))
    with launch(served, segments=[LARGE], browser=False) as view:
        first = view.viewer.state.to_json()["layers"][0]
        assert (first["name"], first["segments"], list(first["segmentColors"])) == ("seg", [str(LARGE)], [str(LARGE)])
        colored = threading.Event()
        view.viewer.shared_state.add_changed_callback(
            lambda: (
                str(LARGE + 2) in str(view.viewer.shared_state.raw_state["layers"][0]["segmentColors"])
                and colored.set()
            )
        )
        with view.viewer.txn() as state:
            state.layers["seg"].segments |= {LARGE + 2}
        assert colored.wait(20)
        assert view.root_ids == [LARGE, LARGE + 2]
