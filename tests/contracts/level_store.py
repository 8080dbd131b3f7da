"""The contract of `LevelStore`, which stores of every format fulfil."""

from __future__ import annotations

import itertools
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imagery_dask.export.multiscale.levels import LevelStore
from imagery_dask.geometry.grid import Region, parts_of
from imagery_dask.geometry.vec import Vec3
from imagery_dask.kernels import join_digests

#: Shape x, y, z of a level; not a multiple of its chunks.
SHAPE = (45, 68, 38)
#: The smallest unit of a write: a chunk, or a shard.
UNIT = (32, 32, 32)
WHOLE: Region = (slice(0, 45), slice(0, 68), slice(0, 38))
LOW: Region = (slice(0, 32), slice(0, 64), slice(0, 32))
CORNER: Region = (slice(32, 45), slice(64, 68), slice(32, 38))


def ids() -> NDArray[np.uint64]:
    """Return ids that are not exact as floats."""
    return np.asfortranarray(np.random.default_rng(3).integers(2**53, 2**60, SHAPE, dtype=np.uint64))


class LevelStoreContract(ABC):
    """Tests of one implementation; a subclass defines how a store is made and how other libraries read it."""

    #: Shape of parts: a chunk.
    PART = UNIT
    #: Whether hashes are of whole files, as of copies, not of parts.
    HASHES_FILES = False

    @abstractmethod
    def make(self, url: str, dtype: str, channels: int) -> LevelStore:
        """Make an empty level of `SHAPE`, whose writes cover whole units of `UNIT`."""

    @abstractmethod
    def stored(self, url: str) -> NDArray[Any]:
        """Read the level as x, y, z(, c) with another library."""

    @abstractmethod
    def contents(self, url: str) -> dict[str, bytes]:
        """Return the contents of the stored chunks by file name."""

    @abstractmethod
    def remove_leftovers(self, url: str) -> None:
        """Remove files that killed processes have left."""

    @pytest.fixture
    def store(self, url: str) -> LevelStore:
        return self.make(url, "uint64", 1)

    def test_a_written_region_reads_back_voxel_for_voxel(self, store: LevelStore, url: str) -> None:
        voxels = ids()
        for region in (LOW, CORNER):
            digest = store.write(region, voxels[region])
            read_back = store.read(region)
            assert read_back.dtype == np.uint64
            np.testing.assert_array_equal(read_back, voxels[region])
            assert digest == store.digest(region) == store.digest_of(region, voxels[region])
        store.write(WHOLE, voxels)
        np.testing.assert_array_equal(store.read(WHOLE), voxels)
        np.testing.assert_array_equal(self.stored(url), voxels)

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_the_memory_order_does_not_change_the_digest(self, store: LevelStore, order: Any) -> None:
        voxels = ids()
        digest = store.write(WHOLE, np.array(voxels, order=order))
        assert digest == store.digest(WHOLE) == store.digest_of(WHOLE, voxels)

    def test_a_region_that_cuts_chunks_can_be_read(self, store: LevelStore) -> None:
        """Coarser levels read such regions, because a voxel may need voxels of several chunks."""
        voxels = ids()
        store.write(WHOLE, voxels)
        for region in (np.s_[3:40, 31:33, 30:38], np.s_[44:45, 67:68, 0:1]):
            np.testing.assert_array_equal(store.read(region), voxels[region])

    def test_writing_a_region_that_cuts_a_chunk_is_refused(self, store: LevelStore, url: str) -> None:
        voxels = ids()
        for axis, cut in itertools.product(range(3), (slice(0, 16), slice(8, 32), slice(16, 44))):
            region = (*WHOLE[:axis], cut, *WHOLE[axis + 1 :])
            with pytest.raises(ValueError, match="does not cover whole"):
                store.write(region, voxels[region])
        assert self.contents(url) == {}

    def test_a_block_of_zeros_replaces_stored_voxels(self, store: LevelStore, url: str) -> None:
        voxels = ids()
        store.write(WHOLE, voxels)
        zeros = np.zeros_like(voxels[LOW])
        assert store.write(LOW, zeros) == store.digest(LOW) == store.digest_of(LOW, zeros)
        voxels[LOW] = 0
        np.testing.assert_array_equal(store.read(WHOLE), voxels)
        np.testing.assert_array_equal(self.stored(url), voxels)

    def test_writing_the_same_voxels_again_gives_the_same_bytes(self, store: LevelStore, url: str) -> None:
        voxels = ids()
        first = store.write(WHOLE, voxels)
        before = self.contents(url)
        assert before
        assert store.write(WHOLE, voxels) == first
        assert self.contents(url) == before

    def test_parts_make_the_files_of_the_whole(self, store: LevelStore, url: str) -> None:
        voxels = ids()
        voxels[:32, 32:64, :32] = 0
        store.write(WHOLE, voxels)
        whole = self.contents(url)
        store.write(WHOLE, np.zeros_like(voxels))
        parts = list(parts_of(WHOLE, self.PART))
        digest = store.write_parts(WHOLE, ((part, voxels[part]) for part in parts))
        assert self.contents(url) == whole
        again = ((part, voxels[part]) for part in parts)
        assert digest == store.digest(WHOLE, Vec3.of(self.PART)) == store.digest_of_parts(WHOLE, again)
        if not self.HASHES_FILES:
            assert digest == join_digests([store.digest(part) for part in parts])
            assert digest == join_digests([store.digest_of(part, voxels[part]) for part in parts])
        np.testing.assert_array_equal(self.stored(url), voxels)

    def test_a_part_that_fails_leaves_the_stored_voxels(self, store: LevelStore, url: str) -> None:
        if "://" in url:
            pytest.skip("objects of a bucket do not appear together")
        voxels = ids()
        store.write(WHOLE, voxels)
        before = self.contents(url)

        def failing() -> Iterator[tuple[Region, NDArray[np.uint64]]]:
            for number, part in enumerate(parts_of(WHOLE, self.PART)):
                if number == 3:
                    raise OSError("the source has gone")
                yield part, np.zeros_like(voxels[part])

        with pytest.raises(OSError, match="has gone"):
            store.write_parts(WHOLE, failing())
        assert self.contents(url) == before

    def test_different_voxels_have_different_digests(self, store: LevelStore) -> None:
        voxels = ids()
        first = store.write(WHOLE, voxels)
        voxels[7, 8, 9] += np.uint64(1)
        assert store.digest_of(WHOLE, voxels) != first
        assert store.digest(WHOLE) == first
        assert store.write(WHOLE, voxels) != first

    def test_a_pickled_copy_is_the_same_store(self, store: LevelStore) -> None:
        voxels = ids()
        store.write(WHOLE, voxels)
        copy: LevelStore = pickle.loads(pickle.dumps(store))
        assert copy == store
        np.testing.assert_array_equal(copy.read(LOW), voxels[LOW])

    def test_files_of_killed_processes_are_removed(self, store: LevelStore, url: str) -> None:
        if "://" in url:
            pytest.skip("objects are written whole, so that killed processes leave none")
        voxels = ids()
        store.write(WHOLE, voxels)
        before = self.contents(url)
        self.leave_partial_files(url)
        assert self.contents(url) != before
        self.remove_leftovers(url)
        assert self.contents(url) == before
        np.testing.assert_array_equal(store.read(WHOLE), voxels)

    @abstractmethod
    def leave_partial_files(self, url: str) -> None:
        """Write the files that a process leaves when it is killed during a write."""


class ChannelsContract:
    """Tests of implementations with several channels."""

    def test_channels_are_the_last_axis(self: Any, url: str) -> None:
        store = self.make(url, "uint8", 3)
        voxels = np.random.default_rng(4).integers(0, 255, (*SHAPE, 3), dtype=np.uint8, endpoint=True)
        assert store.write(WHOLE, voxels) == store.digest(WHOLE)
        np.testing.assert_array_equal(store.read(WHOLE), voxels)
        np.testing.assert_array_equal(self.stored(url), voxels)
