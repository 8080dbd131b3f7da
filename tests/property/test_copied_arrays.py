"""Chunks of any array that zarr-python writes are copied, or decoded, to the voxels that it reads; receipts hold."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.export.verify import verify_export
from imagery_dask.sources import open_volume

DTYPES = ["uint8", "int8", "uint16", "int32", "uint64", "int64", "float32", "float64"]
# With the second one, voxels of a coarser level are made of two chunks along x.
CHUNKS = [(8, 16, 12), (9, 16, 11)]
SHAPE = (30, 40, 30)
V3 = [
    None, BloscCodec(), BloscCodec(cname="lz4", shuffle="noshuffle", clevel=7), BloscCodec(cname="zlib", clevel=2),
    ZstdCodec(), ZstdCodec(level=2, checksum=True), GzipCodec(level=4), (ZstdCodec(), Crc32cCodec()),
]  # fmt: skip
V2 = [
    None, numcodecs.Blosc("lz4hc", 3, numcodecs.Blosc.BITSHUFFLE), numcodecs.Zstd(3), numcodecs.Zstd(2, checksum=True),
    numcodecs.GZip(2),
]  # fmt: skip
# zarrs has no checksums of zstd in zarr v2.
WITH_CHECKSUMS = {
    "chunk": CHUNKS[0], "options": {"zarr_format": 3, "compressors": ZstdCodec(level=2, checksum=True)},
    "dtype": "uint8", "fill": 0, "low": [0, 0, 0], "high": list(SHAPE), "start": (0, 0, 0), "seed": 0,
    "how": {"levels": 2, "ome_version": "0.4", "shards": None},
}  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an array (z, y, x), a box of it, and how its copy is written."""
    version, chunk = draw(st.sampled_from([2, 3, 3])), draw(st.sampled_from(CHUNKS))
    options: dict[str, Any] = {"zarr_format": version, "compressors": draw(st.sampled_from(V3 if version == 3 else V2))}
    if version == 3 and draw(st.booleans()):
        options["shards"] = tuple(size * draw(st.integers(1, 3)) for size in chunk)
    shift = draw(st.sampled_from([0, 0, 0, 5]))
    low = [min(draw(st.integers(0, 2)) * size + shift, n - 4) for size, n in zip(chunk, SHAPE, strict=True)]
    return {
        "chunk": chunk,
        "options": options, "dtype": draw(st.sampled_from(DTYPES)), "fill": draw(st.sampled_from([0, 1])), "low": low,
        "high": [draw(st.sampled_from([n, n - 1])) for n in SHAPE],
        "start": draw(st.tuples(*[st.integers(-100, 10**6)] * 3)), "seed": draw(st.integers(0, 999)),
        "how": {
            "levels": draw(st.integers(1, 2)), "ome_version": draw(st.sampled_from(["0.4", "0.5"])),
            "shards": draw(st.sampled_from([None, tuple(2 * size for size in reversed(chunk))])),
        },
    }  # fmt: skip


@given(made=cases())
@example(made=WITH_CHECKSUMS)
@settings(max_examples=30, deadline=None)
def test_copies_have_the_voxels_of_their_source(made: dict[str, Any]) -> None:
    chunk = made["chunk"]
    how = made["how"] | {"chunks": chunk[::-1], "progress": False}
    if how["ome_version"] == "0.4":
        how["shards"] = None
    with tempfile.TemporaryDirectory() as folder:
        voxels = _written(Path(folder) / "a", made)
        box = tuple(map(slice, made["low"], made["high"]))
        start = ",".join(map(str, made["start"]))
        path = f"zarr://{folder}/a#resolution=8,8,40&voxel_offset={start}&axes=zyx"
        bounds = [
            [at + first for at, first in zip(edge[::-1], made["start"], strict=True)]
            for edge in (made["low"], made["high"])
        ]
        out = Path(folder) / "out"
        report = to_zarr(_cutout(path, bounds), out, **how)
        np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[...], voxels[box])
        # Arrays that are smaller than a chunk have smaller chunks.
        is_aligned = not any(
            at % size or end - at < size for at, end, size in zip(made["low"], made["high"], chunk, strict=True)
        )
        is_cut = how["levels"] == 2 and chunk[2] % 2 == 1 and voxels[box].shape[2] > chunk[2]
        is_plain = not isinstance(made["options"]["compressors"], tuple | None)
        is_copied = is_aligned and is_plain and not is_cut
        assert any("copied" in note for note in report.notes) == is_copied
        assert verify_export(out, sample=None, progress=False).ok
        if how["levels"] == 2:
            to_zarr(voxels[box].T, Path(folder) / "plain", **how | {"resolution_nm": (8, 8, 40), "kind": _kind(path)})
            levels = [zarr.open_array(Path(folder) / name / "1", mode="r")[...] for name in ("out", "plain")]
            np.testing.assert_array_equal(*levels)
        if is_copied:
            _flip_a_byte_and_repair(path, bounds, out, how, made["seed"])


def _flip_a_byte_and_repair(path: str, bounds: Any, out: Path, how: dict[str, Any], seed: int) -> None:
    """Assert that a changed byte of a stored chunk is found, and that a repair gives it back."""
    files = [file for file in (out / "0").rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr"))]
    if not files:
        return
    random_ = random.Random(seed)
    file = random_.choice(sorted(files))
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
    file.write_bytes(damaged)
    assert verify_export(out, sample=None, source=False, progress=False).damaged
    to_zarr(_cutout(path, bounds), out, repair=True, **how)
    assert file.read_bytes() == content
    assert verify_export(out, sample=None, progress=False).ok


def _cutout(path: str, bounds: Any) -> Any:
    """Return a cutout with ids as they are stored."""
    if _kind(path) == "image":
        return ImageryClient(image_source=path).image_cutout(bounds)
    client = ImageryClient(segmentation_source=path, imagery=False)
    return client.segmentation_cutout(bounds, convert_to_int64=False)


def _kind(path: str) -> Any:
    return open_volume(path).layer.kind


def _written(path: Path, made: dict[str, Any]) -> Any:
    """Write an array of which some chunks are not stored; return what zarr-python reads."""
    dtype = np.dtype(made["dtype"])
    array = zarr.create_array(
        path, shape=SHAPE, chunks=made["chunk"], dtype=dtype, fill_value=made["fill"], **made["options"]
    )
    most = np.iinfo(dtype).max if dtype.kind in "iu" else 1000
    values = np.random.default_rng(made["seed"]).integers(0, most, SHAPE, dtype=np.uint64, endpoint=True)
    array[:, :24] = values[:, :24].astype(dtype)
    return array[...]
