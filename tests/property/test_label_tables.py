"""Relabelling the tables of compressed_segmentation chunks equals relabelling the voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressed_segmentation
import numpy as np
import pytest
from cloudvolume import CloudVolume
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imagery_dask.errors import CorruptChunkError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.sources.precomputed.label_tables import LabelTables
from imagery_dask.sources.precomputed.precomputed_volume import PrecomputedVolume

Ids = NDArray[np.uint64]

sizes = st.tuples(*[st.integers(1, 21)] * 3)
block_sizes = st.sampled_from([(8, 8, 8), (4, 8, 2), (16, 16, 16), (3, 5, 7)])
kinds = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 17, 300, 5000]))
FEW, MANY = np.uint64(2**53), np.uint64(2**64 - 1)


def labels_of(shape: tuple[int, int, int], kind: tuple[int, int]) -> Ids:
    """Return voxels of ``count`` random 64-bit ids, and 0, 2**53 and 2**64 - 1; `kind` is seed and count."""
    seed, count = kind
    rng = np.random.default_rng(seed)
    ids = np.append(rng.integers(0, 2**64, count, dtype=np.uint64), np.array([0, FEW, MANY], np.uint64))
    return np.asfortranarray(rng.choice(ids, shape))


def encoded(labels: Ids, block_size: tuple[int, int, int]) -> bytes:
    return bytes(compressed_segmentation.compress(labels, block_size, order="F"))


def decoded(content: bytes, like: Ids, block_size: tuple[int, int, int]) -> Ids:
    return np.asarray(compressed_segmentation.decompress(content, like.shape, np.uint64, block_size, order="F"))


def mixed(ids: Ids) -> Ids:
    """Map ids to others of 64 bits; 0 stays 0."""
    return ids * np.uint64(0x9E3779B97F4A7C15)


@given(sizes, block_sizes, kinds)
@settings(max_examples=150, deadline=None)
def test_tables_contain_exactly_the_labels_of_the_voxels(
    shape: tuple[int, int, int], block_size: tuple[int, int, int], kind: tuple[int, int]
) -> None:
    voxels = labels_of(shape, kind)
    content = encoded(voxels, block_size)
    tables = LabelTables.parse(content, shape, block_size)
    assert tables is not None
    np.testing.assert_array_equal(np.unique(tables.labels()), np.unique(voxels))
    assert tables.replaced(tables.labels()) == content
    replaced = tables.replaced(mixed(tables.labels()))
    np.testing.assert_array_equal(decoded(replaced, voxels, block_size), mixed(voxels))


@given(kinds, st.data())
@settings(max_examples=150, deadline=None)
def test_tables_of_damaged_chunks_are_parsed_or_refused(kind: tuple[int, int], data: st.DataObject) -> None:
    """Parsing the tables of damaged chunks neither raises nor reads past the end; the decoder reports the damage."""
    shape, block_size = (17, 9, 8), (8, 8, 8)
    content = bytearray(encoded(labels_of(shape, kind), block_size))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 160) - 1))] = data.draw(st.integers(0, 255))
    tables = LabelTables.parse(bytes(content[: data.draw(st.integers(0, len(content)))]), shape, block_size)
    if tables is not None:
        assert len(tables.labels()) >= 1
        tables.replaced(tables.labels())


def test_overlapping_tables_are_refused() -> None:
    """An encoder may share the end of a table or place one among indices; then the end of a table is unknown."""
    shape, size = (16, 8, 8), (8, 8, 8)
    # The channel's offset, two headers, then tables and indices, whose offsets are words from the first header.
    shared = np.array([1, (1 << 24) | 20, 4, (0 << 24) | 21, 0, *range(100, 130)], "<u4")
    assert LabelTables.parse(shared.tobytes(), shape, size) is None
    inside = np.array([1, (1 << 24) | 6, 4, (0 << 24) | 4, 0, *range(100, 130)], "<u4")
    assert LabelTables.parse(inside.tobytes(), shape, size) is None
    longer = np.array([1, (0 << 24) | 4, 0, (0 << 24) | 6, 0, *range(100, 110)], "<u4")
    assert LabelTables.parse(longer.tobytes(), shape, size) is None
    plain = np.array([1, (0 << 24) | 4, 0, (0 << 24) | 6, 0, *range(100, 104)], "<u4")
    tables = LabelTables.parse(plain.tobytes(), shape, size)
    assert tables is not None
    assert tables.labels().tolist() == [100 + (101 << 32), 102 + (103 << 32)]


# --------------------------------------------------------------------------- volumes


SHAPE, CHUNK, OFFSET = (50, 40, 36), (16, 16, 16), (7, 1000, 3)


def volume_of(folder: Path, encoding: str, missing: bool) -> tuple[PrecomputedVolume, Ids]:
    voxels = labels_of(SHAPE, (5, 40))
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", encoding, (8, 8, 40), OFFSET, SHAPE, chunk_size=CHUNK
    )
    volume = CloudVolume(f"file://{folder}", info=info, progress=False)
    volume.commit_info()
    volume[:, :, :] = voxels
    if missing:
        hole = (slice(16, 32), slice(0, 16), slice(16, 32))
        next((folder / "8_8_40").glob("23-39_1000-1016_19-35*")).unlink()
        voxels[hole] = 0
    return PrecomputedVolume(f"precomputed://file://{folder}"), voxels


@pytest.fixture(scope="module", params=["compressed_segmentation", "raw", "compressed_segmentation-hole"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PrecomputedVolume, Ids]:
    encoding, _, hole = request.param.partition("-")
    return volume_of(tmp_path_factory.mktemp("labels"), encoding, bool(hole))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_box_is_relabelled_with_one_call(volume: tuple[PrecomputedVolume, Ids], data: st.DataObject) -> None:
    source, voxels = volume
    aligned = data.draw(st.booleans())
    start, stop = [], []
    for size, chunk in zip(SHAPE, CHUNK, strict=True):
        edges = [*range(0, size, chunk), size] if aligned else list(range(-3, size + 4))
        low, high = sorted(data.draw(st.lists(st.sampled_from(edges), min_size=2, max_size=2, unique=True)))
        start.append(low)
        stop.append(high)
    box = VoxelGrid.between(np.add(start, OFFSET).tolist(), np.add(stop, OFFSET).tolist(), (8, 8, 40))
    expected = np.pad(voxels, 4)[tuple(slice(a + 4, b + 4) for a, b in zip(start, stop, strict=True))]
    relabel_calls: list[Ids] = []

    def relabel(ids: Ids) -> Ids:
        relabel_calls.append(ids)
        return mixed(ids)

    relabelled, _ = source.read(0, box, "fill", data.draw(st.sampled_from(["F", "C"])), relabel)
    np.testing.assert_array_equal(relabelled[..., 0], mixed(expected))
    assert len(relabel_calls) == 1
    assert set(relabel_calls[0].tolist()) | {0} == set(np.unique(expected).tolist()) | {0}
    assert (np.diff(relabel_calls[0]) > 0).all()
    again, _ = source.read(0, box, "fill", "F")
    np.testing.assert_array_equal(again[..., 0], expected)


def test_whole_chunks_are_relabelled_before_they_are_decoded(tmp_path: Path, monkeypatch: Any) -> None:
    source, voxels = volume_of(tmp_path, "compressed_segmentation", missing=False)
    monkeypatch.setattr("imagery_dask.kernels.remap", spy := _Spy())
    box = VoxelGrid.between(OFFSET, np.add(OFFSET, (32, 16, 16)).tolist(), (8, 8, 40))
    source.read(0, box, "fill", "F", mixed)
    assert spy.sizes
    assert max(spy.sizes) < 16 * 16 * 16
    cut = VoxelGrid.between(np.add(OFFSET, 1).tolist(), np.add(OFFSET, (32, 16, 16)).tolist(), (8, 8, 40))
    spy.sizes.clear()
    source.read(0, cut, "fill", "F", mixed)
    assert spy.sizes == [31 * 15 * 15]


class _Spy:
    """Replaces `kernels.remap`, and records the number of voxels of each call."""

    def __init__(self) -> None:
        from imagery_dask import kernels

        self.sizes: list[int] = []
        self._remap = kernels.remap

    def __call__(self, block: Any, ids: Any, values: Any) -> Any:
        self.sizes.append(block.size)
        return self._remap(block, ids, values)


@pytest.mark.parametrize("damage", ["cut", "not gzip"])
def test_a_corrupt_chunk_is_named(tmp_path: Path, damage: str) -> None:
    source, _ = volume_of(tmp_path, "compressed_segmentation", missing=False)
    path = next((tmp_path / "8_8_40").glob("7-23_1000-1016_3-19*"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"never gzip")
    box = VoxelGrid.between(OFFSET, np.add(OFFSET, CHUNK).tolist(), (8, 8, 40))
    with pytest.raises(CorruptChunkError, match="7-23_1000-1016_3-19"):
        source.read(0, box, "fill", "F", mixed)
