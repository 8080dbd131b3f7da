"""Numbers of requests that reads and exports send, counted at the server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume import CloudVolume
from distributed import Client
from integration.stores import labels, written
from support.http_server import FileServer
from support.settings import Configure
from support.volumes import coordinate_volume, downsample, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import SourceError

#: 4 x 4 x 4 storage chunks of (32, 32, 16).
SHAPE = (128, 128, 64)
OFFSET = (-32, 64, 16)
CHUNKS = 64


@pytest.fixture
def data() -> Any:
    return coordinate_volume(SHAPE, OFFSET, np.uint8)


def gets(server: FileServer, below: str = "/em/8_8_40/") -> Counter[str]:
    """Count the requests for each file below a folder; check that all were GET requests that succeeded."""
    assert {(request.method, request.status) for request in server.requests} <= {("GET", 200), ("GET", 206)}
    return Counter(request.path for request in server.requests if request.path.startswith(below))


@pytest.mark.parametrize("out_chunks", [(32, 32, 16), (64, 32, 32), (48, 48, 24)], ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_an_aligned_export_requests_each_chunk_once(
    tmp_path: Path, file_server: FileServer, data: Any, processes: Client, out_chunks: tuple[int, int, int]
) -> None:
    write_volume(tmp_path / "em", data, voxel_offset=OFFSET)
    volume = ImageryClient(image_source=f"precomputed://{file_server.url}/em").image_volume()
    report = to_zarr(volume, tmp_path / "out.zarr", chunks=out_chunks, cluster=processes, progress=False)
    requested = gets(file_server)
    assert (len(requested), set(requested.values())) == (CHUNKS, {1})
    assert report.blocks >= 4
    assert (report.counts.chunks, report.counts.missing) == (CHUNKS, 0)
    # This process and two workers open the volume; the info is read again before the first and after the last block.
    assert file_server.count("/em/info") <= 5
    assert len(file_server.requests) == CHUNKS + file_server.count("/em/info")
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), data)


@pytest.mark.usefixtures("small_blocks")
def test_a_region_across_chunks_requests_each_chunk_once(
    tmp_path: Path, file_server: FileServer, data: Any, threads: Client
) -> None:
    """No side of the region lies on a chunk's edge, and blocks are smaller than the region."""
    write_volume(tmp_path / "em", data, voxel_offset=OFFSET)
    client = ImageryClient(image_source=f"precomputed://{file_server.url}/em")
    bounds = [[-16, 80, 24], [80, 176, 72]]
    out = tmp_path / "out.zarr"
    report = to_zarr(client.image_cutout(bounds), out, chunks=(16, 16, 8), cluster=threads, progress=False)
    assert report.blocks > 8
    requested = gets(file_server)
    assert (len(requested), set(requested.values())) == (4 * 4 * 4, {1})
    np.testing.assert_array_equal(written(out), data[16:112, 16:112, 8:56])


@pytest.mark.usefixtures("small_blocks")
def test_an_aligned_export_of_resized_layers_requests_each_chunk_once(
    tmp_path: Path, file_server: FileServer, data: Any, threads: Client
) -> None:
    ids = downsample(random_labels(SHAPE, n=30), 1)
    write_volume(tmp_path / "em", data, voxel_offset=OFFSET)
    write_volume(
        tmp_path / "ids", ids, resolution=(16, 16, 40), voxel_offset=(-16, 32, 16), layer_type="segmentation",
        encoding="compressed_segmentation",
    )  # fmt: skip
    client = ImageryClient(
        image_source=f"precomputed://{file_server.url}/em", segmentation_source=f"precomputed://{file_server.url}/ids"
    )
    dataset = client.dataset([OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]])
    report = to_zarr(dataset, tmp_path / "out.zarr", chunks=(64, 64, 16), cluster=threads, progress=False)
    assert report.blocks > 8
    image, segmentation = gets(file_server), gets(file_server, "/ids/16_16_40/")
    assert (len(image), set(image.values())) == (CHUNKS, {1})
    assert (len(segmentation), set(segmentation.values())) == (2 * 2 * 4, {1})
    np.testing.assert_array_equal(labels(tmp_path / "out.zarr"), ids.repeat(2, axis=0).repeat(2, axis=1))


def test_indices_of_shards_are_read_once_per_process(
    tmp_path: Path, file_server: FileServer, data: Any, processes: Client, configure: Configure
) -> None:
    """The export has one storage chunk per block, which is the worst case."""
    configure("export.block_bytes", 32 * 32 * 16)
    path = write_volume(tmp_path / "em", data, voxel_offset=OFFSET, sharding=True)
    sharding = CloudVolume(path, progress=False).scale["sharding"]
    shards = 2 ** sharding["shard_bits"]
    minishards = shards * 2 ** sharding["minishard_bits"]
    assert (shards, minishards) == (8, 32)
    volume = ImageryClient(image_source=f"precomputed://{file_server.url}/em").image_volume()
    report = to_zarr(volume, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=processes, progress=False)
    np.testing.assert_array_equal(written(tmp_path / "out.zarr"), data)
    assert (report.blocks, report.counts.chunks) == (CHUNKS, CHUNKS)
    requested = gets(file_server)
    assert len(requested) == shards
    # Both processes may need the same index, but neither requests one twice.
    assert CHUNKS < sum(requested.values()) <= CHUNKS + 2 * (shards + minishards)


