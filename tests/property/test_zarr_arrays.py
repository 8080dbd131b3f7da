"""Boxes of any array that zarr-python writes are those that it reads, at the offset, size and axes of its metadata."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources import open_volume

DTYPES = ["bool", "uint8", "int8", "uint16", "int32", "uint64", "int64", "float32", "float64"]
AXES = [*("".join(axes) for axes in itertools.permutations("xyz")), "yx", "czyx", "zyxc", "tczyx", "tzyx"]


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    """Draw axes, a shape, chunks, and how they are stored."""
    axes = draw(st.sampled_from(AXES))
    limits = {"t": (1, 1), "c": (1, 3)}
    shape = tuple(draw(st.integers(*limits.get(axis, (1, 40)))) for axis in axes)
    chunk = tuple(draw(st.integers(1, max(1, size + 3))) for size in shape)
    version = draw(st.sampled_from([2, 3]))
    options: dict[str, Any] = {"zarr_format": version, "chunks": chunk}
    if version == 2:
        options["order"] = draw(st.sampled_from("CF"))
        options["chunk_key_encoding"] = {"name": "v2", "separator": draw(st.sampled_from("./"))}
    else:
        compressors = st.sampled_from([BloscCodec(), ZstdCodec(), GzipCodec(), Crc32cCodec()])
        options["compressors"] = draw(st.lists(compressors, max_size=2, unique_by=type)) or None
        options["serializer"] = BytesCodec(endian=draw(st.sampled_from(["little", "big"])))
        if draw(st.booleans()):
            options["filters"] = [TransposeCodec(order=tuple(draw(st.permutations(range(len(axes))))))]
        if draw(st.booleans()):
            shard = tuple(size * draw(st.integers(1, 3)) for size in chunk)
            options["shards"] = {"shape": shard, "index_location": draw(st.sampled_from(["start", "end"]))}
    return {
        "axes": axes, "shape": shape, "dtype": draw(st.sampled_from(DTYPES)), "options": options,
        "fill": draw(st.sampled_from([0, 1])), "seed": draw(st.integers(0, 2**32 - 1)),
        "start": draw(st.tuples(*[st.integers(-(10**6), 10**6)] * 3)),
        "size": draw(st.tuples(*[st.sampled_from([1.0, 4.3, 33.3333, 40.0])] * 3)),
    }  # fmt: skip


@given(made=arrays(), data=st.data())
@settings(max_examples=120, deadline=None)
def test_boxes_of_arrays(made: dict[str, Any], data: Any) -> None:
    axes, shape = made["axes"], made["shape"]
    with tempfile.TemporaryDirectory() as folder:
        voxels = _written(Path(folder), made)
        start, size = (",".join(map(repr, made[key])) for key in ("start", "size"))
        volume = open_volume(f"zarr://{folder}/a#resolution={size}&voxel_offset={start}&axes={axes}")
        grid = volume.layer.mips[0].grid
        sizes = Vec3.of(shape[axes.index(axis)] if axis in axes else 1 for axis in "xyz")
        assert (grid.start, grid.shape, grid.resolution_nm) == (made["start"], sizes, made["size"])
        expected = _as_xyzc(voxels, axes)
        low = Vec3.of(data.draw(st.integers(0, size - 1)) for size in sizes)
        high = Vec3.of(data.draw(st.integers(at + 1, size)) for at, size in zip(low, sizes, strict=True))
        box = VoxelGrid(low + grid.start, high - low, grid.resolution_nm)
        found, counts = volume.read(0, box, "error", data.draw(st.sampled_from("CF")))
        np.testing.assert_array_equal(found, expected[tuple(map(slice, low, high))])
        assert found.dtype == made["dtype"]
        assert counts.missing == 0


def _written(folder: Path, made: dict[str, Any]) -> Any:
    """Write an array of which some chunks are not stored; return what zarr-python reads."""
    random = np.random.default_rng(made["seed"])
    array = zarr.create_array(
        folder / "a", shape=made["shape"], dtype=made["dtype"], fill_value=made["fill"], **made["options"]
    )
    dtype = np.dtype(made["dtype"])
    most = 2 if dtype.kind == "b" else np.iinfo(dtype).max if dtype.kind in "iu" else 1000
    first = tuple(slice(0, max(1, size // 2)) for size in made["shape"])
    wide = np.uint64 if most > 2**62 else np.int64
    array[first] = random.integers(0, most, array[first].shape, dtype=wide).astype(dtype)
    return array[...]


def _as_xyzc(voxels: Any, axes: str) -> Any:
    if "t" in axes:
        voxels, axes = voxels[0], axes[1:]
    for axis in "xyzc":
        if axis not in axes:
            voxels, axes = voxels[..., np.newaxis], axes + axis
    return voxels.transpose([axes.index(axis) for axis in "xyzc"])
