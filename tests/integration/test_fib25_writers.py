"""Every writer on real electron microscopy: FIB-25 (FlyEM, Janelia; Takemura et al. 2015)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from distributed import Client
from support.volumes import Fib25, fib25, write_volume

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.kernels import downsample

NM = (10.0, 10.0, 10.0)
OFFSET = (-128, 2_000, 76)
SIZE = (128, 120, 72)
CHUNKS = (32, 32, 32)
BOUNDS = [list(OFFSET), [first + size for first, size in zip(OFFSET, SIZE, strict=True)]]
PART = tuple(slice(0, size) for size in SIZE)


@pytest.fixture(scope="module")
def em() -> Fib25:
    return fib25()


@pytest.fixture(scope="module")
def data(em: Fib25, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fib25")
    geometry: dict[str, Any] = {"resolution": NM, "voxel_offset": OFFSET, "chunk_size": (64, 64, 64)}
    part = np.s_[:160, :160, :100]
    client = ImageryClient(
        image_source=write_volume(folder / "em", em.image[part], **geometry),
        segmentation_source=write_volume(
            folder / "ids",
            em.supervoxel[part],
            layer_type="segmentation",
            encoding="compressed_segmentation",
            **geometry,
        ),
    )
    return client.dataset(BOUNDS)


@pytest.mark.parametrize(
    "options",
    [
        {"ome_version": "0.5", "shards": (64, 64, 64)},
        {"ome_version": "0.5", "shards": (64, 64, 32), "codec": "zstd", "block_mib": 0.3},
        {"ome_version": "0.4", "codec": "gzip"},
    ],
    ids=str,
)
def test_ome_zarr_is_exact(tmp_path: Path, em: Fib25, data: Any, processes: Client, options: Any) -> None:
    assert to_zarr(
        data, tmp_path / "out", chunks=CHUNKS, levels=3, cluster=processes, progress=False, **options
    ).ok  # fmt: skip
    for group, voxels, labels in (("", em.image, False), ("labels/segmentation/", em.supervoxel, True)):
        above = voxels[PART]
        for level in range(3):
            above = downsample(above, (2, 2, 2), labels) if level else above
            stored: Any = zarr.open_array(tmp_path / "out", path=f"{group}{level}", mode="r")
            np.testing.assert_array_equal(stored[...].T, above, strict=True)


@pytest.mark.parametrize(("image", "ids"), [("raw", "compressed_segmentation"), ("png", "crackle")])
def test_precomputed_is_exact(tmp_path: Path, em: Fib25, data: Any, processes: Client, image: str, ids: str) -> None:
    assert to_precomputed(
        data, tmp_path / "out", chunks=CHUNKS, levels=3, encoding={"image": image, "segmentation": ids},
        cluster=processes, progress=False,
    ).ok  # fmt: skip
    for name, voxels, labels in (("image", em.image, False), ("segmentation", em.supervoxel, True)):
        above = voxels[PART]
        for mip in range(3):
            above = downsample(above, (2, 2, 2), labels) if mip else above
            volume = CloudVolume(f"file://{tmp_path}/out/{name}", mip=mip, progress=False)
            np.testing.assert_array_equal(np.asarray(volume[:])[..., 0], above, strict=True)


def test_png_slices_are_exact(tmp_path: Path, em: Fib25, data: Any, processes: Client) -> None:
    assert to_png(data.image[:, :, :9], tmp_path / "em", cluster=processes, progress=False).ok
    for z in range(9):
        page = imageio.imread(tmp_path / f"em_slice_{z}_imagery.png")
        np.testing.assert_array_equal(page, em.image[PART][:, :, z].T, strict=True)


def test_png_labels_are_exact_through_their_table(tmp_path: Path, em: Fib25, data: Any, processes: Client) -> None:
    """The table gives the id of each pixel value."""
    to_png(data.segmentation[:, :, :9], tmp_path / "ids", what="labels", cluster=processes, progress=False)
    with (tmp_path / "ids_labels.csv").open() as file:
        ids = {int(row["value"]): int(row["id"]) for row in csv.DictReader(file)}
    assert max(ids.values()) > 2**53
    table = np.zeros(max(ids) + 1, np.uint64)
    for value, number in ids.items():
        table[value] = number
    for z in range(9):
        page = imageio.imread(tmp_path / f"ids_slice_{z}_labels.png")
        np.testing.assert_array_equal(table[page], em.supervoxel[PART][:, :, z].T, strict=True)
