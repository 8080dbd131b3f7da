"""Objects in a bucket: how many one process writes, as shards and as receipts."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.programs.runs import NoBlocks
from imagery_dask.export.zarr.block_array import open_array
from imagery_dask.records.runs import Records
from imagery_dask.run.block import run_batch
from imagery_dask.storage.atomic_files import Files
from imagery_dask.storage.zarr_stores import open_store

BUCKET = "s3://bucket"


def _use(source: str) -> None:
    """Let clients of S3 write to a server."""
    parts = urlsplit(source)
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": f"{parts.scheme}://{parts.netloc}", "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip


def _figures(objects: int, seconds: float, cpu_s: float) -> dict[str, float]:
    return {"objects a second": objects / seconds, "ms of CPU per object": 1e3 * cpu_s / objects}


def shards(source: str, objects: int, side: int, threads: int) -> dict[str, Any]:
    """Write blocks of one object into an array of zarr, on threads."""
    import zarr

    _use(source)
    shape = (side, side, side * objects)
    store = open_store(f"{BUCKET}/out.zarr")
    zarr.create_array(store, shape=shape, chunks=(side,) * 3, dtype="uint8", compressors=None, zarr_format=3)
    voxels = np.random.default_rng(0).integers(0, 255, (side,) * 3, np.uint8)
    array = open_array(f"{BUCKET}/out.zarr", "", run="run", threads=1)

    def write(number: int) -> None:
        array.write_block((slice(0, side), slice(0, side), slice(side * number, side * (number + 1))), voxels)

    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(objects)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"wall_s": seconds, "cpu_s": cpu, "figures": _figures(objects, seconds, cpu)}


def receipts(source: str, blocks: int, of_task: int) -> dict[str, Any]:
    """Run tasks of blocks without work, which write receipts alone."""
    _use(source)
    records = Records(Files(f"{BUCKET}/out.zarr.receipts"), "run")
    tasks = NoBlocks(blocks)
    started, cpu = time.perf_counter(), time.process_time()
    for first in range(0, blocks, of_task):
        run_batch([(tasks[number], number, 1) for number in range(first, min(first + of_task, blocks))], records)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"wall_s": seconds, "cpu_s": cpu, "figures": {"ms of CPU per block": 1e3 * cpu / blocks}}


def requests(source: str, objects: int, side: int, threads: int) -> dict[str, Any]:
    """Send as many objects over plain connections: what the server can take."""
    parts = urlsplit(source)
    request = b"PUT /bucket/object HTTP/1.1\r\nHost: bucket\r\nContent-Length: %d\r\n\r\n" % side**3 + bytes(side**3)

    def send(_: int) -> None:
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
            for _ in range(objects // threads):
                connection.sendall(request)
                connection.recv(4096)

    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(send, range(threads)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"wall_s": seconds, "cpu_s": cpu, "figures": _figures(objects, seconds, cpu)}
