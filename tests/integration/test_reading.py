"""Volumes in every storage format are read as by CloudVolume, from disk and over HTTP."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from cloudvolume import CloudVolume
from distributed import Client
from numpy.typing import NDArray
from support.http_server import FileServer
from support.volumes import Xyz, coordinate_volume, downsample, random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient
from imagery_dask.errors import SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.sources import SourceHandle, open_volume

#: Not a multiple of the chunks (32, 32, 16), so the last ones are truncated; the offset is not near the origin.
SHAPE: Xyz = (75, 50, 41)
OFFSET: Xyz = (-37, 101, 13)
PAD = 20
LABELS = ("compressed_segmentation", "compresso", "crackle")
LOSSY = ("jpeg", "jxl")
DTYPES = {
    "raw": ("uint8", "uint16", "uint32", "uint64", "float32"),
    "jpeg": ("uint8",),
    "png": ("uint8",),
    "jxl": ("uint8",),
    "compressed_segmentation": ("uint32", "uint64"),
    "compresso": ("uint8", "uint16", "uint32", "uint64"),
    "crackle": ("uint8", "uint16", "uint32", "uint64"),
}


@dataclass(frozen=True)
class Stored:
    """One way to store a volume."""

    encoding: str
    dtype: str
    sharded: bool
    compress: str | bool

    def __str__(self) -> str:
        return f"{self.encoding}-{self.dtype}-{'sharded-' if self.sharded else ''}{self.compress or 'plain'}"

    @property
    def layer_type(self) -> str:
        return "segmentation" if self.encoding in LABELS else "image"

    def data(self) -> NDArray[Any]:
        """Return the voxels to store; smooth for lossy codecs, whose effect on noise would hide misplaced voxels."""
        if self.encoding in LOSSY:
            return smooth_image(SHAPE, seed=4)
        if self.encoding in LABELS:
            labels = random_labels(SHAPE, seed=4, n=200, above_2_63=True)
            # For small dtypes, keep the low bits, in which the ids differ.
            return labels if self.dtype == "uint64" else (labels ^ (labels >> np.uint64(8))).astype(self.dtype)
        return coordinate_volume(SHAPE, OFFSET, self.dtype)


def storage_formats() -> Iterator[Stored]:
    """Yield the combinations of encoding, dtype, sharding and compression to test."""
    for encoding, dtypes in DTYPES.items():
        for dtype, sharded in itertools.product(dtypes, (False, True)):
            # Compression does not depend on the dtype: test all kinds with one dtype.
            every = [False, "gzip"] if sharded else [False, "gzip", "br"]
            yield from (Stored(encoding, dtype, sharded, c) for c in (every if dtype == dtypes[-1] else ["gzip"]))


def boxes(seed: int, count: int = 4) -> Iterator[tuple[Xyz, Xyz]]:
    """Yield random boxes, most of them across chunks and many across the volume's border; at last the whole volume."""
    rng = np.random.default_rng(seed)
    lower, upper = np.array(OFFSET) - PAD, np.array(OFFSET) + SHAPE + PAD
    for _ in range(count):
        start = rng.integers(lower, upper - 2)
        stop = rng.integers(start + 2, upper + 1)
        yield tuple(start.tolist()), tuple(stop.tolist())
    yield tuple(lower.tolist()), tuple(upper.tolist())


def padded(data: NDArray[Any]) -> NDArray[Any]:
    return np.pad(data, [(PAD, PAD)] * 3 + [(0, 0)] * (data.ndim - 3))


def expected(whole: NDArray[Any], box: tuple[Xyz, Xyz]) -> NDArray[Any]:
    """Cut a box out of `padded` data."""
    spans = [slice(a - o + PAD, b - o + PAD) for a, b, o in zip(*box, OFFSET, strict=True)]
    return whole[tuple(spans)]


def cutout(client: ImageryClient, box: tuple[Xyz, Xyz]) -> Any:
    if client.image_source is not None:
        return client.image_cutout(box)
    return client.segmentation_cutout(box, convert_to_int64=False)


def open_client(source: str, layer_type: str) -> ImageryClient:
    return ImageryClient(**{f"{layer_type}_source": source}, outside="fill")


@pytest.mark.parametrize("way", list(storage_formats()), ids=str)
def test_cutouts_equal_cloudvolume(tmp_path: Path, file_server: FileServer, way: Stored) -> None:
    data = way.data()
    path = write_volume(
        tmp_path / "layer", data, voxel_offset=OFFSET, encoding=way.encoding, layer_type=way.layer_type,
        compress=way.compress, sharding=way.sharded,
    )  # fmt: skip
    theirs = np.asarray(CloudVolume(path, progress=False)[:])[..., 0]
    if way.encoding not in LOSSY:
        np.testing.assert_array_equal(theirs, data)
    whole = padded(theirs)
    # HTTP does not depend on the dtype: test one dtype of each encoding.
    remote = [f"precomputed://{file_server.url}/layer"] if way.dtype == DTYPES[way.encoding][-1] else []
    for source in (path, *remote):
        client = open_client(source, way.layer_type)
        for box in boxes(seed=len(str(way))):
            array = cutout(client, box)
            assert array.dtype == data.dtype
            np.testing.assert_array_equal(array.compute(scheduler="threads"), expected(whole, box))


