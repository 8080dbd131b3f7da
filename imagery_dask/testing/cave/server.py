"""A CAVE server on this machine: HTTP, tokens, a log, latency and faults on demand."""

from __future__ import annotations

import gzip
import hmac
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from caveclient import CAVEclient

from imagery_dask.testing.cave.endpoints import ApiError, Call, find_endpoint
from imagery_dask.testing.cave.graph import GraphError
from imagery_dask.testing.cave.graph_api import SEGMENTATION
from imagery_dask.testing.cave.http_base import Fault, FaultHook, Handler, LoggingServer, corrupted
from imagery_dask.testing.cave.info_api import SERVICES
from imagery_dask.testing.cave.world import World

__all__ = ["CaveServer", "Fault", "Request"]

#: The token that servers accept by default. caveclient requires hexadecimal or base64 text.
TOKEN = "c0ffee5eedc0ffee5eedc0ffee5eed00"

_ENDPOINTS = (*SEGMENTATION, *SERVICES)
_COMPRESSED_FROM = 1024  # bytes; CAVE compresses all answers, but compressing small ones only takes time


class Request(NamedTuple):
    """One answered request.

    ``endpoint`` is the operation's name, such as ``roots_binary``, or an empty string for an unknown path; ``path``
    includes the query; ``n_ids`` is the number of ids in the body.
    """

    method: str
    endpoint: str
    path: str
    status: int
    n_ids: int


class CaveServer(LoggingServer[Request]):
    """Serve a world on a port of 127.0.0.1 while the ``with`` block lasts.

    Parameters
    ----------
    world : World
        The world to serve. Its graph, times and versions may change while it is served.
    tokens : sequence of str
        The accepted tokens; every request needs one.
    latency_s : float
        Every request waits this long before it is answered.
    faults : callable, optional
        ``faults(endpoint, n)``, as in `LoggingServer`.
    port : int
        By default any free port.

    Attributes
    ----------
    world, tokens, latency_s, faults
        As given; the last two may be set at any time.
    max_in_flight : int
        Largest number of requests answered at the same time since the last `reset`; see `LoggingServer`.
    """

    def __init__(
        self,
        world: World,
        *,
        tokens: Sequence[str] = (TOKEN,),
        latency_s: float = 0.0,
        faults: FaultHook | None = None,
        port: int = 0,
    ) -> None:
        self.world = world
        self.tokens = tuple(tokens)
        super().__init__(_Handler, latency_s=latency_s, faults=faults, port=port)

    @property
    def datastack(self) -> str:
        """The name of the only datastack."""
        return self.world.datastack

    @property
    def table(self) -> str:
        """The name of the only graph."""
        return self.world.table

    @property
    def segmentation_source(self) -> str:
        """Path of the segmentation for CloudVolume and caveclient."""
        return f"graphene://{self.url}/segmentation/table/{self.table}"

    @property
    def ids_sent(self) -> int:
        """Ids in the bodies of all ``roots_binary`` requests since the last `reset`, failed ones included."""
        return sum(request.n_ids for request in self.requests if request.endpoint == "roots_binary")

    def count(self, endpoint: str | Callable[[Request], bool] | None = None) -> int:
        """Return the number of answered requests of an endpoint, or that satisfy a predicate; by default of all."""
        if callable(endpoint):
            return sum(bool(endpoint(request)) for request in self.requests)
        return sum(endpoint in (None, request.endpoint) for request in self.requests)

    def client(self, token: str | None = None, **kwargs: object) -> CAVEclient:
        """Make a CAVEclient of this server's datastack that writes nothing to the home directory.

        Parameters
        ----------
        token : str, optional
            By default the first that the server accepts.
        **kwargs
            Arguments of CAVEclient, such as ``version`` or ``max_retries``.
        """
        token = self.tokens[0] if token is None else token
        return CAVEclient(self.datastack, server_address=self.url, auth_token=token, write_server_cache=False, **kwargs)

    def _authorize(self, header: str) -> None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not any(hmac.compare_digest(token, known) for known in self.tokens):
            missing = "missing" if not header else "invalid"
            raise ApiError(401, f"Unauthorized - {missing} token", error=f"{missing}_token")


class _Handler(Handler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = Call(self.server.owner.world, self.server.owner.url, {}, dict(parse_qsl(url.query)), body)
        name = ""
        try:
            endpoint, call.values = find_endpoint(_ENDPOINTS, self.command, unquote(url.path))
            name, answer = endpoint.name, endpoint.answer
            if self.headers.get("Content-Encoding", "").lower() == "gzip":
                call.body = _decompress(body)
        except ApiError as error:
            answer = _raiser(error)
        try:
            with self.server.owner.answering(name) as nth:
                fault = self.server.owner.fault(name, nth)
                status, headers, body = self._respond(fault, call, answer)
            self._send(call, name, status, headers, body, fault.cut)
        except ConnectionError:
            self.close_connection = True
        except BaseException as error:
            self.server.owner.failed(error)
            self._send(call, name, 500, {}, _json({"code": 500, "message": repr(error)}), None)

    do_POST = do_GET

    def _respond(self, fault: Fault, call: Call, answer: Callable[[Call], object]) -> tuple[int, dict[str, str], bytes]:
        if fault.status is not None:
            kind = "application/json" if fault.body.startswith((b"{", b"[", b'"')) else "text/plain"
            status, headers, body = fault.status, {"Content-Type": kind}, fault.body
        else:
            status, headers, body = self._answer(call, answer)
        if fault.corrupt:
            body = corrupted(body)
        accepted = "gzip" in self.headers.get("Accept-Encoding", "").lower()
        if accepted and fault == Fault() and len(body) >= _COMPRESSED_FROM:
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            body = gzip.compress(body, 1)
        return status, {**headers, **fault.headers}, body

    def _answer(self, call: Call, answer: Callable[[Call], object]) -> tuple[int, dict[str, str], bytes]:
        try:
            self.server.owner._authorize(self.headers.get("Authorization", ""))
            content = answer(call)
            if isinstance(content, bytes):
                return 200, {"Content-Type": "application/octet-stream"}, content
            return 200, {"Content-Type": "application/json"}, _json(content)
        except ApiError as error:
            headers = {"Content-Type": "application/json"}
            if error.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            return error.status, headers, _json(error.body)
        except GraphError as error:  # status 500, as in the service
            return 500, {"Content-Type": "application/json"}, _json({"code": 500, "message": str(error)})

    def _send(
        self, call: Call, name: str, status: int, headers: Mapping[str, str], body: bytes, cut: int | None
    ) -> None:
        self.server.owner.record(Request(self.command, name, self.path, status, _count_ids(name, call)))
        self.send_answer(status, headers, body, cut)


def _raiser(error: ApiError) -> Callable[[Call], object]:
    def refuse(call: Call) -> NoReturn:
        raise error

    return refuse


def _decompress(body: bytes) -> bytes:
    try:
        return gzip.decompress(body)
    except (OSError, EOFError, zlib.error) as error:
        raise ApiError(400, f"The body is not gzip: {error}") from None


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _count_ids(endpoint: str, call: Call) -> int:
    if endpoint == "roots_binary":
        return len(call.body) // 8
    with suppress(ApiError):
        if call.body and isinstance(call.json, dict):
            return sum(len(call.json[name]) for name in ("node_ids", "root_ids") if name in call.json)
    return 0