def test_sharded_reads_take_fewer_requests_than_cloudvolume(tmp_path: Path, file_server: FileServer, data: Any) -> None:
    """Both read one storage chunk at a time in one process."""
    write_volume(tmp_path / "em", data, voxel_offset=OFFSET, sharding=True)
    path = f"precomputed://{file_server.url}/em"
    corners = [[o + i * s for o, i, s in zip(OFFSET, cell, (32, 32, 16), strict=True)] for cell in np.ndindex(4, 4, 4)]
    cloudvolume = CloudVolume(path, progress=False)
    file_server.reset()
    for x, y, z in corners:
        cloudvolume[x : x + 32, y : y + 32, z : z + 16]
    cloudvolume_requests = sum(gets(file_server).values())
    cutout = ImageryClient(image_source=path).image_cutout
    file_server.reset()
    for x, y, z in corners:
        cutout([[x, y, z], [x + 32, y + 32, z + 16]]).compute(scheduler="synchronous")
    requests = sum(gets(file_server).values())
    # Each chunk, minishard index and shard index is requested once.
    assert requests <= CHUNKS + 32 + 8
    assert requests < 0.75 * cloudvolume_requests


#: By their hash, whose shards are boxes of chunks or not, also where ids of chunks are longer than their bits.
SHARDING: list[dict[str, Any]] = [
    {"hash": "identity", "preshift_bits": 1, "minishard_bits": 1, "shard_bits": 4},
    {"hash": "identity", "preshift_bits": 1, "minishard_bits": 0, "shard_bits": 2},
    {"hash": "identity", "preshift_bits": 4, "minishard_bits": 2, "shard_bits": 0},
    {"hash": "murmurhash3_x86_128", "preshift_bits": 1, "minishard_bits": 1, "shard_bits": 3},
]


@pytest.mark.parametrize("sharding", SHARDING, ids=str)
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_shards_that_are_wanted_whole_are_read_in_one_request(
    tmp_path: Path, file_server: FileServer, data: Any, sharding: dict[str, Any], encoding: str
) -> None:
    volume = data[:100, :, :50]  # whose last shards have fewer chunks
    write_volume(tmp_path / "em", volume, voxel_offset=OFFSET, encoding=encoding, sharding=sharding)
    client = ImageryClient(image_source=f"precomputed://{file_server.url}/em")
    np.testing.assert_array_equal(client.image_volume().compute(), volume)
    requested = gets(file_server)
    assert set(requested) == {f"/em/8_8_40/{shard.name}" for shard in (tmp_path / "em/8_8_40").iterdir()}
    assert set(requested.values()) == {1}


def test_shards_of_which_a_part_is_wanted_are_read_by_ranges(
    tmp_path: Path, file_server: FileServer, data: Any
) -> None:
    write_volume(tmp_path / "em", data, voxel_offset=OFFSET, sharding=SHARDING[0])
    client = ImageryClient(image_source=f"precomputed://{file_server.url}/em", cache_bytes=0)
    x, y, z = OFFSET
    # Shards have 2 x 2 x 1 chunks. All are wanted of four shards, and two of four: an index, two of minishards, chunks.
    np.testing.assert_array_equal(
        client.image_cutout([[x, y, z], [x + 96, y + 128, z + 32]]).compute(), data[:96, :, :32]
    )
    sizes = Counter(request.status for request in file_server.requests if request.path.endswith(".shard"))
    assert sizes == {200: 4, 206: 4 * 4}
    file_server.reset()
    np.testing.assert_array_equal(
        client.image_cutout([OFFSET, [x + 32, y + 32, z + 16]]).compute(), data[:32, :32, :16]
    )
    assert sum(gets(file_server).values()) == 1  # indices of whole shards are kept


@pytest.mark.parametrize("keep", [0, 10, 64, 300], ids="{} bytes are left".format)
def test_chunks_of_cut_shards_are_damaged(tmp_path: Path, file_server: FileServer, data: Any, keep: int) -> None:
    write_volume(tmp_path / "em", data, voxel_offset=OFFSET, sharding=SHARDING[2])
    (shard,) = (tmp_path / "em/8_8_40").iterdir()
    shard.write_bytes(shard.read_bytes()[:keep])
    client = ImageryClient(image_source=f"precomputed://{file_server.url}/em")
    with pytest.raises(SourceError, match=r"0\.shard"):
        client.image_volume().compute()


def test_slices_request_the_chunks_that_they_cross(tmp_path: Path, file_server: FileServer, data: Any) -> None:
    write_volume(tmp_path / "em", data, voxel_offset=OFFSET)
    client = ImageryClient(image_source=f"precomputed://{file_server.url}/em", cache_bytes=0)
    volume = client.image_volume()
    cutout = client.image_cutout([OFFSET, [96, 192, 80]])
    assert cutout.shape == SHAPE
    crossed = [
        (np.s_[:, :, 20], 4 * 4),
        (np.s_[40, :, :], 4 * 4),
        (np.s_[5, 5, 5], 1),
        (np.s_[31:33, 0:1, 15:17], 2 * 1 * 2),
        (np.s_[3, 60:70, 3], 2),
    ]
    for array in (volume, cutout):
        for part, count in crossed:
            file_server.reset()
            np.testing.assert_array_equal(np.asarray(array[part]), data[part])
            requested = gets(file_server)
            assert (len(requested), set(requested.values())) == (count, {1}), part


def test_opening_requests_the_info_only(tmp_path: Path, file_server: FileServer, data: Any) -> None:
    write_volume(tmp_path / "em", data, voxel_offset=OFFSET, sharding=True)
    client = ImageryClient(image_source=f"precomputed://{file_server.url}/em")
    array = client.image_volume()[3:40, ::2, 7].T.astype("float32") / 2
    assert array.shape == (64, 37)
    assert [request.path for request in file_server.requests] == ["/em/info"]
