"""A dynamic segmentation of 2**20 supervoxels in graph chunks, and a local CAVE server for it (20 ms a call).

``python -m benchmarks.cave_server FOLDER`` prints the source, and the URL of its counts since the last question.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass
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
DAY_S = 86_400
# When one object is split, and from when on one in a hundred is, one a second; and moments before, between and after.
SPLIT, EDITED = CREATED + 2 * DAY_S, CREATED + 10 * DAY_S
BEFORE, BETWEEN, AFTER = CREATED + DAY_S, CREATED + 3 * DAY_S, CREATED + 20 * DAY_S
OBJECT, EDITED_EACH = 51, 100
CHUNK = (256, 128, 64)  # of the graph and of the files: 16 MiB, the size of a block
NEURITE = (2, 2)  # its cross-section in supervoxels: there are 64 x 64 of them
# How far the roughness of boundaries reaches, in supervoxels and in voxels.
ROUGH, ROUGH_VOXELS = 0.08, 1.5


@dataclass(frozen=True)
class Tissue:
    """A region and its supervoxels.

    Attributes
    ----------
    shape : tuple of int
        Voxels of the region.
    supervoxel : tuple of int
        Voxels of a supervoxel, on average if they are irregular.
    irregular : bool
        Whether supervoxels are cells around random points, with rough boundaries, or else boxes.
    """

    shape: tuple[int, int, int]
    supervoxel: tuple[int, int, int]
    irregular: bool = False

    @property
    def in_chunk(self) -> tuple[int, int, int]:
        """Return how many supervoxels a graph chunk has along each axis."""
        x, y, z = (size // step for size, step in zip(CHUNK, self.supervoxel, strict=True))
        return x, y, z

    def numbers(self) -> NDArray[np.intp]:
        """Return the number of the supervoxel of each voxel of a graph chunk: all chunks have the same cells."""
        shape = self.in_chunk
        count = int(np.prod(shape))
        if not self.irregular:
            return np.kron(np.arange(count).reshape(shape), np.ones(self.supervoxel, np.intp))
        from scipy.ndimage import gaussian_filter
        from scipy.spatial import cKDTree

        random = np.random.default_rng(0)
        points = np.indices(shape).reshape(3, -1).T + random.random((count, 3))
        voxels = (np.indices(CHUNK).reshape(3, -1).T + 0.5) / self.supervoxel
        for axis in range(3):
            rough = gaussian_filter(random.standard_normal(CHUNK), ROUGH_VOXELS)
            voxels[:, axis] += ROUGH * rough.ravel() / rough.std()
        return np.asarray(cKDTree(points).query(voxels)[1]).reshape(CHUNK)


def boxes(small: bool) -> Tissue:
    """Return many small supervoxels in few voxels, 128 each: for rows about ids."""
    return Tissue((256, 128, 128) if small else (1024, 512, 256), (8, 4, 4))


def cells(small: bool) -> Tissue:
    """Return irregular supervoxels of 512 voxels: for rows about bytes and voxels."""
    return Tissue((512, 256, 128) if small else (2048, 1024, 256), (16, 8, 4), irregular=True)


def _supervoxels(tissue: Tissue) -> tuple[GraphLayout, Ids, Ids]:
    """Return the layout, and the id and the object of each supervoxel, by its place along x, y and z.

    Objects are neurites that cross the region along z and drift through several chunks on their way.
    """
    layout = GraphLayout.for_volume(tissue.shape, CHUNK, OFFSET)
    size = np.array(tissue.shape) // tissue.supervoxel
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    chunk, inside = np.divmod(index, tissue.in_chunk)
    number = np.ravel_multi_index(tuple(np.moveaxis(inside, -1, 0)), tissue.in_chunk)
    x, y, z = np.moveaxis(index, -1, 0)
    across, down = size[0] // NEURITE[0], size[1] // NEURITE[1]
    objects = 1 + (x // NEURITE[0] + z // 2) % across * down + (y // NEURITE[1] + z // 4) % down
    # Segment numbers with gaps, as in the other graphs of the local server.
    return layout, layout.encode(1, chunk, 1 + 3 * number), objects.astype(np.uint64)


def write(folder: Path, tissue: Tissue) -> dict[str, Any]:
    """Write the supervoxels as a precomputed volume; return what is known of them."""
    shape = tissue.shape
    layout, ids, _ = _supervoxels(tissue)
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "compressed_segmentation", RESOLUTION_NM, OFFSET, shape, chunk_size=CHUNK
    )
    volume = CloudVolume(f"file://{folder.resolve()}", info=info, progress=False, compress_level=1)
    numbers = np.asfortranarray(tissue.numbers())
    for place in np.ndindex(*(size // step for size, step in zip(shape, CHUNK, strict=True))):
        own = tuple(slice(at * n, (at + 1) * n) for at, n in zip(place, tissue.in_chunk, strict=True))
        start = np.add(OFFSET, np.multiply(place, CHUNK))
        box = tuple(slice(int(a), int(a + n)) for a, n in zip(start, CHUNK, strict=True))
        volume[box] = ids[own].ravel()[numbers.ravel(order="K")].reshape(CHUNK, order="F")
    volume.commit_info()
    (folder / "tissue.json").write_text(json.dumps(asdict(tissue)))
    given = {"start": OFFSET, "stop": np.add(OFFSET, shape).tolist(), "block": CHUNK}
    blocks = int(np.prod(np.array(shape) // CHUNK))
    return {"given": given | {"token": TOKEN}, "supervoxels": int(ids.size), "blocks": blocks}


def world_of(folder: Path) -> World:
    """Return the objects of a folder that `write` has made, and their history."""
    layout, ids, objects = _supervoxels(Tissue(**json.loads((folder / "tissue.json").read_text())))
    order = np.argsort(ids.ravel())
    supervoxels, owners = ids.ravel()[order], objects.ravel()[order]
    graph = ChunkedGraph(layout, supervoxels, owners, CREATED)
    edited = range(1, int(owners.max()) + 1, EDITED_EACH)
    for owner, seconds in ((OBJECT, SPLIT), *zip(edited, itertools.count(EDITED), strict=False)):
        own = supervoxels[owners == owner]
        graph.split(int(graph.roots(own[:1])[0]), own[: len(own) // 2], seconds)
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
