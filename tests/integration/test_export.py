"""Every kind of input is written voxel for voxel and at its position, on every kind of cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client
from integration.stores import labels, placement, stored, written
from numpy.typing import NDArray
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels
from support.settings import Configure
from support.volumes import coordinate_volume, downsample, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr

SHAPE = (96, 80, 40)
OFFSET = (-32, 48, 16)
BOUNDS = [[-20, 60, 20], [50, 110, 50]]
PART = np.s_[12:82, 12:62, 4:34]
NM = [8.0, 8.0, 40.0]
#: Centre of the first voxel of `BOUNDS`.
CENTRE = [-19.5 * 8, 60.5 * 8, 20.5 * 40]
CHUNKS = (32, 16, 8)

Placement = tuple[list[float], list[float]]


@dataclass(frozen=True)
class World:
    """Volumes on disk, their voxels at 8 nm, and clients of them."""

    image: NDArray[np.uint8]
    ids: NDArray[np.uint64]
    rgb: NDArray[np.uint8]
    client: ImageryClient
    colors: ImageryClient


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    image = coordinate_volume(SHAPE, OFFSET, np.uint8)
    ids = downsample(random_labels(SHAPE, n=60), 1)
    rgb = coordinate_volume((*SHAPE, 3), OFFSET, np.uint8)
    sources = {
        "image_source": write_volume(folder / "image", image, voxel_offset=OFFSET, encoding="png"),
        "segmentation_source": write_volume(
            folder / "ids", ids, voxel_offset=(-16, 24, 16), resolution=(16, 16, 40), layer_type="segmentation",
            encoding="compressed_segmentation",
        ),
    }  # fmt: skip
    colors = ImageryClient(image_source=write_volume(folder / "rgb", rgb, voxel_offset=OFFSET))
    return World(image, ids.repeat(2, axis=0).repeat(2, axis=1), rgb, ImageryClient(**sources), colors)


@pytest.fixture(autouse=True)
def _several_blocks(configure: Configure) -> None:
    configure("export.block_bytes", 2**15)


# ---------------------------------------------------------------------------------------------------------- inputs

Case = Callable[[World], tuple[Any, NDArray[Any], Placement]]
NO_PLACEMENT: Placement = ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])


def image_cutout(world: World) -> Any:
    return world.client.image_cutout(BOUNDS), world.image[PART], (NM, CENTRE)


def segmentation_cutout(world: World) -> Any:
    array = world.client.segmentation_cutout(BOUNDS, resolution=NM)
    return array, world.ids[PART].astype(np.int64), (NM, CENTRE)


def mask_of_one_object(world: World) -> Any:
    one = int(np.unique(world.ids[PART])[3])
    masks = world.client.split_segmentation_cutout(BOUNDS, resolution=NM)
    return masks[one], (world.ids[PART] == np.uint64(one)).astype(np.uint8), (NM, CENTRE)


def one_plane(world: World) -> Any:
    array = world.client.image_cutout([[-20, 60, 20], [50, 110, 21]])
    assert array.ndim == 2
    return array, world.image[12:82, 12:62, 4:5], (NM, CENTRE)


def several_channels(world: World) -> Any:
    return world.colors.image_cutout(BOUNDS), world.rgb[PART], ([*NM, 1.0], [*CENTRE, 0.0])


def region_of_a_volume(world: World) -> Any:
    return world.client.image_volume()[PART], world.image[PART], (NM, CENTRE)


def whole_volume_of_ids(world: World) -> Any:
    volume = world.client.segmentation_volume()
    return volume, downsample(world.ids, 1), ([16.0, 16.0, 40.0], [-15.5 * 16, 24.5 * 16, 16.5 * 40])


def plane_of_a_volume(world: World) -> Any:
    return world.client.image_volume()[12:82, 12:62, 4], world.image[12:82, 12:62, 4:5], (NM, CENTRE)


def strided_volume(world: World) -> Any:
    array = world.client.image_volume()[::2, 1::3, 4:]
    return array, world.image[::2, 1::3, 4:], ([16.0, 24.0, 40.0], [-31.5 * 8, 49.5 * 8, 20.5 * 40])


def coarsened_volume(world: World) -> Any:
    array = world.client.image_volume().coarsen(x=2, y=2).mean()
    means = world.image.reshape(48, 2, 40, 2, 40).mean(axis=(1, 3))
    return array, means, ([16.0, 16.0, 40.0], [-31 * 8, 49 * 8, 16.5 * 40])


def transposed_volume(world: World) -> Any:
    array = world.client.image_volume()[PART].transpose("z", "y", "x")
    assert array.dims == ("z", "y", "x")
    return array, world.image[PART], (NM, CENTRE)


def computed_from_a_cutout(world: World) -> Any:
    array = world.client.image_cutout(BOUNDS).map_blocks(lambda block: 255 - block, dtype=np.uint8)
    return array, 255 - world.image[PART], NO_PLACEMENT


def slice_of_a_cutout(world: World) -> Any:
    return world.client.image_cutout(BOUNDS)[3:60:2, ::-1], world.image[PART][3:60:2, ::-1], NO_PLACEMENT


def plain_dask_array(world: World) -> Any:
    return da.from_array(world.image, chunks=(37, 80, 11)), world.image, NO_PLACEMENT


def numpy_array(world: World) -> Any:
    return world.ids, world.ids, NO_PLACEMENT


def numpy_plane(world: World) -> Any:
    return world.image[:, :, 0], world.image[:, :, :1], NO_PLACEMENT


CASES = [
    image_cutout, segmentation_cutout, mask_of_one_object, one_plane, several_channels, region_of_a_volume,
    whole_volume_of_ids, plane_of_a_volume, strided_volume, coarsened_volume, transposed_volume,
    computed_from_a_cutout, slice_of_a_cutout, plain_dask_array, numpy_array, numpy_plane,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_input_is_written_at_its_position(tmp_path: Path, world: World, threads: Client, case: Case) -> None:
    data, expected, expected_placement = case(world)
    out = tmp_path / "out.zarr"
    report = to_zarr(data, out, chunks=CHUNKS, cluster=threads, progress=False)
    np.testing.assert_array_equal(written(out), expected, strict=True)
    assert placement(out) == expected_placement
    assert (report.ok, report.done, report.voxels, report.written_bytes) == (
        True, report.blocks, expected.size, expected.nbytes,
    )  # fmt: skip
    if expected.shape[2] > 1:
        assert report.blocks > 1
    array = stored(out)
    chunk = tuple(min(c, n) for c, n in zip(CHUNKS, expected.shape[:3], strict=True))
    assert array.chunks == (*expected.shape[3:], *chunk[::-1])
    assert array.metadata.dimension_names == (*("c",) * (expected.ndim - 3), "z", "y", "x")
    assert array.metadata.zarr_format == 3


@pytest.mark.smoke
def test_a_dataset_is_an_image_with_labels(tmp_path: Path, world: World) -> None:
    """Without a cluster, the export runs on threads of this process."""
    out = tmp_path / "out.zarr"
    report = to_zarr(world.client.dataset(BOUNDS), out, chunks=CHUNKS, progress=False)
    assert report.ok
    np.testing.assert_array_equal(written(out), world.image[PART], strict=True)
    np.testing.assert_array_equal(labels(out), world.ids[PART], strict=True)
    assert world.ids[PART].max() > 2**53
    group = zarr.open_group(out, mode="r")
    image = Image.from_zarr(group)
    assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["z", "y", "x"]
    assert {axis.unit for axis in image.ome_attributes.multiscales[0].axes} == {"nanometer"}
    assert Labels.from_zarr(group["labels"]).ome_attributes.labels == ["segmentation"]
    label = ImageLabel.from_zarr(group["labels/segmentation"]).ome_attributes
    assert label.image_label is not None
    assert label.image_label.source is not None
    assert label.image_label.source.image == "../../"
    assert placement(out) == placement(out, "labels/segmentation") == (NM, CENTRE)


def test_a_dataset_of_labels_alone_is_written(tmp_path: Path, world: World, threads: Client) -> None:
    client = ImageryClient(segmentation_source=world.client.segmentation_source)
    out = tmp_path / "out.zarr"
    report = to_zarr(client.dataset([[-10, 30, 20], [25, 55, 50]]), out, chunks=CHUNKS, cluster=threads, progress=False)
    assert report.ok
    np.testing.assert_array_equal(written(out), downsample(world.ids, 1)[6:41, 6:31, 4:34], strict=True)
    group = zarr.open_group(out, mode="r")
    assert ImageLabel.from_zarr(group)
    assert "labels" not in group


@pytest.mark.parametrize("kind", ["local", "current", "client", "cluster"])
@pytest.mark.long
def test_every_kind_of_cluster_writes_the_same_voxels(
    tmp_path: Path, world: World, processes: Client, kind: str
) -> None:
    data = world.client.dataset(BOUNDS)
    out = tmp_path / "out.zarr"
    options: dict[str, Any] = {"chunks": CHUNKS, "progress": False}
    if kind == "current":
        before = transitions(processes)
        with processes.as_current():
            report = to_zarr(data, out, **options)
        assert transitions(processes) > before + report.blocks
    else:
        clusters = {"local": "local", "client": processes, "cluster": processes.cluster}
        report = to_zarr(data, out, cluster=clusters[kind], **options)
    assert report.ok
    np.testing.assert_array_equal(written(out), world.image[PART])
    np.testing.assert_array_equal(labels(out), world.ids[PART])
    assert processes.status == "running"


def transitions(client: Client) -> int:
    """Return the number of task transitions of a cluster since its start."""
    count: int = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
    return count


@pytest.mark.parametrize("nm", [(4.3, 4.3, 40.0), (9.7, 9.7, 33.3), (0.1, 0.7, 1e5)], ids=str)
@pytest.mark.parametrize("offset", [(0, 0, 0), (-7, 100_003, 5)], ids=["origin", "offset"])
def test_voxel_centres_are_exact_for_odd_resolutions(tmp_path: Path, threads: Client, nm: Any, offset: Any) -> None:
    data = coordinate_volume((40, 33, 20), offset, np.uint8)
    path = write_volume(tmp_path / "em", data, resolution=nm, voxel_offset=offset)
    client = ImageryClient(image_source=path)
    start = [o + 3 for o in offset]
    for index, array in enumerate(
        (client.image_cutout([start, [a + 10 for a in start]], mip=0), client.image_volume()[3:13, 3:13, 3:13])
    ):
        out = tmp_path / f"{index}.zarr"
        to_zarr(array, out, cluster=threads, progress=False)
        np.testing.assert_array_equal(written(out), data[3:13, 3:13, 3:13])
        Image.from_zarr(zarr.open_group(out, mode="r"))
        scale, translation = placement(out)
        assert scale == list(nm)
        np.testing.assert_allclose(translation, [(a + 0.5) * r for a, r in zip(start, nm, strict=True)], rtol=1e-12)


def test_resolution_and_translation_can_be_given(tmp_path: Path, world: World, threads: Client) -> None:
    options: dict[str, Any] = {"resolution_nm": (4, 5.5, 30), "translation_nm": (1, -2, 3.5)}
    to_zarr(world.image, tmp_path / "out.zarr", cluster=threads, progress=False, **options)
    assert placement(tmp_path / "out.zarr") == ([4.0, 5.5, 30.0], [1.0, -2.0, 3.5])


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "uint32", "int64", "uint64", "float32", "float64"])
def test_every_dtype_is_exact(tmp_path: Path, threads: Client, dtype: str) -> None:
    data = coordinate_volume((50, 40, 30)).astype(dtype)
    to_zarr(data, f"file://{tmp_path}/out.zarr", chunks=CHUNKS, cluster=threads, progress=False)
    stored_as = np.uint8 if dtype == "bool" else dtype
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), data.astype(stored_as), strict=True)


def test_voxels_of_another_byte_order_are_written(tmp_path: Path) -> None:
    voxels = np.arange(512, dtype=">u2").reshape(8, 8, 8)
    to_zarr(voxels, tmp_path / "o.zarr", levels=2, progress=False)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(tmp_path / "o.zarr", path="0", mode="r")[...]).T, voxels)
