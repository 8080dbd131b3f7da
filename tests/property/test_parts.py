"""Blocks of cutouts that are read and written part by part equal the whole, for all chunks of source and output."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from imagery_dask import ImageryClient, kernels, to_precomputed, to_zarr, verify_export
from imagery_dask.arrays.origins import source_of
from imagery_dask.config import config
from imagery_dask.export.core.block_reads import ReadCutout
from imagery_dask.export.multiscale import levels as levels_module
from imagery_dask.export.registry import read_plan
from imagery_dask.geometry.grid import region_between, start_of, stop_of
from imagery_dask.geometry.pyramid import pyramid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources import collect_counts

SHAPE = (40, 36, 24)
CHUNK = (16, 8, 8)
START = (7, -20, -3)
OWN = (8, 8, 40)
VOXELS: dict[str, Any] = {
    "image": np.random.default_rng(5).integers(0, 255, SHAPE, dtype=np.uint8),
    "segmentation": np.random.default_rng(6).choice(2**60 + np.arange(9, dtype=np.uint64), SHAPE),
}
VOXELS["segmentation"][20:] = 0
ENCODINGS = {"image": "raw", "segmentation": "compressed_segmentation"}

corners = st.tuples(*(st.integers(-3, size) for size in SHAPE))
sizes = st.tuples(*(st.integers(1, size) for size in SHAPE))
kinds = st.sampled_from(["image", "segmentation"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for kind, voxels in VOXELS.items():
        info = CloudVolume.create_new_info(
            1, kind, str(voxels.dtype), ENCODINGS[kind], OWN, START, SHAPE, chunk_size=CHUNK
        )
        volume = CloudVolume(f"file://{folder}/{kind}", info=info, progress=False, compress=False)
        volume.commit_info()
        volume[volume.bounds.to_slices()] = np.asfortranarray(voxels)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> ImageryClient:
    return ImageryClient(
        image_source=f"precomputed://file://{folder}/image",
        segmentation_source=f"precomputed://file://{folder}/segmentation", outside="fill",
    )  # fmt: skip


def cut(client: ImageryClient, kind: str, corner: Any, size: Any) -> Any:
    lower = np.add(START, corner)
    call = client.image_cutout if kind == "image" else client.segmentation_cutout
    return call([lower.tolist(), (lower + size).tolist()])


def expected(kind: str, corner: Any, size: Any) -> Any:
    """Return the voxels of a box; those outside of the volume are 0."""
    outer = np.zeros(np.add(SHAPE, (100, 100, 100)), VOXELS[kind].dtype)
    outer[tuple(slice(50, 50 + n) for n in SHAPE)] = VOXELS[kind]
    return outer[tuple(slice(50 + first, 50 + first + n) for first, n in zip(corner, size, strict=True))]


def assume_inside(corner: Any, size: Any) -> None:
    """Drop boxes that are outside of the volume, which are refused."""
    assume(all(first + n > 0 and first < whole for first, n, whole in zip(corner, size, SHAPE, strict=True)))


def cells_crossed(corner: Any, size: Any) -> int:
    """Return the number of storage chunks that a box crosses."""
    spans = (
        range(max(0, first) // chunk, -(-min(whole, first + n) // chunk))
        for first, n, chunk, whole in zip(corner, size, CHUNK, SHAPE, strict=True)
    )
    return math.prod(map(len, spans))


@given(kinds, corners, sizes, st.tuples(*[st.integers(1, 40)] * 3))
@settings(max_examples=80, deadline=None)
def test_parts_equal_the_whole_and_read_each_chunk_once(
    client: ImageryClient, kind: str, corner: Any, size: Any, shape: Any
) -> None:
    assume_inside(corner, size)
    whole = expected(kind, corner, size)
    source = source_of(cut(client, kind, corner, size))
    assert source is not None
    assert source.reads_parts
    out = np.full(size, 7, whole.dtype)
    with collect_counts() as counts:
        for part, voxels in ReadCutout(source, region_between((0, 0, 0), size)).parts(Vec3.of(shape)):
            assert voxels.shape == stop_of(part) - start_of(part)
            out[part] = voxels
    np.testing.assert_array_equal(out, whole)
    assert (counts.chunks, counts.missing) == (cells_crossed(corner, size), 0)


@given(corners, sizes, st.sampled_from([CHUNK, (8, 8, 8), (13, 5, 24)]), st.integers(0, 44))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_missing_chunks_are_counted_once(
    client: ImageryClient, folder: Path, corner: Any, size: Any, shape: Any, number: int
) -> None:
    assume_inside(corner, size)
    files = sorted(file for file in folder.glob("image/8_8_40/*"))
    assert len(files) == 45
    gone = files[number]
    source = source_of(cut(client, "image", corner, size))
    assert source is not None
    box = [list(map(int, part.rsplit("-", 1))) if part[0] != "-" else _negative(part) for part in gone.name.split("_")]
    low = [max(0, a - o - c) for (a, _), o, c in zip(box, START, corner, strict=True)]
    high = [min(n, b - o - c) for (_, b), o, c, n in zip(box, START, corner, size, strict=True)]
    is_crossed = all(a < b for a, b in zip(low, high, strict=True))
    whole = expected("image", corner, size)
    if is_crossed:
        whole[tuple(map(slice, low, high))] = 0
    out = np.full(size, 7, whole.dtype)
    content = gone.read_bytes()
    gone.unlink()
    try:
        with collect_counts() as counts:
            for part, voxels in ReadCutout(source, region_between((0, 0, 0), size)).parts(Vec3.of(shape)):
                out[part] = voxels
    finally:
        gone.write_bytes(content)
    np.testing.assert_array_equal(out, whole)
    assert counts.missing == is_crossed
    assert counts.missing_keys == ([f"8_8_40/{gone.name}"] if is_crossed else [])


def _negative(part: str) -> list[int]:
    first, _, stop = part[1:].partition("-")
    return [-int(first), int(stop)]


@given(
    kinds, corners, sizes,
    st.sampled_from([CHUNK, (8, 8, 8), (32, 16, 8), (5, 7, 3), (10, 8, 6)]),
    st.sampled_from([None, (2, 1, 2), (2, 2, 2)]),
    st.integers(1, 3),
    st.sampled_from([1, 4000, 30_000]),
    st.sampled_from([1, 2**18]),
    st.sampled_from(["zarr", "precomputed"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exports_equal_the_whole(
    tmp_path: Path, client: ImageryClient, kind: str, corner: Any, size: Any, chunks: Any, shards: Any, levels: int,
    block: int, part: int, form: str,
) -> None:  # fmt: skip
    assume_inside(corner, size)
    if form == "precomputed" and any(np.add(START, corner) % 2 ** (levels - 1)):
        levels = 1  # coarser mips would not begin at whole voxels
    out = tmp_path / uuid4().hex
    data = cut(client, kind, corner, size)
    options: dict[str, Any] = {"chunks": chunks, "levels": levels, "block_mib": block / 2**20, "progress": False}
    with mock.patch.object(levels_module, "PART_BYTES", part), config.set({"export.small_fused_bytes": block}):
        if form == "zarr":
            own = None if shards is None else tuple(c * n for c, n in zip(chunks, shards, strict=True))
            to_zarr(data, out, shards=own, resolution_nm=OWN, workers=2, **options)
        else:
            to_precomputed(data, out, resolution_nm=OWN, workers=2, **options)
        report = verify_export(out, sample=None, progress=False)
    assert report.ok, report
    whole = expected(kind, corner, size)
    for index, level in enumerate(pyramid(tuple(size), OWN, (0, 0, 0), levels)):
        whole = kernels.downsample(np.asfortranarray(whole), level.step, kind == "segmentation")
        if form == "zarr":
            stored = np.asarray(zarr.open_array(out, path=str(index), mode="r")[...]).T
        else:
            stored = np.asarray(CloudVolume(f"file://{out}", mip=index, progress=False)[:])[..., 0]
        np.testing.assert_array_equal(stored.astype(whole.dtype), whole)


def test_plans_say_whether_blocks_are_written_in_parts(client: ImageryClient, tmp_path: Path) -> None:
    data = cut(client, "image", (0, 0, 0), SHAPE)
    for name, array in {"cutout": data, "computed": data + 1}.items():
        to_zarr(array, tmp_path / name, chunks=(8, 8, 8), resolution_nm=OWN, progress=False)
    (cutout,), (computed,) = (
        [part.blocks for stage in read_plan(tmp_path / name).stages for part in stage]
        for name in ("cutout", "computed")
    )  # fmt: skip
    assert cutout.part is not None
    assert not any(Vec3.of(cutout.part) % (8, 8, 8))
    assert computed.part is None
