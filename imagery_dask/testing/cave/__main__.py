"""Serve a synthetic world until interrupted: ``python -m imagery_dask.testing.cave [FOLDER]``."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading

from imagery_dask.testing.cave.server import TOKEN, CaveServer
from imagery_dask.testing.cave.world import make_world


def main() -> None:
    """Start a server, print its address, names and tokens, one per line, and wait for SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m imagery_dask.testing.cave", description=__doc__)
    parser.add_argument("folder", nargs="?", help="folder for the volumes; by default a temporary one")
    parser.add_argument("--port", type=int, default=0, help="by default any free port")
    parser.add_argument("--token", action="append", help="a token to accept, may be repeated")
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 32), metavar=("X", "Y", "Z"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="cave-") as temporary:
        world = make_world(options.folder or temporary, tuple(options.shape), options.seed)
        tokens = options.token or [TOKEN]
        with CaveServer(world, tokens=tokens, latency_s=options.latency, port=options.port) as server:
            about = [f"datastack {server.datastack}", f"segmentation {server.segmentation_source}"]
            about += [f"token {token}" for token in tokens]
            sys.stdout.write("\n".join([server.url, *about, ""]))
            sys.stdout.flush()
            stopped.wait()


if __name__ == "__main__":
    main()
