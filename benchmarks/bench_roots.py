"""Root ids of a dynamic segmentation, compared with imageryclient, from a local CAVE server with 20 ms per call.

    python benchmarks/bench_roots.py

The region has 2**20 supervoxels in 64 graph chunks, which are also the blocks of its cutouts. The server is another
process, so that it does not share the interpreter lock of the clients, but it shares the cores of the machine. Every
run uses a new timestamp, which no process has looked up before, except in a second pass.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask
import numpy as np
import requests
from cloudvolume import CloudVolume
from common import OFFSET, arguments, header, in_turn, ratio, show
from distributed import Client, LocalCluster
from imageryclient import ImageryClient as ReleasedClient
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from imagery_dask import ImageryClient, kernels
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.sources import collect_counts, look_up_roots, open_volume, roots
from imagery_dask.testing.cave import CaveServer, ChunkedGraph, GraphLayout, World

Ids = NDArray[np.uint64]

TOKEN = "c0ffee5eedc0ffee5eedc0ffee5eed00"
LATENCY_S = 0.02
CREATED = 1_704_067_200
RESOLUTION_NM = (8, 8, 40)
SHAPE = (1024, 512, 256)
CHUNK = (256, 128, 64)  # of the graph and of the files: 16 MiB, the size of a block
BLOCKS = 64
SUPERVOXEL = (8, 4, 4)
SUPERVOXELS = 2**20
NEURITE = (2, 2)  # its cross-section in supervoxels: there are 64 x 64 of them
LISTED = 1000
BOUNDS = np.array([OFFSET, np.add(OFFSET, SHAPE)])
# 32 x 32 neurites, and two slices: the released client holds 8 bytes for each voxel of each mask.
MASKED = np.array([OFFSET, np.add(OFFSET, (512, 256, 2))])
MASKED_BLOCKS = 4

_seconds = itertools.count(CREATED + 86_400)


def fresh_moment(count: int = 1) -> int:
    """Return the first of `count` consecutive timestamps that no run has used."""
    return [next(_seconds) for _ in range(count)][0]


# --------------------------------------------------------------------------- the region and its server


def layout() -> GraphLayout:
    """Return the layout of the graph's chunks."""
    return GraphLayout.for_volume(SHAPE, CHUNK, OFFSET)


