"""Graphs of cutouts: one symbolic layer of any size, without secrets, that reads every storage chunk once."""

from __future__ import annotations

import gc
import json
import math
import pickle
import pickletools
import threading
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from dask.base import tokenize
from dask.blockwise import Blockwise
from distributed import Client
from support.settings import Configure

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.arrays import lazy
from imagery_dask.arrays.origins import source_of
from imagery_dask.config import config
from imagery_dask.sources import SourceHandle, collect_counts, open_volume
from imagery_dask.sources.requests.transport import Request, Transport

TOKEN = "s3cr3t-0b7e1f5a9c"
ROOT = 864691135000000001
SHAPE = (128, 96, 64)
START = (-64, 32, 7)
CHUNK = (32, 32, 16)


def write_info(folder: Path, side: int, kind: str = "image", dtype: str = "uint8", chunk: int = 64) -> str:
    """Write only the info of a volume, so that every chunk is missing."""
    scale = {
        "key": "8_8_40", "size": [side] * 3, "resolution": [8, 8, 40], "voxel_offset": [1000, -2000, 30],
        "chunk_sizes": [[chunk] * 3], "encoding": "raw",
    }  # fmt: skip
    folder.mkdir()
    info = {"type": kind, "data_type": dtype, "num_channels": 1, "scales": [scale]}
    (folder / "info").write_text(json.dumps(info))
    return f"precomputed://file://{folder}"


def coordinates() -> np.ndarray:
    x, y, z = np.ix_(*(np.arange(n) for n in SHAPE))
    return np.asfortranarray(ROOT + x + (y << 12) + (z << 24)).astype(np.uint64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("graph") / "seg"
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", [8, 8, 40], list(START), list(SHAPE), chunk_size=list(CHUNK)
    )
    volume = CloudVolume(f"file://{folder}", info=info, progress=False)
    volume.commit_info()
    volume.commit_provenance()
    volume[volume.bounds.to_slices()] = coordinates()
    return f"precomputed://file://{folder}"


@pytest.fixture
def client(source: str) -> ImageryClient:
    return ImageryClient(image_source=source, segmentation_source=source)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the keys that any thread fetches from storage, without infos, which exports compare at their end."""
    counts: Counter[str] = Counter()
    lock, get = threading.Lock(), Transport.get

    def counting(self: Transport, request: Request) -> Any:
        if request.key != "info":
            with lock:
                counts[request.key] += 1
        return get(self, request)

    monkeypatch.setattr(Transport, "get", counting)
    return counts


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Record the start and the shape of every box whose voxels are read, or taken from the cache."""
    read_boxes: list[tuple[Any, Any]] = []
    read = SourceHandle.read

    def recording(self: SourceHandle, box: Any, *rest: Any) -> Any:
        voxels = read(self, box, *rest)
        read_boxes.append((box.start, box.shape))
        return voxels

    monkeypatch.setattr(SourceHandle, "read", recording)
    return read_boxes


def key_of(x: int, y: int, z: int) -> str:
    """Return the file name of a storage chunk of the volume, by its position in the grid of chunks."""
    starts = [a + i * n for a, i, n in zip(START, (x, y, z), CHUNK, strict=True)]
    return "8_8_40/" + "_".join(f"{a}-{a + n}" for a, n in zip(starts, CHUNK, strict=True))


def graph_bytes(array: da.Array) -> bytes:
    return pickle.dumps(array.__dask_graph__())


def blocks_of(array: da.Array) -> int:
    """Return the number of blocks of an array."""
    return int(np.prod(array.numblocks))


def largest_block(array: da.Array) -> tuple[int, ...]:
    return tuple(max(sizes) for sizes in array.chunks)


def cutouts_of(folder: Path, side: int) -> dict[str, da.Array]:
    """Return every kind of lazy array, for a layer of ``(side / 64)**3`` storage chunks."""
    client = ImageryClient(
        image_source=write_info(folder / f"em{side}", side),
        segmentation_source=write_info(folder / f"seg{side}", side, "segmentation", "uint64"),
    )
    bounds = [[1000, -2000, 30], [1000 + side, side - 2000, side + 30]]
    pair = client.image_and_segmentation_cutout(bounds)
    return {
        "image volume": client.image_volume().data,
        "segmentation volume": client.segmentation_volume().data,
        "image": client.image_cutout(bounds),
        "resized": client.image_cutout(bounds, resolution=(12.0, 9.7, 40), scale_to_bounds=True),
        "linear": client.image_cutout(bounds, resolution=(16, 16, 40), scale_to_bounds=True, order=1),
        "ids": client.segmentation_cutout(bounds),
        "some ids": client.segmentation_cutout(bounds, root_ids=[ROOT, ROOT + 1, 2**64 - 1]),
        "mask": client.split_segmentation_cutout(bounds)[ROOT],
        "pair": pair[0],
        "dataset": client.dataset(bounds)["segmentation"].data,
    }


