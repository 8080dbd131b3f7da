"""Chunks of a precomputed or zarr source that are chunks of the copy are written as they are stored."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.volumes import coordinate_volume, delete_chunks, random_labels, smooth_image, write_volume
from zarr.codecs import BytesCodec, ZstdCodec

from imagery_dask import ImageryClient, to_precomputed, to_zarr
from imagery_dask.errors import BlockFailedError
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.planning.estimate import plan_export
from imagery_dask.export.verify import verify_export
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.sources import open_volume
from imagery_dask.sources.volumes.encoded_block import EncodedBlock
from imagery_dask.sources.volumes.stored_volume import StoredVolume
from imagery_dask.sources.zarr.zarr_volume import ZarrVolume
from imagery_dask.storage.buckets import files_at
from imagery_dask.storage.zarr_stores import open_store

CHUNK = (32, 32, 16)
OFFSET = (64, -32, 16)
SHAPE = (120, 90, 40)
STOP = tuple(a + n for a, n in zip(OFFSET, SHAPE, strict=True))


def write(folder: Path, encoding: str, **options: Any) -> tuple[str, Any]:
    """Write a volume in an encoding; return its path and voxels."""
    if encoding in ("jpeg", "png"):
        data = smooth_image(SHAPE)
    elif encoding == "raw":
        data = coordinate_volume(SHAPE, OFFSET, np.uint16)
    else:
        data = random_labels(SHAPE, n=60)
    kind = "segmentation" if data.dtype.itemsize == 8 else "image"
    path = write_volume(
        folder, data, voxel_offset=OFFSET, encoding=encoding, layer_type=kind, chunk_size=CHUNK,
        **{"compress": False} | options,
    )  # fmt: skip
    return path, data


def cutout(path: str, bounds: Any = (OFFSET, STOP), **options: Any) -> Any:
    if open_volume(path).layer.kind == "image":
        return ImageryClient(image_source=path).image_cutout(bounds, **options)
    return ImageryClient(segmentation_source=path, imagery=False).segmentation_cutout(bounds, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the chunks of the first mip."""
    return {file.name: file.read_bytes() for file in (folder / "8_8_40").iterdir()}


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "png", "compressed_segmentation"])
@pytest.mark.parametrize("sharded", [False, True], ids=["files", "sharded"])
def test_a_copy_has_the_bytes_of_its_source(encoding: str, sharded: bool, tmp_path: Path) -> None:
    path, _ = write(tmp_path / "em", encoding, sharding=sharded or None)
    report = to_precomputed(cutout(path), tmp_path / "out", copy="exact", progress=False)
    assert report.ok
    np.testing.assert_array_equal(CloudVolume(f"file://{tmp_path}/out")[:], CloudVolume(path)[:])
    if not sharded:
        assert files_of(tmp_path / "out") == files_of(tmp_path / "em")
    assert any("100% of the chunks" in note for note in report.notes)
    assert verify_export(tmp_path / "out").ok


