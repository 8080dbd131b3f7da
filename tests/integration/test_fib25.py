"""Exports of real electron microscopy: FIB-25 (FlyEM, Janelia Research Campus; Takemura et al. 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume import CloudVolume
from distributed import Client
from integration.stores import labels, placement, written
from numpy.typing import NDArray
from support.settings import Configure
from support.volumes import Fib25, downsample, fib25, write_volume

from imagery_dask import ImageryClient, to_zarr

NM = (10.0, 10.0, 10.0)
OFFSET = (-130, 2_000, 77)
#: No side lies on a chunk's edge, and one side lies beyond the volume.
BOUNDS = [[-101, 2_003, 80], [150, 2_230, 300]]
PART = np.s_[29:250, 3:230, 3:223]
CHUNKS = (64, 64, 64)


@pytest.fixture(scope="module")
def em() -> Fib25:
    return fib25()


@pytest.fixture(autouse=True)
def _several_blocks(configure: Configure) -> None:
    configure("export.block_bytes", 2**22)


def write(folder: Path, data: NDArray[Any], kind: str, encoding: str, **options: Any) -> str:
    return write_volume(
        folder, data, resolution=NM, voxel_offset=OFFSET, chunk_size=(64, 64, 64), encoding=encoding, layer_type=kind,
        factor=(2, 2, 2), scale_options={"png_level": 1}, **options,
    )  # fmt: skip


def padded(data: NDArray[Any]) -> NDArray[Any]:
    """Extend voxels inside the volume by zeros to the bounds."""
    return np.pad(data, [(0, b - a - n) for a, b, n in zip(*BOUNDS, data.shape, strict=True)])


@pytest.mark.parametrize(
    ("image_encoding", "label_encoding", "sharding", "depth"),
    [
        ("raw", "compressed_segmentation", False, 250),
        pytest.param("jpeg", "compresso", False, 120, marks=pytest.mark.long),
        pytest.param("png", "crackle", True, 120, marks=pytest.mark.long),
    ],
)
def test_every_voxel_is_exported(
    tmp_path: Path, em: Fib25, processes: Client, image_encoding: str, label_encoding: str, sharding: bool, depth: int
) -> None:
    grey, supervoxel = em.image[:, :, :depth], em.supervoxel[:, :, :depth]
    image = write(tmp_path / "image", grey, "image", image_encoding, sharding=sharding)
    ids = write(tmp_path / "ids", supervoxel, "segmentation", label_encoding, sharding=sharding)
    client = ImageryClient(image_source=image, segmentation_source=ids)
    out = tmp_path / "out.zarr"
    report = to_zarr(client.dataset(BOUNDS), out, chunks=CHUNKS, cluster=processes, progress=False)
    assert report.blocks > 8
    assert (report.ok, report.counts.missing) == (True, 0)
    stored = np.asarray(CloudVolume(image, progress=False)[:])[..., 0]
    if image_encoding == "jpeg":
        assert 0 < np.abs(stored.astype(int) - grey).mean() < 5
    else:
        np.testing.assert_array_equal(stored, grey)
    np.testing.assert_array_equal(written(out), padded(stored[PART]), strict=True)
    np.testing.assert_array_equal(labels(out), padded(supervoxel[PART]), strict=True)
    expected_placement = ([10.0, 10.0, 10.0], [-1005.0, 20035.0, 805.0])
    assert placement(out) == placement(out, "labels/segmentation") == expected_placement


@pytest.mark.long
def test_layers_of_different_mips_are_brought_to_one_grid(tmp_path: Path, em: Fib25, processes: Client) -> None:
    """Imagery of 20 nm is resampled to the grid of supervoxels of 10 nm."""
    image = write(tmp_path / "image", em.image, "image", "raw", mips=2, placeholder_mip=True)
    ids = write(tmp_path / "ids", em.supervoxel, "segmentation", "compressed_segmentation")
    client = ImageryClient(image_source=image, segmentation_source=ids, resolution=NM)
    out = tmp_path / "out.zarr"
    bounds = [[-130, 2_000, 77], [120, 2_250, 327]]
    assert to_zarr(client.dataset(bounds), out, chunks=CHUNKS, cluster=processes, progress=False).ok
    np.testing.assert_array_equal(labels(out), em.supervoxel, strict=True)
    coarse = downsample(em.image, 1, (2, 2, 2))
    # The odd offset 77 along z is 38 at 20 nm: voxel 77 lies in the first coarse voxel, 78 in the next.
    z = (np.arange(77, 327) // 2) - 38
    expected = coarse.repeat(2, axis=0).repeat(2, axis=1)[:, :, np.minimum(z, 124)]
    expected[:, :, z > 124] = 0
    np.testing.assert_array_equal(written(out), expected, strict=True)


@pytest.mark.long
def test_listed_bodies_are_exported_alone(tmp_path: Path, em: Fib25, processes: Client) -> None:
    bodies = em.body_of(em.supervoxel)
    body_ids, sizes = np.unique(bodies, return_counts=True)
    largest = body_ids[np.argsort(sizes)][::-1]
    keep = [int(body) for body in largest if body][:5]
    assert min(keep) > 2**53
    source = write(tmp_path / "bodies", bodies, "segmentation", "compresso")
    client = ImageryClient(segmentation_source=source)
    array = client.segmentation_cutout(BOUNDS, root_ids=[*keep, 2**60 - 1])
    out = tmp_path / "out.zarr"
    assert to_zarr(array, out, chunks=CHUNKS, cluster=processes, progress=False).ok
    expected = np.where(np.isin(bodies, np.array(keep, np.uint64)), bodies, 0)[PART]
    assert np.unique(expected).tolist() == sorted([0, *keep])
    np.testing.assert_array_equal(written(out), padded(expected).astype(np.int64), strict=True)
    masks = client.split_segmentation_cutout(BOUNDS, root_ids=keep)
    with processes.as_current():
        assert list(masks) == sorted(keep)
        volume = int(masks[keep[0]].sum().compute())
    assert volume == np.count_nonzero(expected == np.uint64(keep[0])) > 1000
