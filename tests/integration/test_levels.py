"""Exports with several levels: what they read and refuse, and what coarser levels become when a block fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from integration.stores import files_of
from support.settings import Configure
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, to_precomputed, to_zarr, verify_export
from imagery_dask.errors import BlockFailedError
from imagery_dask.export.zarr.block_array import ZarrLevel

SHAPE = (128, 96, 32)
OFFSET = (64, -32, 16)
CHUNK = (32, 32, 16)
CHUNKS = 4 * 3 * 2


@pytest.fixture
def image(tmp_path: Path) -> Any:
    data = coordinate_volume(SHAPE, OFFSET, np.uint8)
    source = write_volume(tmp_path / "em", data, voxel_offset=OFFSET, chunk_size=CHUNK)
    bounds = [OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]]
    return ImageryClient(image_source=source).image_cutout(bounds)


@pytest.mark.parametrize("options", [{"shards": (64, 64, 32)}, {"shards": None}, {"ome_version": "0.4"}])
def test_each_chunk_is_read_once_for_all_levels(
    image: Any, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    levels_read: list[str] = []
    read = ZarrLevel.read

    def record_and_read(level: ZarrLevel, region: Any) -> Any:
        levels_read.append(level.path)
        return read(level, region)

    monkeypatch.setattr(ZarrLevel, "read", record_and_read)
    configure("export.small_fused_bytes", 64 * 64 * 32)
    configure("export.small_block_bytes", 1)
    report = to_zarr(image, tmp_path / "o.zarr", chunks=CHUNK, levels=4, progress=False, **options)
    assert report.counts.chunks == CHUNKS
    assert report.notes == []
    # Levels 0 and 1 are made together, and only the last level of a stage is read again.
    assert levels_read
    assert "0" not in levels_read


@pytest.mark.parametrize("write", [to_zarr, to_precomputed])
@pytest.mark.parametrize(("planned", "now"), [(1, 2**40), (2**40, 1)])
def test_runs_are_verified_and_repaired_in_the_stages_of_their_plan(
    image: Any, tmp_path: Path, write: Any, planned: int, now: int, configure: Configure
) -> None:
    """Other versions and configurations make other levels together."""
    configure("export.small_fused_bytes", planned)
    configure("export.fused_bytes", planned)
    out = tmp_path / "o"
    write(image, out, chunks=CHUNK, levels=3, progress=False)
    configure("export.small_fused_bytes", now)
    configure("export.fused_bytes", now)
    chunks = {
        path: path.read_bytes() for path in out.rglob("*") if path.name not in ("info", "provenance", "zarr.json")
        and path.is_file()
    }  # fmt: skip
    assert verify_export(out, sample=1, progress=False).ok
    for path in chunks:
        path.unlink()
    assert not verify_export(out, progress=False).ok
    write(image, out, chunks=CHUNK, levels=3, progress=False, repair=True)
    assert {path: path.read_bytes() for path in chunks} == chunks


def test_coarser_levels_are_not_made_of_failed_blocks(tmp_path: Path, configure: Configure) -> None:
    configure("export.small_fused_bytes", 1)

    def fail(block: Any, block_info: Any = None) -> Any:
        if block_info and block_info[0]["chunk-location"] == (1, 0, 0):
            raise ArithmeticError("this block is not to be had")
        return block

    array = da.zeros((64, 64, 16), chunks=(32, 64, 16), dtype=np.uint8).map_blocks(fail, dtype=np.uint8) + np.uint8(7)
    options: dict[str, Any] = {"chunks": (16, 16, 16), "levels": 3, "block_mib": 1e-6, "progress": False}
    with pytest.raises(BlockFailedError, match=r"\d+ of \d+ blocks failed; \d+ were written.*not to be had") as caught:
        to_zarr(array, tmp_path / "o.zarr", **options)
    report = caught.value.report
    assert report.done < report.blocks
    level0 = zarr.open_array(tmp_path / "o.zarr", path="0", mode="r")[...].T
    assert (level0[:32] == 7).all()
    assert (level0[32:] == 0).all()
    attributes: Any = zarr.open_group(tmp_path / "o.zarr", mode="r").attrs["imagery_dask"]
    assert attributes["blocks_failed"] == report.failures > 0


def test_notes_name_repeated_reads_and_int64(image: Any, tmp_path: Path) -> None:
    report = to_zarr(image, tmp_path / "o.zarr", chunks=(48, 32, 16), block_mib=1e-6, progress=False)
    assert report.counts.chunks >= CHUNKS
    ids = np.arange(64, dtype=np.int64).reshape(4, 4, 4)
    report = to_zarr(ids, tmp_path / "ids.zarr", progress=False)
    assert any("Neuroglancer shows no zarr array of int64" in note for note in report.notes)
    uneven = da.ones((60, 20, 20), chunks=((7, 30, 23), 20, 20), dtype=np.uint8)
    report = to_zarr(uneven, tmp_path / "uneven.zarr", chunks=(16, 20, 20), block_mib=1e-6, progress=False)
    assert any("along x" in note and "read more than once" in note for note in report.notes)


@pytest.mark.parametrize("write", [to_zarr, to_precomputed])
def test_blocks_that_do_not_fit_into_memory_are_refused(tmp_path: Path, write: Any) -> None:
    planes = da.zeros((400_000, 400_000, 64), chunks=(400_000, 400_000, 1), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"would hold .* GB .*400,000x400,000x1.*rechunk"):
        write(planes, tmp_path / "out", resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_files_do_not_depend_on_the_block_size(image: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"chunks": (16, 16, 16), "shards": (32, 32, 32), "levels": 4, "progress": False}
    to_zarr(image, tmp_path / "a.zarr", block_mib=1e-6, **options)
    to_zarr(image, tmp_path / "b.zarr", block_mib=64, **options)
    assert files_of(tmp_path / "a.zarr") == files_of(tmp_path / "b.zarr")


@pytest.mark.parametrize("write", [to_zarr, to_precomputed])
def test_a_store_is_not_replaced_by_an_incomplete_one(tmp_path: Path, write: Any) -> None:
    def fail(block: Any, block_info: Any = None) -> Any:
        if block_info:
            raise ArithmeticError("not to be had")
        return block

    options: dict[str, Any] = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20), "progress": False}
    write(np.full((16, 16, 16), 9, np.uint8), tmp_path / "out", **options)
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / ".zarr.json.01234567.partial").write_bytes(b"of a process that was killed")
    failing = da.zeros((16, 16, 16), dtype=np.uint8).map_blocks(fail, dtype=np.uint8)
    with pytest.raises(BlockFailedError, match="not to be had"):
        write(failing, tmp_path / "out", overwrite=True, **options)
    (tmp_path / "out" / ".zarr.json.01234567.partial").unlink()
    assert files_of(tmp_path / "out") == before
    kept = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert kept == {"out", "out.receipts", ".out.incoming"}  # the incomplete store is kept for the next attempt


def test_masked_arrays_are_refused(tmp_path: Path) -> None:
    masked = da.ma.masked_equal(da.arange(64, dtype=np.uint8).reshape(4, 4, 4), 3)
    with pytest.raises(TypeError, match=r"masked.*da\.ma\.filled"):
        to_zarr(masked, tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_levels_of_the_source_skip_placeholders(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(1, 2**60, size=(32, 32, 16), dtype=np.uint64)
    segmentation = write_volume(tmp_path / "seg", ids, layer_type="segmentation", mips=3, placeholder_mip=True)
    image = write_volume(tmp_path / "em", np.ones((64, 64, 16), np.uint8), resolution=(4, 4, 40), mips=2)
    client = ImageryClient(image_source=image, segmentation_source=segmentation)
    data = client.dataset([[0, 0, 0], [64, 64, 16]], image_mip=0, segmentation_mip=1)
    report = to_zarr(data, tmp_path / "o.zarr", levels="source", progress=False)
    levels = dict(zarr.open_group(tmp_path / "o.zarr", path="labels/segmentation", mode="r").arrays())
    assert [levels[name].shape for name in sorted(levels)] == [(16, 64, 64), (16, 16, 16), (16, 8, 8)]
    assert all((np.asarray(level[...]) != 0).all() for level in levels.values())
    assert report.counts.missing == 0
