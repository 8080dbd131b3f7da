"""Every level store fulfils the contract: zarr of both formats, with chunks and shards, and precomputed."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from contracts.level_store import LOW, SHAPE, UNIT, WHOLE, ChannelsContract, LevelStoreContract
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from imagery_dask.export.precomputed.precomputed_level import PrecomputedLevel
from imagery_dask.export.precomputed.sharded_level import ShardedLevel
from imagery_dask.export.precomputed.sharding import Sharding
from imagery_dask.export.zarr import block_array
from imagery_dask.export.zarr.block_array import ZarrLevel
from imagery_dask.export.zarr.encoded_chunks import WRITTEN_AT_ONCE
from imagery_dask.geometry.grid import parts_of
from imagery_dask.sources.volumes.encoded_block import EncodedBlock
from imagery_dask.storage import buckets, zarr_stores
from imagery_dask.storage.atomic_files import Files

KEY = "8_8_40"
OFFSET = (-16, 8, 5)


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a level that does not exist yet."""
    return str(tmp_path / "out") if request.param == "folder" else f"memory://t-{uuid.uuid4().hex[:12]}/out"


class Zarr(LevelStoreContract, ChannelsContract):
    """Zarr arrays z, y, x or c, z, y, x."""

    FORMAT: Literal[2, 3] = 3
    LAYOUT: dict[str, Any]
    COPIED = False

    def make(self, url: str, dtype: str, channels: int) -> ZarrLevel:
        group = zarr_stores.create_group(url, self.FORMAT)
        first = (channels,) if channels > 1 else ()
        layout = {name: (*first, *reversed(sizes)) for name, sizes in self.LAYOUT.items()}
        if self.FORMAT == 3:
            layout["compressors"] = BloscCodec(cname="zstd", clevel=1)
        group.create_array("0", shape=(*first, *reversed(SHAPE)), dtype=dtype, fill_value=0, **layout)
        return ZarrLevel(url, "0", self.FORMAT, uuid.uuid4().hex, copied=self.COPIED)

    def stored(self, url: str) -> NDArray[Any]:
        return np.asarray(zarr.open_array(zarr_stores.open_store(url), path="0", mode="r")[...]).T

    def contents(self, url: str) -> dict[str, bytes]:
        system, path = buckets.files_at(url)
        names = {str(name).partition("/0/")[2]: str(name) for name in system.find(f"{path}/0")}
        metadata = ("zarr.json", ".zarray", ".zattrs")
        return {name: system.cat_file(names[name]) for name in sorted(names) if not name.endswith(metadata)}

    def leave_partial_files(self, url: str) -> None:
        left = Path(url) / "0" / ".partial-killed-0123456789ab"
        left.mkdir()
        (left / "c.0.0.0").write_bytes(b"half")
        (Path(url) / "0" / ".zarr.json.01234567.partial").write_bytes(b"half")

    def remove_leftovers(self, url: str) -> None:
        assert block_array.remove_partial(url, "0") == 2


class TestZarrChunks(Zarr):
    LAYOUT = {"chunks": UNIT}

    def test_parts_that_are_not_the_block_are_refused(self, url: str) -> None:
        store = self.make(url, "uint64", 1)
        voxels = np.ones(SHAPE, np.uint64)
        parts = list(parts_of(WHOLE, UNIT))
        for given, reason in (
            (parts[:-1], "lack chunks"),
            ([parts[0], *parts], "written twice"),
            ([*parts[1:], (slice(0, 16), *parts[0][1:])], "does not cover whole"),
        ):
            with pytest.raises(ValueError, match=reason):
                store.write_parts(WHOLE, ((part, voxels[part]) for part in given))
        with pytest.raises(ValueError, match="not in the block"):
            store.write_parts(LOW, ((part, voxels[part]) for part in parts))


class TestZarrShards(Zarr):
    PART = (16, 16, 16)
    LAYOUT = {"chunks": (16, 16, 16), "shards": UNIT}

    def test_a_shard_of_many_megabytes_is_stored(self, url: str) -> None:
        shape = (128, 128, 128)
        group = zarr_stores.create_group(url, self.FORMAT)
        group.create_array("0", shape=shape, chunks=(64, 64, 64), shards=shape, dtype="uint64", fill_value=0)
        store = ZarrLevel(url, "0", self.FORMAT, uuid.uuid4().hex, copied=self.COPIED)
        voxels = np.random.default_rng(0).integers(2**53, 2**63, shape, dtype=np.uint64)
        whole = (slice(0, 128),) * 3
        assert store.write(whole, voxels) == store.digest(whole) == store.digest_of(whole, voxels)
        np.testing.assert_array_equal(self.stored(url), voxels)
        assert max(map(len, self.contents(url).values())) > 3 * WRITTEN_AT_ONCE


class TestZarr2(Zarr):
    FORMAT = 2
    LAYOUT = {"chunks": UNIT}


class TestCopiedChunks(TestZarrChunks):
    COPIED = HASHES_FILES = True

    def test_a_stored_chunk_is_written_to_its_own_place_only(self, url: str) -> None:
        store, other = self.make(url, "uint64", 1), self.make(f"{url}2", "uint64", 1)
        voxels = np.random.default_rng(2).integers(2**53, 2**63, SHAPE, dtype=np.uint64)
        other.write(WHOLE, voxels)
        first, *parts = parts_of(WHOLE, UNIT)
        content = self.contents(f"{url}2")["c/0/0/0"]
        shape = tuple(axis.stop - axis.start for axis in first)

        def written(part: Any, shape: tuple[int, ...]) -> bytes:
            block = EncodedBlock(content, (*shape, 1), "uint64", lambda: voxels[first][..., None])
            return store.write_parts(WHOLE, [(part, block), *((part, voxels[part]) for part in parts)])

        for part, of in ((WHOLE, shape), (WHOLE, SHAPE), (parts[-1], shape)):
            with pytest.raises(ValueError, match="a stored chunk of shape .* does not fit"):
                written(part, of)
        assert written(first, shape) == other.digest(WHOLE)
        np.testing.assert_array_equal(self.stored(url), voxels)


