"""Looking at planes one after another over HTTP, compared with caches of tensorstore and CloudVolume.

python benchmarks/bench_browse.py [--quick]

Fifty planes of 512 x 512 voxels of jpeg imagery in chunks of 64 x 64 x 16, from a server that answers after 20 ms.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from cloudvolume import CloudVolume
from common import arguments, header, in_turn, ratio, show

from imagery_dask import ImageryClient
from imagery_dask.testing.volume import write_demo_volumes

LATENCY_S = 0.02
KEPT = 256 * 2**20
START = np.array([12288, 8192, 1024])
PLANES = 50

Plane = Callable[[int, int], Any]


def box(x: int, z: int) -> tuple[slice, ...]:
    """Return a plane, x voxels to the right, in voxels of the volume."""
    a = START + (x, 0, z)
    return slice(a[0], a[0] + 512), slice(a[1], a[1] + 512), slice(a[2], a[2] + 1)


def ours(url: str) -> Plane:
    """Open with an empty cache."""
    client = ImageryClient(image_source=url, cache_bytes=KEPT)
    volume = client.image_volume().data
    return lambda x, z: volume[x : x + 512, :512, z].compute()


def with_tensorstore(url: str) -> Plane:
    """Open with an empty cache of tensorstore."""
    store = tensorstore.open(
        {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "http", "base_url": f"{url}/"}, "scale_index": 0},
        context=tensorstore.Context({"cache_pool": {"total_bytes_limit": KEPT}}),
        recheck_cached_data="open",
    ).result()
    return lambda x, z: store[(*box(x, z), 0)].read().result()[..., 0]


def with_cloudvolume(url: str) -> Plane:
    """Open with an empty LRU of CloudVolume."""
    volume = CloudVolume(f"precomputed://{url}", progress=False, lru_bytes=KEPT)
    return lambda x, z: np.asarray(volume[box(x, z)])[..., 0, 0]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder from another process, and yield its URL."""
    script = Path(__file__).with_name("slow_server.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), str(LATENCY_S)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def main() -> None:
    """Print a table."""
    args = arguments(__doc__, quick=(bool, False, "a few planes, once"))
    planes, repeats = (8, 1) if args.quick else (PLANES, args.repeats)
    folder = args.data / "browse"
    if not (folder / "image" / "info").exists():
        write_demo_volumes(folder)
    with serving(folder.resolve()) as server:
        url = f"{server}/image"

        def requests() -> int:
            with urllib.request.urlopen(f"{server}/in-flight") as answer:
                return int(json.load(answer)["requests"])

        def browse(opened: Callable[[str], Plane]) -> Plane:
            plane = opened(url)
            for z in range(planes):
                plane(0, z)
            return plane

        header(f"{planes} neighbouring planes of 512 x 512 over HTTP, {1e3 * LATENCY_S:.0f} ms latency")
        chunks = 64 * -(-planes // 16)
        peers = {"imagery_dask": ours, "tensorstore": with_tensorstore, "CloudVolume": with_cloudvolume}
        expected = with_cloudvolume(url)(0, 3)
        for name, opened in peers.items():
            assert (opened(url)(0, 3) == expected).all(), name
            requests()
            plane = browse(opened)
            found = requests() - 1  # its info
            show(f"requests of {name}", str(found), f"<= {chunks}", found <= chunks)
            if opened is ours:
                moved = _moved(plane, requests)
                show("requests after a move by 10%", str(moved), "8", moved == 8)
                again = _again(plane)
                show("the same plane again", f"{again:.1f} ms", "< 10 ms", again < 10)
        seconds = in_turn(repeats, **{name: lambda opened=opened: browse(opened) for name, opened in peers.items()})
        for name in ("tensorstore", "CloudVolume"):
            times = ratio(seconds[name], seconds["imagery_dask"])
            value = f"{times:.2f} ({min(seconds['imagery_dask']):.2f} s, {name} {min(seconds[name]):.2f} s)"
            show(f"speed, times that of {name}", value, ">= 1", times >= 1)


def _moved(plane: Plane, requests: Callable[[], int]) -> int:
    requests()
    plane(51, 0)
    return requests()


def _again(plane: Plane) -> float:
    """Return the best time, in ms, to look at a plane again: the machine has other work too."""
    times = []
    for _ in range(20):
        started = time.perf_counter()
        plane(0, 0)
        times.append(1e3 * (time.perf_counter() - started))
    return min(times)


if __name__ == "__main__":
    main()