@pytest.mark.smoke
def test_a_plain_folder_is_a_source(tmp_path: Path) -> None:
    data = random_labels(SHAPE, n=50)
    write_volume(tmp_path / "ids", data, voxel_offset=OFFSET, encoding="compressed_segmentation",
                 layer_type="segmentation")  # fmt: skip
    client = ImageryClient(segmentation_source=str(tmp_path / "ids"))
    box = next(boxes(seed=1))
    np.testing.assert_array_equal(np.asarray(cutout(client, box)), expected(padded(data), box), strict=True)


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
@pytest.mark.parametrize(("encoding", "dtype"), [("raw", "uint16"), ("raw", "float32"), ("png", "uint8")])
def test_several_channels_are_exact(tmp_path: Path, encoding: str, dtype: str, sharded: bool) -> None:
    """Compare with the written data, since CloudVolume 12.15 confuses the channels of PNG chunks."""
    data = coordinate_volume((*SHAPE, 3), OFFSET, dtype)
    path = write_volume(tmp_path / "rgb", data, voxel_offset=OFFSET, encoding=encoding, sharding=sharded)
    client = ImageryClient(image_source=path, outside="fill")
    for box in boxes(seed=3):
        array = client.image_cutout(box)
        assert array.shape[3] == 3
        np.testing.assert_array_equal(array.compute(scheduler="threads"), expected(padded(data), box), strict=True)


@pytest.mark.parametrize("part", [1, -1, slice(1, None), slice(None, None, -2), [2, 0]], ids=str)
def test_channels_are_selected(tmp_path: Path, part: Any) -> None:
    data = coordinate_volume((*SHAPE, 3), OFFSET, np.uint16)
    volume = ImageryClient(image_source=write_volume(tmp_path / "rgb", data, voxel_offset=OFFSET)).image_volume()
    np.testing.assert_array_equal(volume[5:70, 20, 3:30, part].values, data[5:70, 20, 3:30][..., part], strict=True)


def test_channels_of_jpeg_are_read_in_order(tmp_path: Path) -> None:
    data = smooth_image((*SHAPE, 3), seed=6)
    data[..., 1] //= 2
    data[..., 2] = 255 - data[..., 2]
    options = {"jpeg_quality": 100}
    path = write_volume(tmp_path / "rgb", data, voxel_offset=OFFSET, encoding="jpeg", scale_options=options)
    voxels = np.asarray(ImageryClient(image_source=path).image_volume()).astype(int)
    # JPEG stores color at half the resolution; swapped channels or voxels would differ by a hundred.
    assert np.abs(voxels - data).mean() < 3
    assert np.abs(voxels - data).max() < 40


def test_several_channels_of_jpeg_xl_are_refused(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "rgb", smooth_image((*SHAPE, 3)), encoding="jxl")
    with pytest.raises(SourceError, match="is .jxl., but with it 1 channels can be read, and num_channels is 3"):
        ImageryClient(image_source=path)


def test_a_placeholder_mip_is_skipped(tmp_path: Path) -> None:
    data = coordinate_volume((80, 64, 20), (4, 8, 0), np.uint8)
    path = write_volume(tmp_path / "em", data, voxel_offset=(4, 8, 0), mips=3, placeholder_mip=True)
    client = ImageryClient(image_source=path)
    assert client.resolution.tolist() == [16, 16, 40]
    whole = client.image_volume()
    assert whole.attrs["mip"] == 1
    np.testing.assert_array_equal(whole.values, downsample(data, 1), strict=True)
    np.testing.assert_array_equal(client.image_cutout([[2, 4, 0], [42, 36, 20]]).compute(), downsample(data, 1))
    with pytest.raises(ValueError, match="placeholder"):
        client.image_cutout([[2, 4, 0], [42, 36, 20]], mip=0)


# ---------------------------------------------------------------------------------------------- handles on workers


def test_a_handle_pickles_small_and_reads_after_unpickling(tmp_path: Path) -> None:
    data = coordinate_volume(SHAPE, OFFSET)
    path = write_volume(tmp_path / "ids", data, voxel_offset=OFFSET)
    handle = SourceHandle(path, open_volume(path).layer.mip(0))
    box = VoxelGrid(OFFSET, (33, 20, 17), (8, 8, 40))
    handle.read(box)
    content = pickle.dumps(handle)
    assert len(content) < 500
    copy = pickle.loads(content)
    assert copy == handle
    np.testing.assert_array_equal(copy.read(box)[..., 0], data[:33, :20, :17], strict=True)


def test_each_process_reads_the_info_once(tmp_path: Path, file_server: FileServer, processes: Client) -> None:
    data = coordinate_volume((128, 128, 64), dtype=np.uint8)
    write_volume(tmp_path / "em", data, encoding="png")
    client = ImageryClient(image_source=f"precomputed://{file_server.url}/em")
    volume = client.image_volume().data.rechunk((32, 32, 16))
    with dask.config.set({"optimization.fuse.active": False}):
        whole = processes.compute(volume).result()
        strided = processes.compute(volume[::2]).result()
    np.testing.assert_array_equal(whole, data)
    np.testing.assert_array_equal(strided, data[::2])
    assert 1 <= file_server.count(lambda request: request.path == "/em/info") <= 1 + 2
    assert file_server.count(lambda request: request.status != 200) == 0