class TestCopiedShards(TestZarrShards):
    COPIED = HASHES_FILES = True


class TestCopiedZarr2(TestZarr2):
    COPIED = HASHES_FILES = True


class Precomputed(LevelStoreContract):
    """Mips of precomputed volumes."""

    ENCODING: str
    COMPRESS: Literal["gzip", "br"] | None = "gzip"
    CHUNK = UNIT
    SHARDING: Sharding | None = None

    def make(self, url: str, dtype: str, channels: int) -> PrecomputedLevel:
        files = Files.at(url)
        kind = "segmentation" if dtype == "uint64" else "image"
        self.info = CloudVolume.create_new_info(
            channels, kind, dtype, self.ENCODING, [8, 8, 40], list(OFFSET), list(SHAPE), chunk_size=list(self.CHUNK)
        )
        if self.ENCODING == "compressed_segmentation":
            self.info["scales"][0]["compressed_segmentation_block_size"] = [8, 8, 8]
        stop = tuple(first + size for first, size in zip(OFFSET, SHAPE, strict=True))
        if files.folder is not None:
            files.folder.mkdir()
        level: Any = (files, KEY, OFFSET, stop, self.CHUNK, self.ENCODING, dtype, channels, self.COMPRESS, None)
        if self.SHARDING is None:
            return PrecomputedLevel(*level)
        self.info["scales"][0]["sharding"] = self.SHARDING.entry
        return ShardedLevel(*level, sharding=self.SHARDING)

    def stored(self, url: str) -> NDArray[Any]:
        if "://" in url:  # CloudVolume cannot read raw chunks from memory
            with tempfile.TemporaryDirectory() as folder:
                for name, content in self.contents(url).items():
                    (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(folder) / name).write_bytes(content)
                return self.stored(folder)
        volume = CloudVolume(f"file://{url}", info=self.info, progress=False)
        voxels = np.asarray(volume[:])
        return voxels if voxels.shape[3] > 1 else voxels[..., 0]

    def contents(self, url: str) -> dict[str, bytes]:
        if "://" not in url:
            folder = Path(url)
            return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        files = Files.at(url)
        return {name: files.get(name) or b"" for name in sorted(files.names())}

    def leave_partial_files(self, url: str) -> None:
        (Path(url) / KEY / ".0-16_24-40_5-21.01234567.partial").write_bytes(b"half")

    def remove_leftovers(self, url: str) -> None:
        Files.at(url).remove_partial(KEY)


class TestPrecomputedRaw(Precomputed, ChannelsContract):
    ENCODING = "raw"


class TestPrecomputedBrotli(Precomputed, ChannelsContract):
    ENCODING = "raw"
    COMPRESS = "br"


class TestPrecomputedUncompressed(Precomputed, ChannelsContract):
    ENCODING = "raw"
    COMPRESS = None


class TestPrecomputedCompressedSegmentation(Precomputed):
    ENCODING = "compressed_segmentation"


class Sharded(Precomputed):
    """Mips whose shards are 2 x 2 x 2 chunks."""

    CHUNK = PART = (16, 16, 16)

    def test_parts_that_are_not_the_block_are_refused(self, url: str) -> None:
        store = self.make(url, "uint64", 1)
        voxels = np.ones(SHAPE, np.uint64)
        parts = list(parts_of(WHOLE, self.PART))
        for given, reason in (
            (parts[:-1], "lack chunks"),
            ([parts[0], *parts], "written twice"),
            ([*parts, parts[0]], "not in the block, or was written twice"),
            ([*parts[1:], (slice(0, 8), *parts[0][1:])], "does not cover whole"),
        ):
            with pytest.raises(ValueError, match=reason):
                store.write_parts(WHOLE, ((part, voxels[part]) for part in given))
        with pytest.raises(ValueError, match="not in the block"):
            store.write_parts(LOW, ((part, voxels[part]) for part in parts))

    def test_a_damaged_shard_is_no_data(self, url: str) -> None:
        if "://" in url:
            pytest.skip("files of a folder are damaged")
        store = self.make(url, "uint64", 1)
        store.write(WHOLE, np.ones(SHAPE, np.uint64))
        (shard, *_) = sorted((Path(url) / KEY).iterdir())
        content = shard.read_bytes()
        for damaged in (content[:100], content[:-10], bytes(len(content))):
            shard.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{KEY}/.* cannot be read"):
                store.read(LOW)
        shard.unlink()
        with pytest.raises(FileNotFoundError, match="was written, but is missing now"):
            store.digest(LOW)


class TestShardedRaw(Sharded, ChannelsContract):
    ENCODING = "raw"
    SHARDING = Sharding(preshift_bits=2, minishard_bits=1, shard_bits=4, minishard_index_encoding="gzip")


class TestShardedGzip(Sharded, ChannelsContract):
    ENCODING = "raw"
    SHARDING = Sharding(preshift_bits=0, minishard_bits=3, shard_bits=9, data_encoding="gzip")


class TestShardedCompressedSegmentation(Sharded):
    ENCODING = "compressed_segmentation"
    SHARDING = Sharding(
        preshift_bits=3, minishard_bits=0, shard_bits=4, minishard_index_encoding="gzip", data_encoding="gzip"
    )
