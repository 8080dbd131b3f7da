"""Sharded exports are read by CloudVolume, tensorstore and ImageryClient, for all shapes, chunks and shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import numpy as np
import pytest
from cloudvolume import CloudVolume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, kernels, to_precomputed, verify_export
from imagery_dask.config import config
from imagery_dask.export.multiscale import levels as levels_module
from imagery_dask.export.precomputed import to_precomputed as module
from imagery_dask.geometry.pyramid import pyramid
from imagery_dask.sources import handle

ts = pytest.importorskip("tensorstore", reason="needs tensorstore")

NM = (8, 8, 40)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 20))
chunks = st.tuples(*[st.sampled_from([4, 7, 8, 16])] * 3)
offsets = st.tuples(*[st.integers(-4, 4).map(lambda n: 4 * n)] * 3)
shardings = st.fixed_dictionaries(
    {
        "preshift_bits": st.integers(0, 4),
        "minishard_bits": st.integers(0, 3),
        "shard_bits": st.integers(15, 30),
        "minishard_index_encoding": st.sampled_from(["raw", "gzip"]),
        "data_encoding": st.sampled_from(["raw", "gzip"]),
    }
)


def by_tensorstore(folder: Path, mip: int) -> Any:
    store = {"driver": "file", "path": f"{folder}/"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": store, "scale_index": mip}
    volume = ts.open(spec, read=True).result()
    return volume.read().result()[..., 0], tuple(volume.domain.origin[:3])


def by_cloudvolume(folder: Path, mip: int) -> Any:
    volume = CloudVolume(f"file://{folder}", mip=mip, progress=False)
    return np.asarray(volume[:])[..., 0], tuple(volume.voxel_offset)


def by_client(folder: Path, mip: int) -> Any:
    handle._volumes.clear()
    volume = ImageryClient(segmentation_source=f"precomputed://file://{folder}").segmentation_volume(mip=mip)
    first = [float(volume[axis][0]) / size for axis, size in zip("xyz", volume.attrs["resolution_nm"], strict=True)]
    return volume.transpose("x", "y", "z").values.astype(np.uint64), tuple(round(n - 0.5) for n in first)


@pytest.mark.long
@given(
    shapes, chunks, offsets, st.one_of(st.just("auto"), shardings), st.integers(1, 3), st.booleans(),
    st.sampled_from([4000, 10**6]), st.sampled_from(["raw", "compressed_segmentation"]),
)  # fmt: skip
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_are_read_by_other_programs(
    tmp_path: Path, shape: Any, chunk: Any, offset: Any, sharding: Any, levels: int, as_cutout: bool, block: int,
    encoding: str,
) -> None:  # fmt: skip
    whole = coordinate_volume(shape, offset)
    data: Any = whole
    options: dict[str, Any] = {"resolution_nm": NM}
    if as_cutout:
        source = write_volume(
            tmp_path / f"source-{uuid4().hex}", whole, voxel_offset=offset, layer_type="segmentation",
            chunk_size=(16, 8, 8), compress=False,
        )  # fmt: skip
        data = ImageryClient(segmentation_source=source).segmentation_volume()
    else:
        options["translation_nm"] = [(first + 0.5) * size for first, size in zip(offset, NM, strict=True)]
    out = tmp_path / uuid4().hex
    small = {"CHUNKS_UNSHARDED": 0, "LARGEST_SHARD": 2**15, "LARGEST_HELD_SHARD": 2**15}
    with (
        mock.patch.multiple(module, **small),
        mock.patch.object(levels_module, "PART_BYTES", min(block, 2**15)),
        config.set({"export.small_fused_bytes": block}),
    ):
        report = to_precomputed(
            data, out, encoding=encoding, chunks=chunk, sharding=sharding, levels=levels, block_mib=block / 2**20,
            workers=2, progress=False, **options,
        )  # fmt: skip
        assert report.ok
        assert verify_export(out, sample=None, progress=False).ok
    for mip, level in enumerate(pyramid(shape, NM, (0, 0, 0), levels)):
        whole = kernels.downsample(np.asfortranarray(whole), level.step, True)
        names = {path.suffix for path in (out / "_".join(f"{n:.0f}" for n in level.resolution_nm or ())).iterdir()}
        assert names == {".shard"}
        factor = np.round(np.divide(level.resolution_nm, NM)).astype(int)
        for read in (by_tensorstore, by_cloudvolume, by_client):
            voxels, origin = read(out, mip)
            np.testing.assert_array_equal(voxels, whole)
            assert origin == tuple(np.floor_divide(offset, factor)), read.__name__
