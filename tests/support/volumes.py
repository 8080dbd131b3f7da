"""Precomputed volumes written with CloudVolume, and arrays whose values encode their coordinates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudfiles.threaded_queue
import numpy as np
import pytest
from cloudfiles import CloudFiles
from cloudvolume import Bbox, CloudVolume
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, ShardReader
from numpy.typing import DTypeLike, NDArray

Xyz = tuple[int, int, int]

# CloudFiles sleeps 0.1 s between two looks at whether its threads have finished: longer than small volumes take.
cloudfiles.threaded_queue.time = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 50))

#: Ids from this number on are not exact in float64 (or as JSON numbers): neighbouring ids become equal.
ID_BASE = 2**60

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


# --------------------------------------------------------------------------- values


def coordinate_values(x: Any, y: Any, z: Any, channel: Any = 0, *, dtype: DTypeLike = np.uint64) -> NDArray[Any]:
    """Return the values of `coordinate_volume` at absolute voxels (with broadcasting; voxels may be negative)."""
    low18 = np.int64(2**18 - 1)
    x, y, z, channel = (np.asarray(part, dtype=np.int64) & low18 for part in (x, y, z, channel))
    code = np.asarray(ID_BASE + x + (y << 18) + (z << 36) + (channel << 54), dtype=np.uint64)
    dtype = np.dtype(dtype)
    if dtype == np.uint64:
        return code
    hashed = _mix(code)
    if dtype.kind == "f":  # the 24 bits a float32 holds exactly
        return (hashed >> np.uint64(40)).astype(dtype)
    return (hashed >> np.uint64(64 - 8 * dtype.itemsize)).astype(dtype)


def coordinate_volume(
    shape: Sequence[int], voxel_offset: Sequence[int] = (0, 0, 0), dtype: DTypeLike = np.uint64
) -> NDArray[Any]:
    """Make an (x, y, z) or (x, y, z, channel) volume whose values encode their absolute coordinate.

    uint64 values are unique per voxel (within 2**18 per axis and 64 channels) and exceed 2**53; smaller types
    hold a hash, so that any transposition, offset or off-by-one changes nearly every voxel.
    """
    axes = [np.arange(size) for size in shape]
    for axis, offset in zip(axes, voxel_offset, strict=False):
        axis += offset
    return np.asfortranarray(coordinate_values(*np.ix_(*axes), dtype=dtype))


def random_labels(
    shape: Sequence[int],
    seed: int = 0,
    n: int = 20,
    *,
    block: int = 5,
    background: float = 0.1,
    above_2_63: bool = False,
) -> NDArray[np.uint64]:
    """Make blocky uint64 labels with ``n`` distinct ids beyond 2**53, in pairs that differ by 1.

    Parameters
    ----------
    shape
        x, y, z.
    block
        Edge of the blocks in voxels; blocks do not align with storage chunks.
    background
        Fraction of the blocks that hold 0.
    above_2_63
        Set the top bit of every other pair: such ids are negative as int64.
    """
    rng = np.random.default_rng(seed)
    pairs = rng.choice(2**40, size=-(-n // 2), replace=False).astype(np.uint64)
    first = np.uint64(ID_BASE) + (pairs << np.uint64(8))
    if above_2_63:
        first[::2] |= np.uint64(2**63)
    ids = np.stack([first, first + np.uint64(1)], axis=1).ravel()[:n]
    blocks = rng.integers(0, n, size=[-(-size // block) for size in shape])
    blocks.flat[: min(n, blocks.size)] = np.arange(min(n, blocks.size))  # every id occurs
    labels = ids[blocks]
    labels[rng.random(labels.shape) < background] = 0
    for axis in range(3):
        labels = labels.repeat(block, axis=axis)
    return np.asfortranarray(labels[tuple(slice(size) for size in shape)])


def smooth_image(shape: Sequence[int], seed: int = 0) -> NDArray[np.uint8]:
    """Make an (x, y, z) or (x, y, z, channel) uint8 image that lossy codecs keep nearly intact."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, size=len(shape))
    waves = [np.sin(np.arange(size) / (11.0 + 3 * axis) + phase[axis]) for axis, size in enumerate(shape)]
    total: NDArray[Any] = sum(np.ix_(*waves), start=np.zeros(()))
    return np.asfortranarray((127.5 + 110 * total / len(shape)).astype(np.uint8))


