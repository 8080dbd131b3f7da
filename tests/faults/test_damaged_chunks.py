"""Damaged chunks of every encoding: an error that names the chunk, and neither a crash nor gigabytes of memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from imagery_dask.annotations import Array

SHAPE = (32, 24, 16)
DTYPES = {
    "raw": "uint16", "jpeg": "uint8", "png": "uint8", "jxl": "uint8", "compressed_segmentation": "uint64",
    "compresso": "uint64", "crackle": "uint64",
}  # fmt: skip
# Of 150 damages, the smallest number that is noticed: raw has no redundancy, and pixels of pictures may change.
NOTICED = {"raw": 20, "jpeg": 80, "png": 100, "jxl": 60, "compressed_segmentation": 40, "compresso": 80, "crackle": 140}
DAMAGES = 150
# More than a process needs that has imported everything; a single damaged chunk took 4 GB.
MEMORY = 1200 * 2**20


def voxels(dtype: str) -> Array:
    """Return smooth shapes, whose values exceed 2**53 if the dtype holds them."""
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    cells = (x // 7 + 5 * (y // 6) + 31 * (z // 5) + (x * y % 11 == 0)).astype(dtype)
    return np.asfortranarray(cells + np.iinfo(dtype).max // 2)[..., np.newaxis]


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Return a chunk with a bit flipped (in its first bytes, which are headers, or anywhere), cut, zeroed or mixed."""
    at = int(random.integers(len(content)))
    kind = int(random.integers(5))
    if kind < 2:
        at = at if kind else at % 40
        return content[:at] + bytes([content[at] ^ 1 << int(random.integers(8))]) + content[at + 1 :]
    if kind == 2:
        return content[: max(1, at)]
    if kind == 3:
        return content[: max(1, at)].ljust(len(content), b"\0")
    return content[:at] + random.bytes(min(16, len(content) - at)) + content[at + 16 :]


def read_damaged(folder: str, encoding: str) -> None:
    """Read a chunk again and again, each time damaged; print what came of it."""
    from cloudvolume import chunks

    from imagery_dask.errors import CorruptChunkError
    from imagery_dask.geometry.grid import VoxelGrid
    from imagery_dask.sources.precomputed.precomputed_volume import PrecomputedVolume
    from imagery_dask.sources.volumes import stored_volume

    stored_volume.DECODE_ATTEMPTS = 1
    dtype = DTYPES[encoding]
    scale = {
        "key": "8_8_8", "size": SHAPE, "resolution": [8, 8, 8], "voxel_offset": [0, 0, 0], "chunk_sizes": [SHAPE],
        "encoding": encoding, "compressed_segmentation_block_size": [8, 8, 8],
    }  # fmt: skip
    kind = "image" if dtype in ("uint8", "uint16") else "segmentation"
    info = {"type": kind, "data_type": dtype, "num_channels": 1, "scales": [scale]}
    path = Path(folder)
    (path / "8_8_8").mkdir()
    (path / "info").write_text(json.dumps(info))
    chunk = path / "8_8_8" / f"0-{SHAPE[0]}_0-{SHAPE[1]}_0-{SHAPE[2]}"
    volume = PrecomputedVolume(f"file://{folder}")
    grid = volume.layer.mips[0].grid
    assert isinstance(grid, VoxelGrid)
    content = bytes(chunks.encode(voxels(dtype), encoding, (8, 8, 8)))
    chunk.write_bytes(content)
    whole = volume.read(0, grid, "error")[0]
    random = np.random.default_rng(7)
    results: Counter[str] = Counter()
    for _ in range(DAMAGES):
        chunk.write_bytes(damaged(content, random))
        try:
            read = volume.read(0, grid, "error")[0]
        except CorruptChunkError as error:
            results["noticed" if f"8_8_8/{chunk.name} of " in str(error) else "nameless"] += 1
        else:
            assert read.shape == whole.shape
            assert read.dtype == dtype
            results["same" if np.array_equal(read, whole) else "changed"] += 1
    chunk.write_bytes(content)
    np.testing.assert_array_equal(volume.read(0, grid, "error")[0], whole)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sys.stdout.write(json.dumps({**results, "memory": peak * (1 if sys.platform == "darwin" else 1024)}))


@pytest.mark.long
@pytest.mark.parametrize("encoding", DTYPES)
def test_a_damaged_chunk_is_an_error_that_names_it(encoding: str, tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import {Path(__file__).stem} as test; "
    program += f"test.read_damaged({str(tmp_path)!r}, {encoding!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert "nameless" not in results
    assert results["noticed"] >= NOTICED[encoding]
    assert results["memory"] < MEMORY
    if encoding == "crackle":  # the only one with a checksum of all
        assert "changed" not in results
