"""Requests to a CAVE server, with one connection pool per process."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import JsonObject
from imagery_dask.config import config
from imagery_dask.errors import REFUSED_STATUS, AccessRefusedError, ServerError, SourceNotFoundError
from imagery_dask.model.chunkedgraph import ChunkedGraph, graphene_address
from imagery_dask.sources.files.compression import decompress
from imagery_dask.sources.files.connections import NoConnectionError, send
from imagery_dask.sources.files.deadlines import deadline_of
from imagery_dask.sources.files.failures import THROTTLING_STATUS, brief, forget_request, kind_of, pause_s, status_of
from imagery_dask.sources.files.http_files import StatusError
from imagery_dask.sources.files.response import Response
from imagery_dask.sources.requests.counts import count_throttled
from imagery_dask.sources.requests.credentials import cave_token, token_places
from imagery_dask.urls import is_safe_for_tokens

__all__ = ["GraphServer", "graph_server", "read_graph_info"]

# Largest answer in JSON, such as the supervoxels of a root; and of other answers, beyond the ids.
LARGEST_ANSWER = 2**30
LARGEST_REST = 2**16


class GraphServer:
    """One process's connection to a PyChunkedGraph service. Safe to use from many threads.

    Parameters
    ----------
    server : str
        ``https://host``.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self._host = server.partition("://")[2]

    def get_json(self, path: str, params: Mapping[str, object] | None = None, attempts: int | None = None) -> Any:
        """Return the JSON answer of a GET request."""
        return self._call("GET", path, _json, attempts, params=params or {})

    def post_json(
        self, path: str, content: object, params: Mapping[str, object] | None = None, attempts: int | None = None
    ) -> Any:
        """Return the JSON answer of a POST request with a JSON body."""
        body, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        return self._call("POST", path, _json, attempts, params=params or {}, body=body, headers=headers)

    def post_ids(
        self,
        path: str,
        ids: NDArray[np.uint64],
        params: Mapping[str, object],
        valid: Callable[[NDArray[np.uint64], NDArray[np.uint64]], bool],
    ) -> NDArray[np.uint64]:
        """Post ids as raw little-endian uint64, and return one id for each.

        Parameters
        ----------
        path : str
            Path of the endpoint.
        ids : numpy.ndarray of uint64, shape (n,)
            Ids to send.
        params : dict
            Query parameters.
        valid : callable
            ``valid(sent, received)``; the request is repeated if it returns False.
        """
        body, headers = np.ascontiguousarray(ids, dtype="<u8").tobytes(), {"Accept-Encoding": "identity"}
        if len(body) > config.get("graph.gzip_above"):
            body = gzip.compress(body, 1)
            headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}

        def read(content: bytes) -> NDArray[np.uint64]:
            if len(content) != 8 * len(ids):
                raise ConnectionError(f"the answer for {len(ids)} ids has {len(content)} bytes")
            answer = np.frombuffer(content, dtype="<u8").astype(np.uint64)
            if not valid(ids, answer):
                raise ConnectionError("the answer has ids that are not of this graph")
            return answer

        most = 8 * len(ids) + LARGEST_REST
        return np.asarray(self._call("POST", path, read, params=params, body=body, headers=headers, most=most))

    def _call(
        self, method: str, path: str, read: Callable[[bytes], Any], attempts: int | None = None, **request: Any
    ) -> Any:
        attempts = attempts or config.get("graph.attempts")
        for attempt in range(attempts):
            try:
                return read(self._call_once(method, path, **request))
            except (AccessRefusedError, SourceNotFoundError):
                raise
            except Exception as error:
                if status_of(error) in THROTTLING_STATUS:
                    count_throttled()
                if kind_of(error) == "final" or attempt == attempts - 1:
                    failed = ServerError(self._failed(method, path, error))
                    failed.lasting = kind_of(error) == "final"
                    forget_request(error)
                    raise failed from None
                time.sleep(pause_s(attempt, error))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _call_once(
        self,
        method: str,
        path: str,
        params: Mapping[str, object],
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        most: int = LARGEST_ANSWER,
    ) -> bytes:
        token, timeouts = self._token(), config.get("graph.timeout_s")
        url = self.server + quote(path) + (f"?{urlencode(params)}" if params else "")
        with (
            deadline_of(sum(timeouts)),
            send(method, url, headers or {}, f"Bearer {token}", body, timeouts) as response,
        ):
            status = response.status
            if status in REFUSED_STATUS or 300 <= status < 400:
                # CAVE redirects requests with an expired token to a login page.
                raise AccessRefusedError(
                    f"Access was refused by {self._host} ({method} {path}: HTTP {status}). The token of this process "
                    f"is wrong, has expired, or has no permission to read this data. Tokens are looked for in: "
                    f"{token_places(self._host)}."
                )
            if status == 404:
                raise SourceNotFoundError(f"{self.server}{path} does not exist (HTTP 404): {_text_of(response, token)}")
            if status >= 400:
                raise StatusError(f"HTTP {status}: {_text_of(response, token)}", status, response.headers)
            content = bytes(response.read_up_to(most + 1))
            response.check_length(len(content), most)
            if len(content) > most:
                raise ConnectionError(f"the answer has more than {most} bytes")
            return decompress(content, response.headers.get("content-encoding"), most) if content else b""

    def _token(self) -> str:
        if not is_safe_for_tokens(self.server):
            raise AccessRefusedError(
                f"No token is sent to {self.server}, because plain HTTP is not encrypted. Use https://{self._host}."
            )
        token = cave_token(self._host)
        if token is None:
            raise AccessRefusedError(f"No token for {self._host} was found. Looked in: {token_places(self._host)}.")
        return token

    def _failed(self, method: str, path: str, error: Exception) -> str:
        if isinstance(error, NoConnectionError):
            attempts = config.get("graph.attempts")
            return f"{self.server} does not answer ({method} {path}, {attempts} attempts): {brief(error)}"
        return f"{method} {path} failed at {self.server}: {brief(error)}"


def graph_server(server: str) -> GraphServer:
    """Return the connection to a server, made once per process."""
    return _graph_server(server, os.getpid())


@lru_cache(maxsize=16)
def _graph_server(server: str, process: int) -> GraphServer:
    # Connections do not survive a fork, hence the process id in the key.
    del process
    return GraphServer(server)


def read_graph_info(path: str) -> tuple[ChunkedGraph, JsonObject]:
    """Return the graph of a graphene path, and its info: the watershed volume's, with ``data_dir`` and further keys."""
    server, table = graphene_address(path)
    try:
        info = graph_server(server).get_json(f"/segmentation/table/{table}/info")
    except SourceNotFoundError as error:
        raise SourceNotFoundError(f"There is no graph {table!r} at {server}: {error}") from None
    return ChunkedGraph.from_info(path, info), info


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ConnectionError(f"the answer is not JSON: {content[:100]!r}") from error


def _text_of(response: Response, token: str) -> str:
    content = bytes(response.read_up_to(LARGEST_REST))
    with suppress(ValueError):  # cut, or damaged
        content = decompress(content, response.headers.get("content-encoding"), LARGEST_REST)
    return " ".join(content.decode(errors="replace").replace(token, "<token>").split())[:200]