# ------------------------------------------------------------------------------------------------ size of graphs


def test_arrays_of_a_billion_chunks_are_one_small_layer(tmp_path: Path) -> None:
    arrays = cutouts_of(tmp_path, 64_000)
    assert open_volume(f"file://{tmp_path}/em64000").layer.mip(0).chunk_count == 10**9
    for name, array in arrays.items():
        (layer,) = array.__dask_graph__().layers.values()
        assert isinstance(layer, Blockwise), name
        assert not layer.is_materialized(), name
        assert len(graph_bytes(array)) < 20_000, name
        assert len(pickle.dumps(array)) < 20_000, name


def test_the_size_of_a_graph_grows_with_the_block_edges_only(tmp_path: Path) -> None:
    """Eight times as many blocks need as many layers, and bytes for the edges along the three axes only."""
    small, large = cutouts_of(tmp_path, 64_000), cutouts_of(tmp_path, 128_000)
    for name, array in large.items():
        assert blocks_of(array) >= 7 * blocks_of(small[name]), name
        assert len(array.__dask_graph__().layers) == 1, name
        edges = sum(array.numblocks) - sum(small[name].numblocks)
        assert len(graph_bytes(array)) - len(graph_bytes(small[name])) < 10 * edges + 100, name


def test_blocks_of_a_coarser_result_are_bounded_in_source_and_result(tmp_path: Path) -> None:
    """A block of a much coarser result must not read a thousand times its own size."""
    client = ImageryClient(image_source=write_info(tmp_path / "em", 64_000), outside="fill")
    for resolution in [(8, 8, 40), (16, 16, 40), (64, 64, 40), (128, 128, 160)]:
        array = client.image_cutout([[200] * 3, [700] * 3], resolution=resolution, scale_to_bounds=True)
        source_ = source_of(array)
        assert source_ is not None
        block = source_.cutout.target.crop((0, 0, 0), largest_block(array))
        assert block.size <= 2 * config.get("lazy.block_bytes")
        assert block.at((8, 8, 40)).size <= 8 * config.get("lazy.block_bytes"), resolution


@pytest.mark.parametrize("resolution", [(4, 4, 40), (1, 1, 10), (0.5, 0.5, 1)])
def test_blocks_of_a_much_finer_result_are_bounded(tmp_path: Path, resolution: Any) -> None:
    """One storage chunk may become gigabytes of a finer result; then a block is a part of a chunk."""
    client = ImageryClient(image_source=write_info(tmp_path / "em", 64_000))
    array = client.image_cutout([[0] * 3, [20_000] * 3], resolution=resolution, scale_to_bounds=True)
    assert np.prod([int(n) for n in largest_block(array)], dtype=object) <= 8 * config.get("lazy.block_bytes")
    assert sum(array.chunks[0]) == 20_000


# ------------------------------------------------------------------------------------------- contents of graphs


def names_in(pickled: bytes) -> set[str]:
    """Return every string of a pickle, including names of modules and classes."""
    return {str(argument) for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, (str, bytes))}


def test_graphs_contain_no_volume_token_or_path_of_secrets(source: str) -> None:
    client = ImageryClient(image_source=source, segmentation_source=source, auth_token=TOKEN)
    assert client.image_cv.shape[:3] == SHAPE  # opens the volume with the token before anything is pickled
    bounds = [list(START), [a + n for a, n in zip(START, SHAPE, strict=True)]]
    masks = client.split_segmentation_cutout(bounds)
    image = ImageryClient(image_source=source, image_kind="image", auth_token=TOKEN)
    arrays = [
        client.image_cutout(bounds), client.segmentation_cutout(bounds, root_ids=[ROOT]), masks[ROOT],
        client.image_volume().data, client.dataset(bounds)["segmentation"].data,
        image.image_cutout(bounds, resolution=(16, 16, 40), order=1),
    ]  # fmt: skip
    for array in arrays:
        array[0, 0, 0].compute()  # opens the volume in a worker thread, too
        for pickled in (graph_bytes(array), pickle.dumps(array), pickle.dumps(dask.optimize(array[:5, 3])[0])):
            assert TOKEN.encode() not in pickled
            assert b"secret" not in pickled.lower()
            for name in names_in(pickled):
                assert not name.startswith(("cloudvolume", "cloudfiles", "caveclient", "requests", "_thread")), name
        assert TOKEN not in repr(array) + array.name + tokenize(array) + str(array.__dask_keys__())
        assert TOKEN not in repr(lazy.CutoutArray(source_of(array).cutout).__dask_tokenize__())  # type: ignore[union-attr]
    assert TOKEN not in repr(client) + repr(masks) + str(client.image_volume()) + str(client.image_volume().attrs)