def test_jpeg_does_not_lose_a_second_time(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "em", "jpeg")
    stored = CloudVolume(path)[:]
    to_precomputed(cutout(path), tmp_path / "copy", encoding="jpeg", chunks=CHUNK, progress=False)
    to_precomputed(cutout(path), tmp_path / "again", encoding="jpeg", chunks=CHUNK, copy="never", progress=False)
    np.testing.assert_array_equal(CloudVolume(f"file://{tmp_path}/copy")[:], stored)
    assert (CloudVolume(f"file://{tmp_path}/again")[:] != stored).any()


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
@given(
    low=st.tuples(*(st.integers(0, 2) for _ in range(3))), high=st.tuples(*(st.integers(1, n) for n in SHAPE)),
    shift=st.sampled_from([0, 0, 0, 1]), levels=st.integers(1, 2), sharded=st.booleans(),
)  # fmt: skip
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_box_is_copied_or_decoded_to_the_same_voxels(
    encoding: str, low: Any, high: Any, shift: int, levels: int, sharded: bool, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    path, data = write(folder / "em", encoding)
    first = [min(at * size, n - 2) + shift for at, size, n in zip(low, CHUNK, SHAPE, strict=True)]
    last = [max(a + 2, b) for a, b in zip(first, high, strict=True)]
    bounds = [[a + at for a, at in zip(edge, OFFSET, strict=True)] for edge in (first, last)]
    sharding = "auto" if not sharded else {
        "@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 0, "minishard_bits": 1,
        "shard_bits": 10, "minishard_index_encoding": "gzip", "data_encoding": "gzip",
    }  # fmt: skip
    options: dict[str, Any] = {"chunks": CHUNK, "levels": levels if not shift else 1, "sharding": sharding}
    report = to_precomputed(cutout(path, bounds), folder / "out", progress=False, **options)
    assert report.ok
    stored = CloudVolume(f"file://{folder}/out", mip=0)[:][..., 0]
    np.testing.assert_array_equal(stored, data[tuple(map(slice, first, last))])
    to_precomputed(cutout(path, bounds), folder / "plain", progress=False, **options, copy="never")
    for mip in range(options["levels"]):
        copied, plain = (CloudVolume(f"file://{folder}/{name}", mip=mip)[:] for name in ("out", "plain"))
        np.testing.assert_array_equal(copied, plain)
    assert verify_export(folder / "out").ok


def test_edges_that_the_bounds_cut_are_encoded_again(tmp_path: Path) -> None:
    path, data = write(tmp_path / "em", "raw")
    bounds = [OFFSET, [STOP[0] - 1, STOP[1], STOP[2]]]
    report = to_precomputed(cutout(path, bounds), tmp_path / "out", chunks=CHUNK, progress=False)
    assert any("75% of the chunks" in note and "27 of 36" in note for note in report.notes)
    np.testing.assert_array_equal(CloudVolume(f"file://{tmp_path}/out")[:][..., 0], data[:-1])
    with pytest.raises(ValueError, match="9 of its 36 chunks are cut"):
        to_precomputed(cutout(path, bounds), tmp_path / "exact", copy="exact")


@pytest.mark.parametrize(
    ("options", "of_cutout", "reason"),
    [
        ({"chunks": (64, 64, 64)}, {}, "chunk is"),
        ({"encoding": "png"}, {}, "encoding is raw in the source and png"),
        ({}, {"resolution": (16, 16, 40), "mip": 0}, "resampled"),
    ],
)
def test_what_cannot_be_copied_says_why(options: Any, of_cutout: Any, reason: str, tmp_path: Path) -> None:
    path, _ = write(tmp_path / "em", "raw")
    bounds = [[n // 2 for n in edge[:2]] + [edge[2]] for edge in (OFFSET, STOP)] if of_cutout else (OFFSET, STOP)
    with pytest.raises(ValueError, match=reason):
        to_precomputed(
            cutout(path, bounds, **of_cutout, scale_to_bounds=True if of_cutout else None)
            if of_cutout
            else cutout(path),
            tmp_path / "out",
            copy="exact",
            **options,
        )
    with pytest.raises(ValueError, match="not a cutout"):
        to_precomputed(np.zeros((8, 8, 8), np.uint8), tmp_path / "out", copy="exact", resolution_nm=(8, 8, 40))


@pytest.mark.long
def test_a_bound_between_chunks_is_decoded(tmp_path: Path) -> None:
    path, data = write(tmp_path / "em", "raw")
    bounds = [[OFFSET[0] + 1, *OFFSET[1:]], STOP]
    with pytest.raises(ValueError, match="1, 0, 0"):
        to_precomputed(cutout(path, bounds), tmp_path / "exact", copy="exact")
    report = to_precomputed(cutout(path, bounds), tmp_path / "out", chunks=CHUNK, progress=False)
    assert not any("copied" in note for note in report.notes)
    np.testing.assert_array_equal(CloudVolume(f"file://{tmp_path}/out")[:][..., 0], data[1:])


@pytest.mark.long
def test_missing_chunks_are_zeros_and_damaged_ones_are_not_copied(tmp_path: Path) -> None:
    path, data = write(tmp_path / "em", "raw")
    (gone,) = delete_chunks(path, 0, lambda start: start == (96, -32, 32))
    data[gone] = 0
    report = to_precomputed(cutout(path), tmp_path / "out", chunks=CHUNK, progress=False)
    assert report.counts.missing == 1
    np.testing.assert_array_equal(CloudVolume(f"file://{tmp_path}/out")[:][..., 0], data)
    file = next((tmp_path / "em" / "8_8_40").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BlockFailedError, match=file.name):
        to_precomputed(cutout(path), tmp_path / "damaged", chunks=CHUNK, progress=False)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["jpeg", "compressed_segmentation"])
def test_verify_sees_a_copied_chunk_that_changed(encoding: str, tmp_path: Path) -> None:
    path, _ = write(tmp_path / "em", encoding)
    to_precomputed(cutout(path), tmp_path / "out", copy="exact", levels=2, progress=False)
    assert verify_export(tmp_path / "out").ok
    file = max((tmp_path / "out" / "8_8_40").iterdir(), key=lambda one: one.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert not verify_export(tmp_path / "out").ok


@pytest.mark.long
@pytest.mark.parametrize("zarr_format", ["0.5", "0.4"])
@pytest.mark.parametrize("codec", ["auto", "none", "zstd:3", "gzip:2", "blosc-lz4-bitshuffle:3"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint64])
def test_chunks_of_zarr_are_copied(zarr_format: Any, codec: str, dtype: Any, tmp_path: Path) -> None:
    data = coordinate_volume((70, 60, 40), (0, 0, 0), dtype)
    data[:16, :16] = 0
    how: dict[str, Any] = {"chunks": (16, 16, 16), "codec": codec, "ome_version": zarr_format, "progress": False}
    to_zarr(data, tmp_path / "em.zarr", resolution_nm=(8, 8, 40), translation_nm=(132, 4, 20), **how)
    bounds = [[32, 16, 0], [86, 60, 40]]  # whose last chunks along x are the last of the source, along y not
    region = data[16:, 16:60]
    report = to_zarr(_of_zarr(tmp_path / "em.zarr", bounds), tmp_path / "out.zarr", levels=2, **how)
    assert any("copied as they are stored" in note for note in report.notes)
    source, copy = (zarr.open_array(tmp_path / name / "0", mode="r") for name in ("em.zarr", "out.zarr"))
    np.testing.assert_array_equal(copy[...].T, region)
    for z, y, x in np.ndindex(3, 2, 4):
        names = [f"c/{z}/{y + a}/{x + a}" if zarr_format == "0.5" else f"{z}/{y + a}/{x + a}" for a in (1, 0)]
        stored = [tmp_path / store / "0" / name for store, name in zip(("em.zarr", "out.zarr"), names, strict=True)]
        assert [file.exists() for file in stored][0] == stored[1].exists()
        if stored[0].exists():
            assert stored[0].read_bytes() == stored[1].read_bytes()
    assert verify_export(tmp_path / "out.zarr", sample=None, progress=False).ok
    plain = to_zarr(region, tmp_path / "plain.zarr", levels=2, resolution_nm=(8, 8, 40), **how)
    assert plain.ok
    level = [zarr.open_array(tmp_path / name / "1", mode="r")[...] for name in ("out.zarr", "plain.zarr")]
    np.testing.assert_array_equal(*level)
    del source


@pytest.mark.long
def test_chunks_of_zarr_shards_are_copied_into_shards(tmp_path: Path) -> None:
    data = coordinate_volume((128, 128, 64))
    for name, shards in (("em", (64, 64, 64)), ("plain", None)):
        how: dict[str, Any] = {"chunks": (32, 32, 32), "shards": shards, "progress": False}
        to_zarr(data, tmp_path / f"{name}.zarr", resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20), **how)
        for own in (None, (128, 64, 32)):
            out = tmp_path / f"{name}-{own}.zarr"
            region = _of_zarr(tmp_path / f"{name}.zarr", [[0, 0, 0], data.shape])
            report = to_zarr(region, out, chunks=(32, 32, 32), shards=own, progress=False)
            assert any("100% of the chunks" in note for note in report.notes)
            np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[...].T, data)
            assert verify_export(out, sample=None, progress=False).ok


@pytest.mark.parametrize("change", [{"codec": "zstd:5"}, {"chunks": (32, 32, 16)}, {"codec": "none"}])
def test_other_chunks_of_zarr_are_encoded_again(change: Any, tmp_path: Path) -> None:
    data = coordinate_volume((64, 64, 32))
    how: dict[str, Any] = {"chunks": (32, 32, 32), "codec": "zstd:1", "progress": False}
    to_zarr(data, tmp_path / "em.zarr", resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20), **how)
    region = _of_zarr(tmp_path / "em.zarr", [[0, 0, 0], data.shape])
    report = to_zarr(region, tmp_path / "out.zarr", **(how | change))
    assert not any("copied" in note for note in report.notes)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")[...].T, data)


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("form", ["zarr", "precomputed"])
def test_the_note_counts_the_chunks_that_are_copied(
    form: str, levels: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voxels of the next level are made of two chunks of an odd size."""
    data, chunks = coordinate_volume((70, 66, 40)), (size, size, size)
    how: dict[str, Any] = {"chunks": chunks, "progress": False, "workers": 1}
    if form == "zarr":
        to_zarr(data, tmp_path / "em", resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20), codec="zstd:2", **how)
        region, export = _of_zarr(tmp_path / "em", [[0, 0, 0], data.shape]), to_zarr
    else:
        path = write_volume(
            tmp_path / "em", data, encoding="raw", layer_type="segmentation", chunk_size=chunks, compress=False
        )
        region, export = cutout(path, [[0, 0, 0], data.shape], convert_to_int64=False), to_precomputed
        how["encoding"] = "raw"
    copied = []
    encoded = StoredVolume._encoded_named

    def counted(self: StoredVolume, *of: Any) -> Any:
        block = encoded(self, *of)
        copied.append(isinstance(block, EncodedBlock))
        return block

    monkeypatch.setattr(StoredVolume, "_encoded_named", counted)
    report = export(region, tmp_path / "out", levels=levels, **how)
    told = [re.findall(r"([\d,]+) of [\d,]+\) are copied", note) for note in report.notes]
    assert [int(number) for numbers in told for number in numbers] == ([sum(copied)] if copied else [])
    assert bool(copied) == (levels == 1 or size % 2 == 0)
    if form == "zarr":
        stored = zarr.open_array(tmp_path / "out" / "0", mode="r")[...].T
    else:
        stored = CloudVolume(f"file://{tmp_path}/out")[:][..., 0]
        if not copied:
            with pytest.raises(ValueError, match="level 1 are made of two chunks"):
                export(region, tmp_path / "exact", levels=levels, copy="exact", **how)
    np.testing.assert_array_equal(stored, data)
    assert verify_export(tmp_path / "out", sample=None, progress=False).ok


SKIPPABLE = struct.pack("<II", 0x184D2A50, 5) + b"hello"


def _in_two_frames(voxels: bytes) -> bytes:
    half = len(voxels) // 2
    return b"".join(bytes(numcodecs.Zstd(1).encode(part)) for part in (voxels[:half], voxels[half:]))


@pytest.mark.parametrize(
    ("codec", "encode"),
    [
        ("zstd:1", _in_two_frames),
        ("zstd:1", lambda voxels: SKIPPABLE + bytes(numcodecs.Zstd(1).encode(voxels))),
        ("zstd:1", lambda voxels: bytes(numcodecs.Zstd(1).encode(voxels)) + SKIPPABLE),
        ("blosc-zstd:1", lambda voxels: bytes(imagecodecs.blosc2_encode(np.frombuffer(voxels, np.uint64)))),
        ("blosc-zstd:1", lambda voxels: bytes(numcodecs.Blosc("zstd", 1).encode(voxels)) + b"behind"),
    ],
    ids=["two frames", "frame to skip", "frame to skip behind", "blosc2", "bytes behind"],
)
@pytest.mark.parametrize("one_value", [False, True])
@pytest.mark.parametrize("shards", [None, (64, 64, 32)])
def test_chunks_that_decoders_take_become_chunks_that_zarr_reads(
    codec: str, encode: Any, one_value: bool, shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a chunk is fetched again"))
    source, data = _zarr_source(tmp_path, codec=codec)
    file = source / "0" / "c" / "0" / "1" / "1"
    if one_value:
        data[32:, 32:] = 2**60 + 7
    file.write_bytes(encode(data[32:, 32:].T.tobytes()))
    report = to_zarr(_of_zarr(source, WHOLE), tmp_path / "out.zarr", shards=shards, **COPY)
    assert report.ok
    assert any("copied" in note for note in report.notes)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")[...].T, data)
    assert verify_export(tmp_path / "out.zarr", sample=None, progress=False).ok


def test_a_damaged_chunk_of_zarr_is_not_copied(tmp_path: Path) -> None:
    data = coordinate_volume((64, 64, 32))
    how: dict[str, Any] = {"chunks": (32, 32, 32), "codec": "zstd", "progress": False}
    to_zarr(data, tmp_path / "em.zarr", resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20), **how)
    file = tmp_path / "em.zarr" / "0" / "c" / "0" / "1" / "1"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BlockFailedError, match="0/c/0/1/1"):
        to_zarr(_of_zarr(tmp_path / "em.zarr", [[0, 0, 0], data.shape]), tmp_path / "out.zarr", **how)


def _of_zarr(store: Path, bounds: Any) -> Any:
    """Return a cutout with ids as they are stored."""
    if open_volume(str(store)).layer.kind == "image":
        return ImageryClient(image_source=str(store)).image_cutout(bounds)
    client = ImageryClient(segmentation_source=str(store), imagery=False)
    return client.segmentation_cutout(bounds, convert_to_int64=False)


def _zarr_source(folder: Path, **how: Any) -> tuple[Path, Any]:
    """Write ids as a zarr store of a few chunks; return its path and the voxels."""
    data = random_labels((64, 64, 32), n=40)
    made: dict[str, Any] = {"chunks": (32, 32, 32), "shards": None, "codec": "zstd:1", "progress": False} | how
    to_zarr(data, folder / "em.zarr", resolution_nm=(8, 8, 40), translation_nm=(4, 4, 20), **made)
    return folder / "em.zarr", data


COPY: dict[str, Any] = {"chunks": (32, 32, 32), "progress": False}
WHOLE = [[0, 0, 0], [64, 64, 32]]


def test_no_chunk_of_zarr_is_decoded_that_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = _zarr_source(tmp_path)
    decoded = []
    decode = ZarrVolume._decode

    def counted(self: ZarrVolume, *of: Any) -> Any:
        decoded.append(of)
        return decode(self, *of)

    monkeypatch.setattr(ZarrVolume, "_decode", counted)
    for levels, expected in ((1, 0), (2, 4)):
        del decoded[:]
        out = tmp_path / f"{levels}.zarr"
        report = to_zarr(_of_zarr(source, WHOLE), out, levels=levels, workers=1, **COPY)
        assert report.counts.chunks == 4
        assert len(decoded) == expected
        np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[...].T, data)


@pytest.mark.parametrize("shards", [None, (64, 64, 32)])
def test_copies_of_zarr_lie_in_buckets_too(shards: Any, tmp_path: Path) -> None:
    source, data = _zarr_source(tmp_path)
    out = f"memory://copies-{tmp_path.name}-{shards is None}/out.zarr"
    report = to_zarr(_of_zarr(source, WHOLE), out, shards=shards, workers=1, **COPY)
    assert any("100% of the chunks" in note for note in report.notes)
    np.testing.assert_array_equal(zarr.open_array(open_store(out), path="0", mode="r")[...].T, data)
    assert verify_export(out, sample=None, workers=1, progress=False).ok
    system, path = files_at(out)
    file = next(name for name in system.find(path) if "/0/c/" in name)
    content = system.cat_file(file)
    system.pipe_file(file, content[:40] + bytes([content[40] ^ 4]) + content[41:])
    assert verify_export(out, sample=None, workers=1, progress=False).damaged
    to_zarr(_of_zarr(source, WHOLE), out, shards=shards, workers=1, repair=True, **COPY)
    assert system.cat_file(file) == content


@pytest.mark.parametrize(("codec", "what"), [("auto", "files made of the source"), ("none", "voxels of the source")])
def test_verify_says_what_differs_from_the_source(codec: str, what: str, tmp_path: Path) -> None:
    source, data = _zarr_source(tmp_path)
    to_zarr(_of_zarr(source, WHOLE), tmp_path / "out.zarr", codec=codec, **COPY)
    zarr.open_array(source / "0", mode="r+")[:8, :8, :8] = 7
    report = verify_export(tmp_path / "out.zarr", sample=None, progress=False)
    assert (report.damaged, len(report.source_changed)) == ([], 1)
    assert f"the {what} are others now" in str(report)


def test_the_receipts_of_a_copy_hold_without_its_source(tmp_path: Path) -> None:
    source, _ = _zarr_source(tmp_path)
    to_zarr(_of_zarr(source, WHOLE), tmp_path / "out.zarr", **COPY)
    source.rename(tmp_path / "elsewhere")
    assert verify_export(tmp_path / "out.zarr", sample=None, source=False, progress=False).ok
    (tmp_path / "out.zarr" / "0" / "c" / "0" / "1" / "1").unlink()
    report = verify_export(tmp_path / "out.zarr", sample=None, source=False, progress=False)
    assert len(report.damaged) == 1


@pytest.mark.parametrize("codec", ["auto", "zstd:1", "gzip:2"])
def test_runs_of_earlier_versions_go_on_with_hashes_of_voxels(codec: str, tmp_path: Path) -> None:
    source, data = _zarr_source(tmp_path, codec="zstd:1" if codec == "auto" else codec)
    out = tmp_path / "out.zarr"
    options = ZarrOptions(chunks=(32, 32, 32), codec=codec)
    earlier = ZarrExport(_of_zarr(source, WHOLE), out, options, copies=False)
    assert execute(earlier, RunOptions(progress=False)).ok
    assert verify_export(out, sample=None, progress=False).ok
    file = out / "0" / "c" / "0" / "1" / "1"
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    assert verify_export(out, sample=None, source=False, progress=False).damaged
    report = to_zarr(_of_zarr(source, WHOLE), out, codec=codec, repair=True, **COPY)
    assert not any("copied" in note for note in report.notes)
    assert file.read_bytes() == content
    assert verify_export(out, sample=None, progress=False).ok
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[...].T, data)


def test_chunks_that_are_stored_otherwise_than_planned_are_decoded(tmp_path: Path) -> None:
    source, data = _zarr_source(tmp_path)
    plan = plan_export(ZarrExport(_of_zarr(source, WHOLE), tmp_path / "out.zarr", ZarrOptions(chunks=(32, 32, 32))))
    shutil.rmtree(source / "0")
    big = zarr.create_array(
        source / "0", shape=(32, 64, 64), chunks=(32, 32, 32), dtype="uint64", fill_value=0,
        compressors=[ZstdCodec(level=1)], serializer=BytesCodec(endian="big"),
    )  # fmt: skip
    big[...] = data.T
    report = plan.run(progress=False)
    assert report.ok
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")[...].T, data)
    assert verify_export(tmp_path / "out.zarr", sample=None, progress=False).ok


@pytest.mark.parametrize("level", [None, -1, 2.5])
def test_chunks_of_a_source_that_says_no_level_of_its_codec_are_decoded(level: Any, tmp_path: Path) -> None:
    source, data = _zarr_source(tmp_path, codec="gzip:2")
    file = source / "0" / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["codecs"][-1]["configuration"] = {"level": level}
    file.write_text(json.dumps(metadata))
    report = to_zarr(_of_zarr(source, WHOLE), tmp_path / "out.zarr", **COPY)
    assert not any("copied" in note for note in report.notes)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")[...].T, data)