def supervoxels() -> tuple[Ids, Ids]:
    """Return the supervoxel and the object of each 8 x 4 x 4 voxels, both of shape (128, 128, 64).

    Objects are neurites that cross the region along z and drift through several chunks on their way.
    """
    size = np.array(SHAPE) // SUPERVOXEL
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    chunk, inside = np.divmod(index, np.array(CHUNK) // SUPERVOXEL)
    inside_size = np.array(CHUNK) // SUPERVOXEL
    number = np.ravel_multi_index(tuple(np.moveaxis(inside, -1, 0)), tuple(inside_size))
    x, y, z = np.moveaxis(index, -1, 0)
    across, down = size[0] // NEURITE[0], size[1] // NEURITE[1]
    objects = 1 + (x // NEURITE[0] + z // 2) % across * down + (y // NEURITE[1] + z // 4) % down
    # Segment numbers with gaps, as in the other graphs of the local server.
    return layout().encode(1, chunk, 1 + 3 * number), objects.astype(np.uint64)


def watershed(folder: Path) -> str:
    """Return the path of the supervoxels on disk; write them if they do not exist."""
    path = folder / f"watershed-{'x'.join(map(str, SHAPE))}"
    if not (path / "info").exists():
        ids, _ = supervoxels()
        info = CloudVolume.create_new_info(
            1, "segmentation", "uint64", "compressed_segmentation", RESOLUTION_NM, OFFSET, SHAPE, chunk_size=CHUNK
        )
        volume = CloudVolume(f"file://{path.resolve()}", info=info, progress=False)
        depth = CHUNK[2] // SUPERVOXEL[2]
        for start in range(0, ids.shape[2], depth):
            slab = np.kron(ids[..., start : start + depth], np.ones(SUPERVOXEL, np.uint64))
            z = OFFSET[2] + start * SUPERVOXEL[2]
            volume[:, :, z : z + CHUNK[2]] = np.asfortranarray(slab)
        volume.commit_info()
    return f"precomputed://file://{path.resolve()}"


def _world(folder: Path) -> World:
    ids, objects = (part.ravel() for part in supervoxels())
    order = np.argsort(ids)
    source = watershed(folder)
    return World(
        graph=ChunkedGraph(layout(), ids[order], objects[order], CREATED),
        image_source="",
        watershed_source=source,
        watershed_info=json.loads(Path(source.removeprefix("precomputed://file://"), "info").read_text()),
        mips=[],
        voxel_offset=OFFSET,
        resolution=RESOLUTION_NM,
        image_resolution=RESOLUTION_NM,
        times={"created": CREATED},
        versions={},
    )


def _serve(pipe: Connection, folder: Path) -> None:
    """Serve until told to stop; send the calls by endpoint since the last question."""
    world = _world(folder)
    with CaveServer(world, tokens=(TOKEN,), latency_s=LATENCY_S) as server:
        pipe.send((server.url, server.table, server.segmentation_source))
        while pipe.recv() == "calls":
            pipe.send((Counter(request.endpoint for request in server.requests), server.ids_sent))
            server.reset()


@dataclass(frozen=True)
class ServedRegion:
    """The region and its server."""

    url: str
    table: str
    source: str
    pipe: Connection

    def calls(self) -> tuple[Counter[str], int]:
        """Return the calls by endpoint, and the ids sent to ``roots_binary``, since the last question."""
        self.pipe.send("calls")
        counted: tuple[Counter[str], int] = self.pipe.recv()
        return counted

    def ours(self) -> ImageryClient:
        """Return a client of this package."""
        return ImageryClient(segmentation_source=self.source, imagery=False, auth_token=TOKEN)

    def released(self) -> ReleasedClient:
        """Return a client of the released imageryclient with a fixed timestamp."""
        return ReleasedClient(
            segmentation_source=self.source, imagery=False, auth_token=TOKEN, resolution="segmentation",
            timestamp=datetime.fromtimestamp(CREATED + 86_400, UTC),
        )  # fmt: skip

    def query(self, moment: int) -> RootQuery:
        """Return a query at a timestamp."""
        graph = open_volume(self.source).layer.graph
        assert graph is not None
        return RootQuery(graph, moment)


@contextmanager
def served(folder: Path) -> Iterator[ServedRegion]:
    """Serve the region from another process."""
    spawn = multiprocessing.get_context("spawn")
    pipe, server_pipe = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(server_pipe, folder), daemon=True)
    process.start()
    try:
        yield ServedRegion(*pipe.recv(), pipe)
    finally:
        pipe.send("stop")
        process.join()


@contextmanager
def two_workers(threads: int) -> Iterator[Client]:
    """Start two worker processes, which have the token in their environment."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=threads, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def blocks() -> list[NDArray[np.int64]]:
    """Return the bounds of each block."""
    starts = itertools.product(*(range(0, n, size) for n, size in zip(SHAPE, CHUNK, strict=True)))
    return [np.array([np.add(OFFSET, start), np.add(np.add(OFFSET, start), CHUNK)]) for start in starts]


# --------------------------------------------------------------------------- 1. all objects


def bench_all(region: ServedRegion, workers: dict[int, Client], repeats: int) -> None:
    """Compare a cutout of all objects of the region with the released client."""
    header(f"{SUPERVOXELS:,} supervoxels in {BLOCKS} blocks, root_ids='all', {1000 * LATENCY_S:.0f} ms a call")
    ours, released = region.ours(), region.released()

    def array() -> Any:
        return ours.segmentation_cutout(BOUNDS, timestamp=fresh_moment())

    def released_whole() -> NDArray[np.int64]:
        out = np.empty(SHAPE, np.int64, order="F")
        for block in blocks():
            out[tuple(itertools.starmap(slice, (block - OFFSET).T))] = released.segmentation_cutout(block)
        return out

    runs: dict[str, Callable[[], Any]] = {
        "released": lambda: max(int(released.segmentation_cutout(block).max()) for block in blocks()),
        "released_whole": released_whole,
        "workers_1": lambda: workers[1].compute(array().max()).result(),
        "workers_4": lambda: workers[4].compute(array().max()).result(),
        "threads_2": lambda: array().max().compute(scheduler="threads", num_workers=2),
        "threads_8": lambda: array().max().compute(scheduler="threads", num_workers=8),
        "whole_8": lambda: array().compute(scheduler="threads", num_workers=8),
    }
    assert array().npartitions == BLOCKS
    assert (runs["whole_8"]() == released_whole()).all()
    region.calls()
    runs["workers_4"]()
    calls, sent = region.calls()
    show("supervoxels sent / distinct ones", f"{sent / SUPERVOXELS:.3f}", "<= 1.02", sent <= 1.02 * SUPERVOXELS)
    show("calls to the server", str(calls["roots_binary"]), f"{BLOCKS}", calls["roots_binary"] == BLOCKS)
    seconds = in_turn(repeats, **runs)
    mb = 8 * np.prod(SHAPE) / 1e6
    for name, peer, text in (
        ("workers_4", "released", "two workers of 4 threads, maximum of the voxels"),
        ("workers_1", "released", "two workers of 1 thread, maximum of the voxels"),
        ("threads_8", "released", "8 threads, maximum of the voxels"),
        ("threads_2", "released", "2 threads, maximum of the voxels"),
        ("whole_8", "released_whole", "8 threads, compute()"),
    ):
        times, took = ratio(seconds[peer], seconds[name]), statistics.median(seconds[name])
        show(f"{text}: times imageryclient", f"{times:.1f} ({took:.2f} s, {mb / took:.0f} MB/s)", ">= 5", times >= 5)
    for name, text in (("released", "maximum of each block"), ("released_whole", "joined in one array")):
        took = statistics.median(seconds[name])
        show(f"imageryclient, block after block, {text}", f"{took:.2f} s, {mb / took:.0f} MB/s", "", True)


# --------------------------------------------------------------------------- 2. remapping


def irregular_block(count: int) -> Ids:
    """Return a block (Fortran order) of `count` irregular supervoxels: the Voronoi cells of random points."""
    points = np.random.default_rng(count).random((count, 3)) * CHUNK
    voxels = np.stack(np.meshgrid(*map(np.arange, CHUNK), indexing="ij"), axis=-1)
    _, nearest = cKDTree(points).query(voxels.reshape(-1, 3, order="F"), workers=2)
    ids = layout().encode(1, (1, 2, 3), 1 + 3 * np.arange(count))
    return ids[nearest].reshape(CHUNK, order="F")


def bench_remapping(repeats: int) -> None:
    """Measure the remapping of a block's voxels, without a server."""
    header("Remapping a block of 16 MiB (find distinct ids, replace them by roots), one core")
    for count in (200, 20_000):
        block = irregular_block(count)
        values = layout().encode(layout().n_layers, (0, 0, 0), 1 + np.arange(count) // 8)
        unique, remapped = [], []
        for _ in range(max(7, repeats)):
            voxels = block.copy(order="K")
            started = time.perf_counter()
            ids = kernels.unique_ids(voxels)
            remapping = time.perf_counter()
            kernels.remap(voxels, ids, values)
            remapped.append(time.perf_counter() - remapping)
            unique.append(remapping - started)
        both = statistics.median(a + b for a, b in zip(unique, remapped, strict=True))
        parts = (
            f"distinct ids {1e3 * statistics.median(unique):.0f} ms, roots {1e3 * statistics.median(remapped):.0f} ms"
        )
        speed = block.nbytes / 1e6 / both
        show(f"{count:,} ids", f"{speed:.0f} MB/s ({parts})", ">= 300", speed >= 300)


# --------------------------------------------------------------------------- 3. a list of roots


def bench_list(region: ServedRegion) -> None:
    """Count the calls of a cutout with a list of roots."""
    header(f"A list of {LISTED:,} roots over {BLOCKS} blocks")
    client, moment = region.ours(), fresh_moment()
    listed = layout().encode(layout().n_layers, (0, 0, 0), np.arange(1, 4 * LISTED, 4)).tolist()
    region.calls()
    started = time.perf_counter()
    array = client.segmentation_cutout(BOUNDS, root_ids=listed, timestamp=moment)
    largest = array.max().compute(scheduler="threads")
    took = time.perf_counter() - started
    calls, _ = region.calls()
    assert largest == max(listed)
    assert array.npartitions == BLOCKS
    total = calls.total()
    named = ", ".join(f"{n} {name}" for name, n in sorted(calls.items()))
    show("calls", f"{total} ({named})", f"<= {BLOCKS + 10}", total <= BLOCKS + 10)
    show("seconds", f"{took:.2f}", "", True)
    started = time.perf_counter()
    array.max().compute(scheduler="threads")
    took = time.perf_counter() - started
    again = region.calls()[0].total()
    show("calls of a second pass", str(again), "0", again == 0)
    show("seconds of a second pass", f"{took:.2f}", "", True)
    client.segmentation_cutout(BOUNDS, timestamp=moment).max().compute(scheduler="threads")
    other = region.calls()[0]["roots_binary"]
    show("lookups of a later cutout of all objects, same region and timestamp", str(other), "0", other == 0)


# --------------------------------------------------------------------------- 4. masks


def bench_masks(region: ServedRegion, folder: Path, repeats: int) -> None:
    """Compare a thousand masks with the released client."""
    header("Masks of 1,024 objects in 512 x 256 x 2 voxels")
    ours, released = region.ours(), region.released()
    region.calls()
    masks = ours.split_segmentation_cutout(BOUNDS, timestamp=fresh_moment())
    count = len(masks)
    calls = region.calls()[0].total()
    show(f"calls to find {count:,} masks in {BLOCKS} blocks", str(calls), f"<= {BLOCKS}", calls <= BLOCKS)

    def our_sizes() -> dict[int, int]:
        return ours.unique_roots(MASKED, timestamp=fresh_moment())

    def our_masks() -> dict[int, Any]:
        return ours.split_segmentation_cutout(MASKED, timestamp=fresh_moment()).compute()

    def their_sizes() -> dict[int, int]:
        return {int(root): int(mask.sum()) for root, mask in released.split_segmentation_cutout(MASKED).items()}

    few = list(masks)[: 2**4]
    some = ours.split_segmentation_cutout(MASKED, root_ids=few, timestamp=fresh_moment())
    for name, run in (
        (f"dask.compute of {len(few)} masks", lambda: dask.compute([some[root] for root in few])),
        ("compute() of all masks", our_masks),
    ):
        region.calls()
        with dask.config.set(scheduler="synchronous"), collect_counts() as counts:
            run()
        read, calls = counts.chunks, region.calls()[0]["roots_binary"]
        once = f"{MASKED_BLOCKS} and {MASKED_BLOCKS}"
        show(f"chunks read and calls by {name}", f"{read} and {calls}", once, f"{read} and {calls}" == once)

    with tempfile.TemporaryDirectory(dir=folder) as out:

        def our_files() -> None:
            ours.save_segmentation_masks(f"{out}/ours", MASKED, timestamp=fresh_moment())

        def their_files() -> None:
            released.save_segmentation_masks(f"{out}/theirs", MASKED)

        assert our_sizes() == their_sizes() == {root: int(mask.sum()) for root, mask in our_masks().items()}
        assert len(our_sizes()) == 1024
        region.calls()
        our_files()
        calls = region.calls()[0].total()
        show(f"calls to save them, {MASKED_BLOCKS} blocks", str(calls), f"<= {MASKED_BLOCKS}", calls <= MASKED_BLOCKS)
        seconds = in_turn(
            repeats,
            ours=our_sizes,
            dense=our_masks,
            files=our_files,
            theirs=lambda: released.split_segmentation_cutout(MASKED),
            theirs_counted=their_sizes,
            their_files=their_files,
        )
        assert len(list(Path(out).glob("ours*"))) == len(list(Path(out).glob("theirs*"))) == 2048
    for name, mine, peer in (
        ("ids and voxel counts (unique_roots), times imageryclient's masks and their sums", "ours", "theirs_counted"),
        ("masks in memory, times imageryclient's", "dense", "theirs"),
        ("save_segmentation_masks, times imageryclient's", "files", "their_files"),
    ):
        times = ratio(seconds[peer], seconds[mine])
        took, peer_took = statistics.median(seconds[mine]), statistics.median(seconds[peer])
        show(name, f"{times:.1f} ({took:.2f} s, {peer_took:.2f} s)", ">= 10", times >= 10)


# --------------------------------------------------------------------------- 5. two kinds of lookups


class GraphRequests:
    """Plain requests to the graph server, which counts calls and bytes."""

    def __init__(self, region: ServedRegion) -> None:
        self._path = f"{region.url}/segmentation/api/v1/table/{region.table}"
        self._session = requests.Session()
        self._session.headers = {"Authorization": f"Bearer {TOKEN}", "Accept-Encoding": "identity"}
        self.calls = self.bytes = 0

    def _ids(self, method: str, path: str, body: bytes | None = None, **params: Any) -> Ids:
        params["timestamp"] = CREATED + 86_400
        answer = self._session.request(method, f"{self._path}/{path}", params=params, data=body)
        answer.raise_for_status()
        self.calls += 1
        self.bytes += len(body or b"") + int(answer.headers["Content-Length"])
        return np.frombuffer(answer.content, "<u8")

    def roots(self, ids: Ids) -> Ids:
        """Look up the roots of ids."""
        return self._ids("POST", "roots_binary", ids.tobytes())

    def by_chunk(self, ids: Ids) -> Ids:
        """Look up the roots of a chunk's supervoxels through the L2 ids of the whole chunk."""
        pairs = self._ids("GET", f"l2_chunk_children_binary/{self._chunk(ids)}", as_array=True).reshape(-1, 2)
        level2, owner = np.unique(pairs[:, 0], return_inverse=True)
        order = np.argsort(pairs[:, 1])
        at = order[np.searchsorted(pairs[:, 1], ids, sorter=order)]
        return self.roots(level2)[owner[at]]

    def _chunk(self, ids: Ids) -> int:
        return int(layout().chunk_ids(ids[:1])[0]) + (1 << 56)


def bench_requests(region: ServedRegion, repeats: int) -> None:
    """Compare the lookup of a block's supervoxels with that of its chunk's L2 ids."""
    header("Two kinds of requests for a block's roots")
    server = GraphRequests(region)
    in_chunks = supervoxels()[0].reshape(4, 32, 4, 32, 4, 16).transpose(0, 2, 4, 1, 3, 5).reshape(BLOCKS, 32, 32, 16)
    for name, chosen in (
        ("a whole graph chunk", [np.sort(chunk.ravel()) for chunk in in_chunks]),
        ("one slice of it", [np.sort(chunk[..., 5].ravel()) for chunk in in_chunks]),
    ):
        assert (server.roots(chosen[9]) == server.by_chunk(chosen[9])).all()
        for endpoint, ask in (("roots_binary", server.roots), ("l2_chunk_children_binary", server.by_chunk)):
            server.calls = server.bytes = 0
            ask(chosen[0])
            calls, size = server.calls, server.bytes
            seconds = [_timed(ask, ids) for _ in range(repeats) for ids in chosen[::4]]
            took = 1e3 * statistics.median(seconds)
            show(f"{name}, {endpoint}", f"{calls} calls, {size / 1e3:.0f} kB, {took:.0f} ms", "", True)


def _timed(run: Callable[..., object], *args: Any) -> float:
    started = time.perf_counter()
    run(*args)
    return time.perf_counter() - started


# --------------------------------------------------------------------------- 6. the limit of requests


def lookups(query: RootQuery, ids: Ids, count: int, bounded: bool) -> float:
    """Return the median milliseconds of a lookup on a worker, with or without the cluster's semaphore."""
    slot = roots._request_slots if bounded else lambda query: nullcontext()
    moments = [replace(query, timestamp=query.timestamp + n) for n in range(count + 1)]
    with patch.object(roots, "_request_slots", slot):
        took = [_timed(look_up_roots, moment, ids) for moment in moments]
    return 1e3 * statistics.median(took[1:])  # the first opens the connections


def leases(query: RootQuery, count: int) -> float:
    """Return the median milliseconds in which a worker acquires and releases the semaphore."""

    def acquire_and_release() -> None:
        with roots._request_slots(query):
            pass

    return 1e3 * statistics.median(_timed(acquire_and_release) for _ in range(count))


def bench_bound(region: ServedRegion, workers: Client, repeats: int) -> None:
    """Measure the cost of the limit of the cluster's requests."""
    header("The limit of a cluster's requests (distributed.Semaphore), two workers at once")
    ids = np.sort(supervoxels()[0][:32, :32, :16].ravel())
    count, names = 20, list(workers.scheduler_info()["workers"])

    def on_both(run: Callable[..., float], *args: Any, most: int = 32) -> float:
        query = replace(region.query(fresh_moment(count + 1)), max_requests=most)
        tasks = [workers.submit(run, query, *args, workers=[name], pure=False) for name in names]
        return statistics.median(workers.gather(tasks))

    took: dict[str, list[float]] = {"unbounded": [], "bounded": [], "one": []}
    for _ in range(repeats + 1):
        took["unbounded"].append(on_both(lookups, ids, count, False))
        took["bounded"].append(on_both(lookups, ids, count, True))
        took["one"].append(on_both(lookups, ids, count, True, most=1))
    free, bounded, one = (statistics.median(times[1:]) for times in took.values())
    show(f"a lookup of {len(ids):,} ids, unbounded", f"{free:.1f} ms", "", True)
    show("bounded to 32 requests", f"{bounded:.1f} ms ({bounded - free:+.1f})", "", True)
    show("bounded to 1 request, which the workers share", f"{one:.1f} ms", "", True)
    show("acquire and release without a lookup", f"{on_both(leases, 50):.1f} ms", "", True)


if __name__ == "__main__":
    options = arguments(__doc__)
    options.data.mkdir(parents=True, exist_ok=True)
    os.environ["CAVE_TOKEN"] = TOKEN
    with served(options.data) as region:
        with two_workers(1) as one_thread, two_workers(4) as four_threads:
            bench_all(region, {1: one_thread, 4: four_threads}, options.repeats)
            bench_bound(region, one_thread, options.repeats)
        bench_remapping(options.repeats)
        bench_list(region)
        bench_masks(region, options.data, options.repeats)
        bench_requests(region, options.repeats)