@dataclass(frozen=True)
class Fib25:
    """The FIB-25 crop (FlyEM, Janelia Research Campus; Takemura et al. 2015), x y z, with CAVE-like ids.

    Attributes
    ----------
    image
        (250, 250, 250) uint8 electron microscopy, 10 nm isotropic.
    supervoxel
        (250, 250, 250) uint64: 0 is background, the others are 2**60 + the id of the file.
    supervoxel_to_body
        (N, 2) uint64 sorted by supervoxel: supervoxel and body, both + 2**60 except for 0.
    """

    image: NDArray[np.uint8]
    supervoxel: NDArray[np.uint64]
    supervoxel_to_body: NDArray[np.uint64]

    def body_of(self, supervoxels: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Look up the body of each supervoxel; 0 stays 0."""
        keys, bodies = self.supervoxel_to_body.T
        rows = np.searchsorted(keys, supervoxels).clip(max=len(keys) - 1)
        if not np.array_equal(keys[rows], supervoxels):
            raise KeyError("a supervoxel is not in the table")
        return np.asarray(bodies[rows], dtype=np.uint64)


def fib25() -> Fib25:
    """Load the real electron microscopy in ``../shared/data``, read-only, or skip the test without it."""
    if not (DATA / "fib25.npz").is_file():
        pytest.skip("needs ../shared/data/fib25.npz (real electron microscopy, not part of the repository)")
    return _load_fib25()


@cache
def _load_fib25() -> Fib25:
    with np.load(DATA / "fib25.npz") as file:
        supervoxel = _large_ids(file["supervoxel"])
        table = _large_ids(file["supervoxel_to_body"])
        table = table[np.argsort(table[:, 0])]
        image = np.asfortranarray(file["image"])
    for array in (image, supervoxel, table):
        array.flags.writeable = False
    return Fib25(image, supervoxel, table)


def _large_ids(ids: NDArray[Any]) -> NDArray[np.uint64]:
    ids = np.asfortranarray(ids, dtype=np.uint64)
    return np.where(ids == 0, ids, ids + np.uint64(ID_BASE))


def _mix(code: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits (the finalizer of splitmix64)."""
    code = (code ^ (code >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    code = (code ^ (code >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return code ^ (code >> np.uint64(31))


# --------------------------------------------------------------------------- volumes


def downsample(data: NDArray[Any], mip: int, factor: Sequence[int] = (2, 2, 1)) -> NDArray[Any]:
    """Take every ``factor**mip``-th voxel, as `write_volume` does for coarser mips."""
    return data[tuple(slice(None, None, step**mip) for step in factor)]


def write_volume(
    folder: str | Path,
    data: NDArray[Any],
    *,
    resolution: Sequence[float] = (8, 8, 40),
    voxel_offset: Sequence[int] = (0, 0, 0),
    chunk_size: Sequence[int] = (32, 32, 16),
    encoding: str = "raw",
    layer_type: str = "image",
    compress: str | bool = "gzip",
    sharding: bool | Mapping[str, Any] | None = None,
    mips: int = 1,
    factor: Sequence[int] = (2, 2, 1),
    placeholder_mip: bool = False,
    scale_options: Mapping[str, Any] | None = None,
    levels: Sequence[NDArray[Any]] = (),
) -> str:
    """Write a precomputed volume with CloudVolume and return its ``precomputed://file://...`` path.

    Parameters
    ----------
    folder
        Folder of the volume; created if needed.
    data
        (x, y, z) or (x, y, z, channel) of mip 0; its dtype is the volume's.
    resolution, voxel_offset, chunk_size
        In nm and voxels of mip 0, x y z; every mip has the same chunk size.
    compress
        ``"gzip"`` and ``"br"`` store ``NAME.gz`` and ``NAME.br``, ``False`` stores ``NAME``.
        In a sharded volume ``False`` leaves the chunks and the minishard indices inside the shard files raw.
    sharding
        ``True`` writes shard files with `sharding_spec`'s parameters; a mapping overrides some of them.
    mips
        How many mips to write. Mip m holds `downsample` of the data. As in real volumes, CloudVolume rounds
        down an offset that the factor does not divide, and the data move by a fraction of a voxel.
    placeholder_mip
        Name mip 0 a placeholder and write no data for it, as in CAVE's watersheds that start at mip 1.
    scale_options
        More keys for every scale of the info, such as ``{"jxl_quality": 100}``.
    levels
        Data of mips 1, 2, ...; by default those of `downsample`.
    """
    if placeholder_mip and mips < 2:
        raise ValueError(f"placeholder_mip leaves no data in {mips} mip; give mips=2 or more")
    data = data if data.ndim == 4 else data[..., np.newaxis]
    info = CloudVolume.create_new_info(
        num_channels=data.shape[3],
        layer_type=layer_type,
        data_type=data.dtype.name,
        encoding=encoding,
        resolution=list(resolution),
        voxel_offset=list(voxel_offset),
        volume_size=list(data.shape[:3]),
        chunk_size=list(chunk_size),
        max_mip=mips - 1,
        factor=list(factor),
    )
    for scale in info["scales"]:
        scale["chunk_sizes"] = [list(chunk_size)]
        scale.update(scale_options or {})
        if sharding:
            spec = sharding_spec(scale["size"], chunk_size, raw=not compress)
            scale["sharding"] = spec | (dict(sharding) if isinstance(sharding, Mapping) else {})
    if placeholder_mip:
        info["scales"][0]["key"] = "placeholder_" + info["scales"][0]["key"]

    path = f"precomputed://file://{Path(folder).resolve()}"
    for mip in range(int(placeholder_mip), mips):
        volume = CloudVolume(path, mip=mip, info=info, compress=compress, progress=False)
        given = mip and levels
        level = np.asfortranarray(levels[mip - 1][..., np.newaxis] if given else downsample(data, mip, factor))
        if sharding:
            _put_shards(volume, mip, _encoded_chunks(volume, mip, level))
        else:
            volume[:, :, :] = level
    volume.commit_info()
    volume.commit_provenance()
    return path


def sharding_spec(size: Sequence[int], chunk_size: Sequence[int], *, raw: bool = False) -> dict[str, Any]:
    """Return a specification of shards of 4 minishards of 2 chunks, so that 128 chunks make 16 shards."""
    grid = [-(-int(length) // int(chunk)) for length, chunk in zip(size, chunk_size, strict=True)]
    bits = sum((cells - 1).bit_length() for cells in grid)
    preshift = min(1, max(0, bits - 3))
    minishard = min(2, max(0, bits - 1))
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "hash": "identity",
        "preshift_bits": preshift,
        "minishard_bits": minishard,
        "shard_bits": bits - preshift - minishard,
        "minishard_index_encoding": "raw" if raw else "gzip",
        "data_encoding": "raw" if raw else "gzip",
    }


def delete_chunks(path: str, mip: int, predicate: Callable[[Xyz], bool]) -> list[tuple[slice, slice, slice]]:
    """Remove the stored chunks whose first voxel (absolute, in voxels of ``mip``) satisfies ``predicate``.

    Shard files are rewritten without the chunks; a shard without chunks is deleted.
    Returns the removed chunks as slices into the mip's array (not absolute), for ``expected[chunk] = 0``.
    """
    volume = CloudVolume(path, mip=mip, progress=False)
    doomed = [(start, inside) for start, inside in _chunks(volume, mip) if predicate(start)]
    if volume.image.is_sharded(mip):
        codes = {code for start, inside in doomed for code in _morton_codes(volume, mip, start, inside)}
        kept = {code: chunk for code, chunk in _stored_shards(volume, mip).items() if code not in codes}
        files = _scale_files(volume, mip)
        files.delete(list(files.list()))
        _put_shards(volume, mip, kept)
    else:
        names = [
            "_".join(f"{a}-{a + s.stop - s.start}" for a, s in zip(start, inside, strict=True))
            for start, inside in doomed
        ]
        _scale_files(volume, mip).delete(names)
    return [inside for _, inside in doomed]


def _scale_files(volume: CloudVolume, mip: int) -> CloudFiles:
    return CloudFiles(f"{volume.meta.cloudpath}/{volume.meta.key(mip)}", progress=False)


def _chunks(volume: CloudVolume, mip: int) -> Iterator[tuple[Xyz, tuple[slice, slice, slice]]]:
    """Yield each chunk's first voxel, absolute, and its slices within the mip's array."""
    offset = [int(v) for v in volume.meta.voxel_offset(mip)]
    size = [int(v) for v in volume.meta.volume_size(mip)]
    step = [int(v) for v in volume.meta.chunk_size(mip)]
    for cell in np.ndindex(*(-(-length // chunk) for length, chunk in zip(size, step, strict=True))):
        inside = tuple(
            slice(i * chunk, min((i + 1) * chunk, length)) for i, chunk, length in zip(cell, step, size, strict=True)
        )
        start = tuple(first + s.start for first, s in zip(offset, inside, strict=True))
        yield start, inside  # type: ignore[misc]


def _bbox(start: Xyz, inside: tuple[slice, slice, slice]) -> Bbox:
    return Bbox(start, [first + s.stop - s.start for first, s in zip(start, inside, strict=True)])


def _morton_codes(volume: CloudVolume, mip: int, start: Xyz, inside: tuple[slice, slice, slice]) -> list[int]:
    _, codes = volume.image.morton_codes(_bbox(start, inside), mip=mip)
    return [int(code) for code in codes]


def _encoded_chunks(volume: CloudVolume, mip: int, data: NDArray[Any]) -> dict[int, bytes]:
    """Return every chunk, encoded, by its compressed Morton code."""
    encoded: dict[int, bytes] = {}
    for start, inside in _chunks(volume, mip):
        chunk = volume.image.make_shard_chunks(data[inside], _bbox(start, inside), mip=mip)
        encoded |= {int(code): content for code, content in chunk.items()}
    return encoded


def _put_shards(volume: CloudVolume, mip: int, encoded: Mapping[int, bytes]) -> None:
    spec = ShardingSpecification.from_dict(volume.meta.scale(mip)["sharding"])
    shards: dict[str, dict[int, bytes]] = {}
    for code, content in encoded.items():
        shards.setdefault(spec.compute_shard_location(code).shard_number, {})[code] = content
    files = _scale_files(volume, mip)
    for number, chunks in shards.items():
        # not compressed as a whole, because readers request ranges of it
        files.put(f"{number}.shard", spec.synthesize_shard(chunks), compress=None)


def _stored_shards(volume: CloudVolume, mip: int) -> dict[int, bytes]:
    reader: ShardReader = volume.image.shard_reader(mip)
    files = _scale_files(volume, mip)
    stored: dict[int, bytes] = {}
    for name in list(files.list()):
        stored |= {int(code): chunk for code, chunk in reader.disassemble_shard(files.get(name)).items()}
    return stored
