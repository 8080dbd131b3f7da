"""A dynamic segmentation of 2**20 supervoxels in 64 graph chunks, and a local CAVE server for it (20 ms a call).

``python -m benchmarks.cave_server FOLDER`` prints the source, and the URL of its counts since the last question.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from cloudvolume import CloudVolume
from numpy.typing import NDArray

from benchmarks.data import OFFSET, RESOLUTION_NM
from imagery_dask.testing.cave import CaveServer, ChunkedGraph, GraphLayout, World

Ids = NDArray[np.uint64]

# What clients authenticate with; the server is on this machine and ends with the row.
TOKEN = "c0ffee5eedc0ffee5eedc0ffee5eed00"
LATENCY_S = 0.02
CREATED = 1_704_067_200
# From when on one object in a hundred is split, one a second; and moments before and after.
EDITED, BEFORE, AFTER = CREATED + 864_000, CREATED + 86_400, CREATED + 1_728_000
EDITED_EACH = 100
CHUNK = (256, 128, 64)  # of the graph and of the files: 16 MiB, the size of a block
SUPERVOXEL = (8, 4, 4)
NEURITE = (2, 2)  # its cross-section in supervoxels: there are 64 x 64 of them


def _shape(small: bool) -> tuple[int, int, int]:
    return (256, 128, 128) if small else (1024, 512, 256)


def _supervoxels(shape: tuple[int, int, int]) -> tuple[GraphLayout, Ids, Ids]:
    """Return the layout, and the supervoxel and the object of each 8 x 4 x 4 voxels.

    Objects are neurites that cross the region along z and drift through several chunks on their way.
    """
    layout = GraphLayout.for_volume(shape, CHUNK, OFFSET)
    size, inside_size = np.array(shape) // SUPERVOXEL, np.array(CHUNK) // SUPERVOXEL
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    chunk, inside = np.divmod(index, inside_size)
    number = np.ravel_multi_index(tuple(np.moveaxis(inside, -1, 0)), tuple(inside_size))
    x, y, z = np.moveaxis(index, -1, 0)
    across, down = size[0] // NEURITE[0], size[1] // NEURITE[1]
    objects = 1 + (x // NEURITE[0] + z // 2) % across * down + (y // NEURITE[1] + z // 4) % down
    # Segment numbers with gaps, as in the other graphs of the local server.
    return layout, layout.encode(1, chunk, 1 + 3 * number), objects.astype(np.uint64)


def write(folder: Path, small: bool) -> dict[str, Any]:
    """Write the supervoxels as a precomputed volume; return what is known of them."""
    shape = _shape(small)
    layout, ids, _ = _supervoxels(shape)
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "compressed_segmentation", RESOLUTION_NM, OFFSET, shape, chunk_size=CHUNK
    )
    volume = CloudVolume(f"file://{folder.resolve()}", info=info, progress=False)
    depth = CHUNK[2] // SUPERVOXEL[2]
    for start in range(0, ids.shape[2], depth):
        slab = np.kron(ids[..., start : start + depth], np.ones(SUPERVOXEL, np.uint64))
        z = OFFSET[2] + start * SUPERVOXEL[2]
        volume[:, :, z : z + CHUNK[2]] = np.asfortranarray(slab)
    volume.commit_info()
    (folder / "shape.json").write_text(json.dumps(shape))
    given = {"start": OFFSET, "stop": np.add(OFFSET, shape).tolist(), "block": CHUNK}
    blocks = int(np.prod(np.array(shape) // CHUNK))
    return {"given": given | {"token": TOKEN}, "supervoxels": int(ids.size), "blocks": blocks}


def world_of(folder: Path) -> World:
    """Return the objects of a folder that `write` has made, and their history."""
    shape = tuple(json.loads((folder / "shape.json").read_text()))
    layout, ids, objects = _supervoxels(shape)
    order = np.argsort(ids.ravel())
    supervoxels, owners = ids.ravel()[order], objects.ravel()[order]
    graph = ChunkedGraph(layout, supervoxels, owners, CREATED)
    for seconds, owner in enumerate(range(1, int(owners.max()) + 1, EDITED_EACH)):
        own = supervoxels[owners == owner]
        graph.split(int(graph.roots(own[:1])[0]), own[: len(own) // 2], EDITED + seconds)
    return World(
        graph=graph,
        image_source="",
        watershed_source=f"precomputed://file://{folder.resolve()}",
        watershed_info=json.loads((folder / "info").read_text()),
        mips=[],
        voxel_offset=OFFSET,
        resolution=RESOLUTION_NM,
        image_resolution=RESOLUTION_NM,
        times={"created": CREATED, "edited": EDITED},
        versions={},
    )


def main() -> None:
    """Serve until the process is ended."""
    world = world_of(Path(sys.argv[1]))
    with CaveServer(world, tokens=(TOKEN,), latency_s=LATENCY_S) as server:

        class Counts(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lookups = sum(request.endpoint == "roots_binary" for request in server.requests)
                counts = {"requests": len(server.requests), "lookups": lookups, "ids sent": server.ids_sent}
                server.reset()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(counts).encode())

            def log_message(self, *_: object) -> None:
                """Write no log."""

        counts = HTTPServer(("127.0.0.1", 0), Counts)
        print(server.segmentation_source, f"http://127.0.0.1:{counts.server_port}", flush=True)
        counts.serve_forever()


if __name__ == "__main__":
    main()
