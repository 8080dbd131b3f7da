"""The server of the viewer: Neuroglancer's page, and the volumes that it shows, on this machine alone.

It is the server of the ``neuroglancer`` package, which has the page and keeps its state, bound to 127.0.0.1 whatever
the package is set to, with a handler for volumes. Every path holds the random token of its view (160 bits), which other
users of the machine, and pages of other origins, cannot guess. No answer allows other origins. The server's threads end
with the process.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import AccessRefusedError
from imagery_dask.urls import redacted
from imagery_dask.viewer.served import Answer, Served
from imagery_dask.viewer.states import segment_colors

try:
    from neuroglancer import server as neuroglancer_server
    from neuroglancer import viewer_base
    from tornado.web import RequestHandler
except ImportError as error:
    raise ImportError(
        "The viewer needs the neuroglancer package, which has its page: pip install 'imagery_dask[browser]'."
    ) from error

__all__ = ["View"]

ADDRESS = "127.0.0.1"
DATA_PATH = r"/data/(?P<token>[0-9a-f]{40})/(?P<number>\d+)/(?P<path>.+)"
RANGE = re.compile(r"bytes=(?P<first>\d*)-(?P<last>\d*)")
#: Reads wait for servers most of the time.
THREADS = 16
_logger = logging.getLogger("imagery_dask")
_lock = threading.Lock()
_servers: dict[int, _Server] = {}


class View:
    """A page of Neuroglancer that shows volumes, made by `client.view`.

    In a notebook it is shown as a link. It serves until `stop`, the end of a ``with`` block, or the end of the process.

    Parameters
    ----------
    served : sequence of Served
        A volume for each layer of the state.
    state : dict
        What the viewer shows; the sources of its layers are filled in.

    Attributes
    ----------
    url : str
        Address of the page. Whoever has it, on this machine, can read what it shows.
    viewer : neuroglancer.viewer_base.ViewerBase
        The viewer, whose state can be read and changed: ``with view.viewer.txn() as state: ...``.
    """

    def __init__(self, served: Sequence[Served], state: JsonObject) -> None:
        self._server = _server()
        self.viewer = viewer_base.ViewerBase(allow_credentials=False)
        self.url = f"{self._server.server_url}/v/{self.viewer.token}/"
        self._server.add(self.viewer, served)
        for number, layer in enumerate(served):
            state["layers"][number] |= {"source": layer.source(self.data_url(number)), **layer.display()}
        self.viewer.set_state(state)
        # The callback is called within a lock of the state.
        self.viewer.shared_state.add_changed_callback(
            lambda: self._server.loop.call_soon_threadsafe(self._color_selected)
        )

    def data_url(self, number: int) -> str:
        """Return the address of the files of a layer, by its number from 0."""
        return f"{self._server.server_url}/data/{self.viewer.token}/{number}"

    @property
    def root_ids(self) -> list[int]:
        """The objects that are selected in the viewer now."""
        layers = self.viewer.state.to_json().get("layers", [])
        return [int(one) for layer in layers for one in layer.get("segments", []) if not one.startswith("!")]

    def stop(self) -> None:
        """Stop serving this view; its address is not found any more."""
        self._server.remove(self.viewer)

    def _color_selected(self) -> None:
        """Give objects that were selected in the viewer the colors of this package's pictures."""
        state = copy.deepcopy(self.viewer.state.to_json())
        changed = False
        for layer in state.get("layers", []):
            colors = layer.get("segmentColors", {})
            new = [one for one in layer.get("segments", []) if one.isdecimal() and one not in colors]
            if new:
                layer["segmentColors"] = colors | segment_colors(tuple(map(int, new)))
                changed = True
        if changed:
            self.viewer.set_state(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"View({self.url})"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank">Open in Neuroglancer</a>'


def _server() -> _Server:
    """Return the server of this process, which is started at the first call."""
    with _lock:
        if os.getpid() not in _servers:  # threads do not survive a fork
            _servers[os.getpid()] = _Server(bind_address=ADDRESS)
        return _servers[os.getpid()]


class _Server(neuroglancer_server.Server):
    """Neuroglancer's server with a handler for volumes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: dict[str, Any] = {}
        self.served: dict[str, Sequence[Served]] = {}
        self.readers = ThreadPoolExecutor(THREADS, thread_name_prefix="imagery-dask-view")

    def _attempt_to_start_server(self) -> None:
        super()._attempt_to_start_server()
        self.app.add_handlers(".*", [(DATA_PATH, _DataHandler, {"owner": self})])

    def add(self, viewer: Any, served: Sequence[Served]) -> None:
        # Neuroglancer's server keeps viewers by weak references.
        self.kept[viewer.token] = self.viewers[viewer.token] = viewer
        self.served[viewer.token] = served

    def remove(self, viewer: Any) -> None:
        for by_token in (self.kept, self.served, self.viewers):
            by_token.pop(viewer.token, None)


class _DataHandler(RequestHandler):
    """Answer requests for the files of a volume."""

    def initialize(self, owner: _Server) -> None:
        self._owner = owner
        self._reading: Future[Answer | None] | None = None

    async def get(self, token: str, number: str, path: str) -> None:
        served = self._owner.served.get(token, ())
        if int(number) >= len(served):
            self._send(404)
            return
        part = _byte_range(self.request.headers.get("Range", ""))
        self._reading = self._owner.readers.submit(served[int(number)].get, path, *part)
        try:
            answer = await asyncio.wrap_future(self._reading)
        except (CancelledError, asyncio.CancelledError):
            return
        except Exception as error:
            message = redacted(str(error))
            _logger.warning("%s of the %s cannot be shown: %s", path, served[int(number)].name, message)
            self._send(403 if isinstance(error, AccessRefusedError) else 500, message.encode())
            return
        if answer is None:
            self._send(404)
        elif answer.total is None:
            self._send(200, answer.content)
        else:
            last = answer.first + len(answer.content) - 1
            self.set_header("Content-Range", f"bytes {answer.first}-{last}/{answer.total}")
            self._send(206, answer.content)

    head = get

    def _send(self, status: int, content: bytes = b"") -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/octet-stream" if status < 400 else "text/plain")
        self.set_header("Cache-Control", "no-store")
        self.finish(content)

    def on_connection_close(self) -> None:
        """Do not begin a read that the viewer has given up, for a view that has moved on."""
        if self._reading is not None:
            self._reading.cancel()


def _byte_range(header: str) -> tuple[int | None, int | None]:
    """Return the first byte and the one after the last that a Range header asks for; (None, None) for all bytes."""
    match = RANGE.fullmatch(header)
    if match is None or not (match["first"] or match["last"]):
        return None, None
    if not match["first"]:
        return -int(match["last"]), None
    return int(match["first"]), int(match["last"]) + 1 if match["last"] else None