def test_tokens_do_not_depend_on_the_credentials(source: str) -> None:
    bounds = [list(START), [0, 96, 20]]
    names = [
        ImageryClient(image_source=source, auth_token=token).image_cutout(bounds).name for token in (None, TOKEN, "b")
    ]
    assert len(set(names)) == 1


# ---------------------------------------------------------------------------------------------- reads of slices


def test_a_plane_of_a_huge_layer_reads_only_the_chunks_it_crosses(tmp_path: Path, fetched: Counter[str]) -> None:
    volume = ImageryClient(image_source=write_info(tmp_path / "em", 64_000)).image_volume().data
    fetched.clear()
    with dask.config.set(scheduler="synchronous"), collect_counts() as counts:
        plane = volume[32_000:32_512, 32_000:32_512, 32_000].compute()
    assert plane.shape == (512, 512)
    assert counts.chunks == counts.missing == 8 * 8
    assert len(fetched) == 64
    assert set(fetched.values()) == {1}
    x, y, z = (start + 32_000 for start in (1000, -2000, 30))
    assert f"8_8_40/{x}-{x + 64}_{y}-{y + 64}_{z}-{z + 64}" in fetched


@pytest.mark.parametrize("crossing", [(5, 6), (31, 33), (0, 32), (32, 33)])
def test_a_slice_reads_only_the_chunks_it_crosses(
    client: ImageryClient, fetched: Counter[str], crossing: tuple[int, int]
) -> None:
    volume = client.segmentation_volume().data
    first, last = crossing
    fetched.clear()
    with dask.config.set(scheduler="synchronous"), collect_counts() as counts:
        voxels = volume[first:last, 40, ::7].compute()
    np.testing.assert_array_equal(voxels, coordinates()[first:last, 40, ::7])
    expected = {key_of(x, 1, z) for x in range(first // 32, (last - 1) // 32 + 1) for z in range(4)}
    assert fetched == dict.fromkeys(expected, 1)
    assert counts.chunks == len(expected)


def test_a_slice_is_pushed_into_the_loader(client: ImageryClient, boxes: list[tuple[Any, Any]]) -> None:
    volume = client.segmentation_volume()
    voxels = volume.data[33:43, 51:57:2, 7].compute(scheduler="synchronous")
    np.testing.assert_array_equal(voxels, coordinates()[33:43, 51:57:2, 7])
    named = volume.isel(x=slice(33, 43), y=slice(51, 57, 2), z=7)
    np.testing.assert_array_equal(named.compute(scheduler="synchronous"), voxels)
    assert boxes == [((START[0] + 33, START[1] + 51, START[2] + 7), (10, 5, 1))] * 2


CHAIN = ((slice(33, 100),), (slice(None), slice(5, 60)), (..., slice(3, 30)), (slice(0, 10), slice(2, 9), 4))


def chained(array: Any) -> Any:
    for key in CHAIN:
        array = array[key]
    return array


def test_slices_of_slices_read_no_more_than_the_first_slice(
    client: ImageryClient, boxes: list[tuple[Any, Any]]
) -> None:
    voxels = chained(client.segmentation_volume().data).compute(scheduler="synchronous")
    np.testing.assert_array_equal(voxels, chained(coordinates()))
    assert sum(math.prod(shape) for _, shape in boxes) <= coordinates()[CHAIN[0]].size


def test_slices_of_slices_are_pushed_into_the_loader(client: ImageryClient, boxes: list[tuple[Any, Any]]) -> None:
    chained(client.segmentation_volume().data).compute(scheduler="synchronous")
    # x: 33 .. 42; y: 5 + 2 = 7 .. 13; z: 3 + 4 = 7.
    assert boxes == [((START[0] + 33, START[1] + 7, START[2] + 7), (10, 7, 1))]


def test_slices_are_pushed_through_functions_of_voxels(client: ImageryClient, boxes: list[tuple[Any, Any]]) -> None:
    volume = client.segmentation_volume()
    mean = (volume.isel(z=3) % np.uint64(2)).isel(x=slice(4, 8), y=slice(0, 3))
    np.testing.assert_array_equal(mean.compute(scheduler="synchronous"), coordinates()[4:8, 0:3, 3] % 2)
    assert sum(math.prod(shape) for _, shape in boxes) <= SHAPE[0] * SHAPE[1]
    assert all(shape[2] == 1 for _, shape in boxes)


def test_opening_layers_reads_no_chunk(client: ImageryClient, fetched: Counter[str]) -> None:
    bounds = [list(START), [0, 96, 20]]
    client.segmentation_volume()
    client.dataset(bounds)
    masks = client.split_segmentation_cutout(bounds)
    mask = masks[ROOT]
    assert mask.dtype == bool
    assert not fetched
    assert len(masks) == 64 * 64 * 13
    assert set(fetched.values()) == {1}


# ------------------------------------------------------------------------------------------------- whole exports


@pytest.mark.parametrize("chunks", [(32, 32, 16), (64, 32, 64), (16, 16, 16), (128, 96, 64)])
def test_an_aligned_export_reads_every_chunk_once(
    client: ImageryClient, threads: Client, fetched: Counter[str], tmp_path: Path, chunks: tuple[int, int, int],
    configure: Configure,
) -> None:  # fmt: skip
    configure("export.block_bytes", 2**18)  # gives several blocks
    volume = client.segmentation_volume()
    report = to_zarr(volume, tmp_path / "out.zarr", chunks=chunks, cluster=threads, progress=False)
    assert report.ok
    assert report.blocks > (1 if chunks != SHAPE else 0)
    assert report.counts.chunks == 4 * 3 * 4
    assert report.counts.missing == 0
    assert fetched == {key_of(x, y, z): 1 for x in range(4) for y in range(3) for z in range(4)}
    np.testing.assert_array_equal(np.asarray(zarr.open(tmp_path / "out.zarr" / "0")).T, coordinates())


def test_an_export_of_a_region_reads_every_chunk_it_crosses_once(
    client: ImageryClient, threads: Client, fetched: Counter[str], tmp_path: Path, configure: Configure
) -> None:
    """Blocks begin at common edges of both grids, although the region begins within a chunk."""
    configure("export.block_bytes", 2**18)
    bounds = [[START[0] + 16, START[1], START[2] + 8], [a + n for a, n in zip(START, SHAPE, strict=True)]]
    cutout = client.segmentation_cutout(bounds, convert_to_int64=False)
    report = to_zarr(cutout, tmp_path / "out.zarr", chunks=(16, 32, 8), cluster=threads, progress=False)
    assert report.ok
    assert report.blocks > 1
    assert report.counts.chunks == 4 * 3 * 4
    assert set(fetched.values()) == {1}
    np.testing.assert_array_equal(np.asarray(zarr.open(tmp_path / "out.zarr" / "0")).T, coordinates()[16:, :, 8:])


def test_computing_an_aligned_cutout_reads_every_chunk_once(
    client: ImageryClient, fetched: Counter[str], configure: Configure
) -> None:
    configure("lazy.block_bytes", 2**18)
    volume = client.segmentation_volume().data
    assert blocks_of(volume) > 4
    np.testing.assert_array_equal(volume.compute(), coordinates())
    assert fetched == {key_of(x, y, z): 1 for x in range(4) for y in range(3) for z in range(4)}


def test_smallest_blocks_are_the_storage_chunks(client: ImageryClient, configure: Configure) -> None:
    configure("lazy.block_bytes", 1)
    assert client.segmentation_volume().data.chunks == ((32,) * 4, (32,) * 3, (16,) * 4)
    start = [START[0] + 20, START[1] + 32, START[2] - 5]
    bounds = [start, [start[0] + 50, start[1] + 64, start[2] + 40]]
    assert client.segmentation_cutout(bounds).chunks == ((12, 32, 6), (32, 32), (5, 16, 16, 3))
    finer = client.segmentation_cutout(np.array(bounds) * (2, 2, 1), resolution=(4, 4, 40))
    assert finer.chunks == ((24, 64, 12), (64, 64), (5, 16, 16, 3))


@pytest.mark.parametrize("resolution", [(4, 4, 40), (16, 16, 80), (12, 9.7, 33.3), (4.3, 8, 120)])
def test_computing_a_resized_cutout_reads_every_chunk_once(
    client: ImageryClient, fetched: Counter[str], configure: Configure, resolution: Any
) -> None:
    """Blocks end at edges of storage chunks, whatever the grid of the result."""
    configure("lazy.block_bytes", 2**16)
    corners = np.array([START, [a + n for a, n in zip(START, SHAPE, strict=True)]]) * (8, 8, 40) / resolution
    bounds = [np.floor(corners[0]).astype(int) - 3, np.ceil(corners[1]).astype(int) + 3]
    cutout = client.segmentation_cutout(bounds, resolution=resolution, scale_to_bounds=True)
    assert blocks_of(cutout) > 4
    fetched.clear()
    cutout.compute()
    assert fetched == {key_of(x, y, z): 1 for x in range(4) for y in range(3) for z in range(4)}


def test_the_cutout_of_an_array_is_known_as_long_as_the_array_lives(client: ImageryClient) -> None:
    """Deleting an equal array must not remove the entry that leads from a name to its source."""
    bounds = [list(START), [0, 96, 20]]
    array = client.segmentation_cutout(bounds)
    twin = client.segmentation_cutout(bounds)
    assert twin.name == array.name
    assert source_of(array) is not None
    del twin
    gc.collect()
    assert source_of(array) is not None


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_a_cutout_computed_alone_equals_its_blocks_and_reads_each_chunk_once(
    client: ImageryClient, fetched: Counter[str], configure: Configure, scheduler: str
) -> None:
    """A whole cutout is computed without dask's concatenation; voxels and reads are the same."""
    configure("lazy.block_bytes", 8 * 32 * 32 * 16)
    configure("cache_bytes", 0)
    stop = [a + n for a, n in zip(START, SHAPE, strict=True)]
    for bounds in ([START, stop], [[a - 3 for a in START], [b - 5 for b in stop]]):
        array = client.segmentation_cutout(bounds, mip=0, convert_to_int64=False)
        assert blocks_of(array) > 8
        # A sum is no cutout, so that dask concatenates its blocks.
        expected = (array + np.uint64(0)).compute(scheduler="synchronous")
        fetched.clear()
        voxels = array.compute(scheduler=scheduler)
        assert voxels.dtype == expected.dtype
        assert (voxels == expected).all()
        if scheduler != "processes":  # reads of other processes are not counted
            assert set(fetched.values()) == {1}
        assert voxels.flags.f_contiguous == (scheduler != "processes")


def test_computing_a_cutout_needs_its_memory_once(client: ImageryClient, configure: Configure) -> None:
    """Blocks are copied into the result one by one; dask's concatenation holds all of them and the result."""
    configure("lazy.block_bytes", 8 * 32 * 32 * 16)
    array = client.segmentation_cutout([START, [a + n for a, n in zip(START, SHAPE, strict=True)]], mip=0)
    array.compute(scheduler="synchronous")
    tracemalloc.start()
    try:
        array.compute(scheduler="synchronous")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * array.size * array.dtype.itemsize


def test_a_cutout_computed_on_a_cluster_arrives_block_by_block(
    client: ImageryClient, fetched: Counter[str], threads: Client, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    configure("lazy.block_bytes", 8 * 32 * 32 * 16)
    array = client.segmentation_cutout([START, [a + n for a, n in zip(START, SHAPE, strict=True)]], mip=0)
    keys: list[Any] = []
    compute = Client.compute

    def recording(self: Client, collections: Any, *rest: Any, **options: Any) -> Any:
        futures = compute(self, collections, *rest, **options)
        keys.extend(future.key for future in futures)
        return futures

    monkeypatch.setattr(Client, "compute", recording)
    voxels = array.compute(scheduler=threads)
    assert len(keys) == blocks_of(array)  # no task concatenates them on a worker
    assert set(fetched.values()) == {1}
    assert (voxels == coordinates().astype(np.int64)).all()
    assert voxels.flags.f_contiguous


def test_the_error_of_a_block_on_a_cluster_is_raised(
    source: str, threads: Client, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    configure("lazy.block_bytes", 8 * 32 * 32 * 16)
    array = ImageryClient(segmentation_source=source).segmentation_cutout(
        [START, [a + n for a, n in zip(START, SHAPE, strict=True)]], mip=0
    )

    def fail(self: SourceHandle, *rest: Any) -> Any:
        raise OverflowError("id 7")

    monkeypatch.setattr(SourceHandle, "read", fail)
    with pytest.raises(OverflowError, match="id 7"):
        array.compute(scheduler=threads)
