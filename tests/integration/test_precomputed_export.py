"""Exported precomputed volumes are read by CloudVolume, tensorstore and ImageryClient."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from cloudfiles import CloudFiles
from cloudvolume import CloudVolume
from distributed import Client
from numpy.typing import NDArray
from support.streams import without_dashboard
from support.volumes import coordinate_volume, delete_chunks, random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient, to_precomputed, to_zarr, verify_export
from imagery_dask.cli.main import commands
from imagery_dask.errors import BlockFailedError
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.precomputed.precomputed_level import PrecomputedLevel
from imagery_dask.export.precomputed.precomputed_options import PrecomputedOptions
from imagery_dask.export.precomputed.to_precomputed import PrecomputedExport
from imagery_dask.kernels import downsample
from imagery_dask.sources import handle
from imagery_dask.storage.atomic_files import Files

SHAPE = (75, 60, 29)
OFFSET = (-33, 101, 7)
NM = (4.3, 4.3, 13)
CHUNKS = (32, 32, 16)
PLACEMENT: dict[str, Any] = {
    "resolution_nm": NM,
    "translation_nm": [(first + 0.5) * size for first, size in zip(OFFSET, NM, strict=True)],
}
OPTIONS: dict[str, Any] = {"chunks": CHUNKS, "block_mib": 0.1, "progress": False}


def read(url: Any, mip: int = 0, folder: str = "") -> NDArray[Any]:
    """Read a mip with CloudVolume, x, y, z(, c)."""
    text = str(url) if "://" in str(url) else f"file://{url}"
    voxels = np.asarray(CloudVolume(f"{text}/{folder}".rstrip("/"), mip=mip, progress=False)[:])
    return voxels if voxels.shape[3] > 1 else voxels[..., 0]


def read_with_client(url: Any, labels: bool = False) -> NDArray[Any]:
    """Read mip 0 with an ImageryClient."""
    handle._volumes.clear()
    path = str(url) if "://" in str(url) else f"precomputed://file://{url}"
    if labels:
        volume = ImageryClient(segmentation_source=path).segmentation_volume()
    else:
        volume = ImageryClient(image_source=path).image_volume()
    return np.asarray(volume.transpose("x", "y", "z", ...).values)


def read_tensorstore(path: Path, mip: int = 0) -> tuple[NDArray[Any], list[int], list[float]]:
    """Read a mip with tensorstore; return voxels, the first voxel and the voxel size in nm."""
    ts = pytest.importorskip("tensorstore", reason="needs tensorstore")
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{path}/"}, "scale_index": mip}
    volume = ts.open(spec, read=True).result()
    assert volume.domain.labels == ("x", "y", "z", "channel")
    units = [unit.multiplier for unit in volume.dimension_units[:3]]
    voxels = volume.read().result()
    return voxels if voxels.shape[3] > 1 else voxels[..., 0], list(volume.domain.origin[:3]), units


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return smooth_image(SHAPE)


@pytest.fixture(scope="module")
def ids() -> NDArray[np.uint64]:
    labels = random_labels(SHAPE, n=40)
    assert labels.max() > 2**53
    return labels


def client_of(folder: Path, image: Any, ids: Any, **options: Any) -> ImageryClient:
    geometry = {"resolution": NM, "voxel_offset": OFFSET, **options}
    return ImageryClient(
        image_source=write_volume(folder / "image", image, **geometry),
        segmentation_source=write_volume(
            folder / "ids", ids, layer_type="segmentation", encoding="compressed_segmentation", **geometry
        ),
    )


# ----------------------------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize(
    ("kind", "encoding", "options", "tolerance"),
    [
        ("image", "raw", {}, 0),
        ("image", "raw", {"compress": "gzip"}, 0),
        ("image", "raw", {"compress": "br"}, 0),
        ("image", "png", {}, 0),
        ("image", "png", {"quality": 9}, 0),
        ("image", "jpeg", {}, 24),
        ("image", "jpeg", {"quality": 95}, 8),
        ("image", "jxl", {}, 24),
        ("image", "jxl", {"quality": 100}, 0),
        ("rgb", "raw", {}, 0),
        ("rgb", "jpeg", {"quality": 95}, 30),
        ("rgb", "png", {}, 0),
        ("uint16", "raw", {}, 0),
        ("uint16", "png", {}, 0),
        ("uint16 of channels", "png", {"quality": 1}, 0),
        ("float32", "raw", {}, 0),
        ("ids", "compressed_segmentation", {}, 0),
        ("ids", "compressed_segmentation", {"compress": "gzip"}, 0),
        ("ids", "raw", {}, 0),
        ("ids", "compresso", {}, 0),
        ("ids", "crackle", {}, 0),
        ("ids32", "compressed_segmentation", {}, 0),
        ("ids16", "compresso", {}, 0),
        ("ids of channels", "raw", {}, 0),
    ],
    ids=str,
)
def test_every_encoding_is_read_by_other_programs(
    tmp_path: Path, image: Any, ids: Any, kind: str, encoding: str, options: Any, tolerance: int
) -> None:
    voxels: NDArray[Any] = {
        "image": lambda: image,
        "rgb": lambda: smooth_image((*SHAPE, 3)),
        "uint16": lambda: coordinate_volume(SHAPE, dtype=np.uint16),
        "uint16 of channels": lambda: coordinate_volume((*SHAPE, 3), dtype=np.uint16),
        "float32": lambda: coordinate_volume(SHAPE, dtype=np.float32),
        "ids": lambda: ids,
        "ids32": lambda: (ids % 2**32).astype(np.uint32),
        "ids of channels": lambda: np.stack([ids, ids[::-1]], axis=3),
        "ids16": lambda: (ids % 2**16).astype(np.uint16),
    }[kind]()
    labels = kind.startswith("ids")
    data: Any = da.from_array(voxels, chunks=(32, 60, 29, *voxels.shape[3:]))
    if labels and voxels.ndim == 3:
        data = xr.DataArray(data, dims=("x", "y", "z"), name="segmentation")
    out = tmp_path / "out"
    report = to_precomputed(data, out, encoding=encoding, **PLACEMENT, **OPTIONS, **options)
    assert report.ok
    volume = CloudVolume(f"file://{out}", progress=False)
    assert (volume.encoding, volume.layer_type) == (encoding, "segmentation" if labels else "image")
    assert tuple(volume.voxel_offset) == OFFSET
    np.testing.assert_allclose(volume.resolution, NM, rtol=1e-6)
    # CloudVolume (12.15) takes the colors of a PNG or JPEG chunk for planes, and cannot read 16 bits of PNG.
    by_cloudvolume = [] if encoding in ("png", "jpeg") and kind != "image" else [read(out)]
    for read_voxels in (*by_cloudvolume, read_with_client(out, labels)):
        expected = voxels.astype(read_voxels.dtype) if labels else voxels
        assert read_voxels.shape == expected.shape
        if tolerance:
            difference = np.abs(read_voxels.astype(int) - expected.astype(int))
            assert difference.max() <= tolerance
        else:
            np.testing.assert_array_equal(read_voxels, expected)
    if encoding not in ("jxl", "compresso", "crackle") and not options.get("compress"):
        read_voxels, origin, size = read_tensorstore(out)
        assert (tuple(origin), tuple(size)) == (OFFSET, NM)
        assert np.abs(read_voxels.astype(float) - voxels.astype(float)).max() <= tolerance


@pytest.mark.parametrize("offset", [(0, 0, 0), (-1, 1, 0), (-64, -32, -16), (100_000, 3, 7)], ids=str)
def test_chunks_of_one_voxel_at_the_end_are_exact(tmp_path: Path, offset: Any) -> None:
    """The last chunks are truncated to one voxel along every axis."""
    for encoding in ("raw", "compressed_segmentation", "compresso", "crackle"):
        voxels = random_labels((33, 17, 9), n=10)
        translation_nm = [(first + 0.5) * 8 for first in offset]
        to_precomputed(
            voxels, tmp_path / encoding, chunks=(16, 8, 8), encoding=encoding, resolution_nm=(8, 8, 8),
            translation_nm=translation_nm, progress=False,
        )  # fmt: skip
        assert tuple(CloudVolume(f"file://{tmp_path / encoding}").voxel_offset) == offset
        np.testing.assert_array_equal(read(tmp_path / encoding), voxels)
    picture = smooth_image((33, 17, 9))
    for encoding, tolerance in (("png", 0), ("jpeg", 24), ("jxl", 24)):
        to_precomputed(
            picture, tmp_path / encoding, chunks=(16, 8, 8), encoding=encoding, resolution_nm=(8, 8, 8),
            translation_nm=translation_nm, progress=False,
        )  # fmt: skip
        assert np.abs(read(tmp_path / encoding).astype(int) - picture).max() <= tolerance


# -------------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("nm", [(4.3, 4.3, 13), (8, 8, 8), (8, 8, 40)], ids=str)
def test_each_mip_is_made_of_the_mip_above(tmp_path: Path, image: Any, ids: Any, nm: Any) -> None:
    offset = (-32, 104, 8)
    client = client_of(tmp_path, image, ids, resolution=nm, voxel_offset=offset)
    out = tmp_path / "out"
    bounds = [offset, [first + size for first, size in zip(offset, SHAPE, strict=True)]]
    to_precomputed(client.dataset(bounds), out, levels=3, **OPTIONS)
    for folder, voxels, labels in (("image", image, False), ("segmentation", ids, True)):
        volume = CloudVolume(f"file://{out}/{folder}", progress=False)
        assert list(volume.available_mips) == [0, 1, 2]
        above, size = voxels, np.array(nm, float)
        for mip in volume.available_mips:
            if mip:
                step = (np.array(volume.meta.resolution(mip)) / volume.meta.resolution(mip - 1)).round().astype(int)
                above = downsample(above, tuple(step), labels)
                size = size * step
            np.testing.assert_array_equal(read(out, mip, folder), above, strict=True)
            first, origin, units = read_tensorstore(out / folder, mip)
            np.testing.assert_array_equal(first, above)
            np.testing.assert_allclose(units, size)
            # Every mip begins at the position of the first voxel.
            np.testing.assert_allclose(origin * size, np.array(offset) * nm, atol=1e-6)


def test_mips_of_the_source_are_copied(tmp_path: Path) -> None:
    """Bounds need not begin at a multiple of a mip's factor."""
    shape, offset = (96, 80, 24), (-32, 64, 8)
    image, ids = coordinate_volume(shape, offset, np.uint8), random_labels(shape)
    client = client_of(tmp_path, image, ids, voxel_offset=offset, mips=3)
    bounds, out = np.array([[-27, 71, 9], [50, 130, 30]]), tmp_path / "out"
    to_precomputed(client.dataset(bounds), out, levels="source", encoding={"image": "png"}, **OPTIONS)
    for folder, source in (("image", image), ("segmentation", ids)):
        for mip in range(3):
            factor = np.array([2**mip, 2**mip, 1])
            volume = CloudVolume(f"file://{out}/{folder}", mip=mip, progress=False)
            np.testing.assert_allclose(volume.resolution, factor * NM, rtol=1e-6)
            start, stop = np.array(volume.bounds.minpt), np.array(volume.bounds.maxpt)
            assert (np.abs(start * factor - bounds[0]) < factor).all()
            assert (np.abs(stop * factor - bounds[1]) < factor).all()
            inside = tuple(slice(a, b) for a, b in zip(start - offset // factor, stop - offset // factor, strict=True))
            np.testing.assert_array_equal(read(out, mip, folder), source[:: 2**mip, :: 2**mip][inside], strict=True)


def test_levels_need_bounds_at_a_multiple_of_their_factor(tmp_path: Path, image: Any, ids: Any) -> None:
    client = client_of(tmp_path, image, ids)
    data = client.image_volume()
    with pytest.raises(ValueError, match="begin at a multiple of the coarsest level's factor"):
        to_precomputed(data, tmp_path / "out", levels=2, **OPTIONS)
    assert not (tmp_path / "out").exists()
    assert to_precomputed(data, tmp_path / "out", levels=1, **OPTIONS).ok


# ----------------------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize("levels", [1, 3])
def test_int64_is_stored_as_uint64(tmp_path: Path, ids: Any, levels: int) -> None:
    signed = ids.astype(np.int64)
    to_precomputed(signed, tmp_path / "out", levels=levels, resolution_nm=(8, 8, 8), translation_nm=(4, 4, 4),
                   **OPTIONS)  # fmt: skip
    assert CloudVolume(f"file://{tmp_path}/out").dtype == "uint64"
    np.testing.assert_array_equal(read(tmp_path / "out"), ids, strict=True)


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8"])
def test_negative_ids_are_refused_or_fail_their_block(tmp_path: Path, dtype: str) -> None:
    voxels = np.full(SHAPE, np.iinfo(dtype).max - 5, dtype)
    voxels[70, 50, 20] = -3
    signed = xr.DataArray(voxels, dims=("x", "y", "z"), name="segmentation")
    with pytest.raises(ValueError, match="holds -3: ids are not negative"):
        to_precomputed(signed, tmp_path / "out", **PLACEMENT, **OPTIONS)
    assert not (tmp_path / "out").exists()
    signed = signed.chunk(32)  # values of a lazy array are not known at the call
    with pytest.raises(BlockFailedError, match="Id -3 is negative") as caught:
        to_precomputed(signed, tmp_path / "out", **PLACEMENT, **OPTIONS)
    assert caught.value.report.failures == 1
    assert caught.value.report.done > 0


def test_a_url_may_begin_with_precomputed(tmp_path: Path, image: Any) -> None:
    to_precomputed(
        image, f"precomputed://file://{tmp_path}/out", encoding="jpeg", quality=np.int64(90), **PLACEMENT, **OPTIONS
    )
    assert np.abs(read(tmp_path / "out").astype(int) - image).max() <= 8


def test_masks_are_written_as_a_segmentation(tmp_path: Path, ids: Any) -> None:
    mask = ids == ids.max()
    to_precomputed(mask, tmp_path / "out", **PLACEMENT, **OPTIONS)
    volume = CloudVolume(f"file://{tmp_path}/out", progress=False)
    assert (volume.layer_type, volume.dtype, volume.encoding) == ("segmentation", "uint8", "raw")
    np.testing.assert_array_equal(read(tmp_path / "out"), mask.astype(np.uint8), strict=True)


@pytest.mark.parametrize("folder_name", ["segment_properties", "props", "deep/er/props", "../beside"])
def test_segment_properties_are_copied_into_the_volume(tmp_path: Path, ids: Any, folder_name: str) -> None:
    """Their folder lies within the new volume, whatever its name in the source."""
    (tmp_path / "source").mkdir()
    path = write_volume(tmp_path / "source" / "ids", ids, resolution=NM, voxel_offset=OFFSET, layer_type="segmentation")
    properties = {
        "@type": "neuroglancer_segment_properties",
        "inline": {"ids": [str(ids.max())], "properties": [{"id": "label", "type": "label", "values": ["one"]}]},
    }
    info = json.loads((tmp_path / "source" / "ids" / "info").read_text())
    (tmp_path / "source" / "ids" / "info").write_text(json.dumps(info | {"segment_properties": folder_name}))
    folder = (tmp_path / "source" / "ids" / folder_name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "info").write_text(json.dumps(properties))
    out = tmp_path / "exported" / "out"
    data = ImageryClient(segmentation_source=path).segmentation_volume()
    for overwrite in (False, True):
        to_precomputed(data, out, overwrite=overwrite, **OPTIONS)
        assert {entry.name for entry in (tmp_path / "exported").iterdir()} == {"out", "out.receipts"}
        exported_name = json.loads((out / "info").read_text())["segment_properties"]
        assert (out / exported_name).resolve().is_relative_to(out)
        assert json.loads((out / exported_name / "info").read_text()) == properties


# ---------------------------------------------------------------------------------------------------------- provenance


def test_provenance_is_read_by_cloudvolume(tmp_path: Path, image: Any, ids: Any) -> None:
    client = client_of(tmp_path, image, ids)
    delete_chunks(client.image_source, 0, lambda start: start == OFFSET)
    out = tmp_path / "out"
    to_precomputed(client.image_volume(), out, **OPTIONS)
    provenance = CloudVolume(f"file://{out}", progress=False).provenance
    assert provenance.sources == [client.image_source]
    (step,) = provenance.processing
    method = step["method"]
    assert method["task"] == "imagery_dask.to_precomputed"
    record = method["imagery_dask"]
    assert record["bounds_voxels"] == [list(OFFSET), [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]]
    assert (record["mip"], record["resolution_nm"], record["source_chunks_missing"]) == (0, list(NM), 1)
    assert record["blocks_failed"] == 0
    assert record["created"] <= record["finished"]
    assert (step["date"], step["by"]) == (record["created"], "")


# ------------------------------------------------------------------------------------------------------------ refusals


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


GREY = np.zeros((8, 8, 8), np.uint8)
IDS = np.full((8, 8, 8), 2**60, np.uint64)
REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "jpeg labels": (IDS, {"encoding": "jpeg"}, ValueError, "The encoding of labels is one of"),
    "compresso imagery": (GREY, {"encoding": "compresso"}, ValueError, "The encoding of imagery is one of"),
    "jpeg of 16 bit": (GREY.astype(np.uint16), {"encoding": "jpeg"}, ValueError, "jpeg cannot hold uint16"),
    "jxl of colors": (np.zeros((8, 8, 8, 3), np.uint8), {"encoding": "jxl"}, ValueError, "jxl cannot hold"),
    "cseg of channels": (
        np.zeros((8, 8, 8, 2), np.uint64),
        {"encoding": "compressed_segmentation"},
        ValueError,
        "2 channels",
    ),
    "compresso of channels": (np.zeros((8, 8, 8, 2), np.uint64), {"encoding": "compresso"}, ValueError, "2 channels"),
    "crackle of channels": (np.zeros((8, 8, 8, 2), np.uint64), {"encoding": "crackle"}, ValueError, "2 channels"),
    "encoding that is no text": (GREY, {"encoding": 5}, ValueError, "encoding"),
    "encoding of nothing": (GREY, {"encoding": {"img": "jpeg"}}, ValueError, "img"),
    "float64": (GREY.astype(float), {}, TypeError, "got float64"),
    "no resolution": (GREY, {"resolution_nm": None, "translation_nm": None}, ValueError, "pass resolution_nm"),
    "half a voxel": (GREY, {"translation_nm": (0, 0, 0)}, ValueError, "centre of the first voxel"),
    "no translation": (GREY, {"translation_nm": None}, ValueError, "centre of the first voxel"),
    "bad compress": (GREY, {"compress": "zstd"}, ValueError, "compress must be"),
    "compress that is no word": (GREY, {"compress": ["gzip"]}, ValueError, "compress must be"),
    "quality above 100": (GREY, {"encoding": "jpeg", "quality": 101}, ValueError, "quality"),
    "quality of png": (GREY, {"encoding": "png", "quality": 80}, ValueError, "quality"),
    "quality in words": (GREY, {"encoding": "jpeg", "quality": "high"}, ValueError, "quality"),
    "quality of raw": (GREY, {"encoding": "raw", "quality": 80}, ValueError, "quality"),
    "chunks": (GREY, {"chunks": (0, 8, 8)}, ValueError, "chunks"),
    "levels": (GREY, {"levels": 0}, ValueError, "levels must be"),
    "levels of no source": (GREY, {"levels": "source"}, ValueError, "levels='source'"),
    "block size": (GREY, {"block_mib": -1}, ValueError, "block_mib"),
    "text": ("image", {}, TypeError, "Expected a dask or numpy array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_data_and_options_are_refused(tmp_path: Path, case: str) -> None:
    data, options, error, message = REFUSED[case]
    arguments = {"resolution_nm": (8, 8, 8), "translation_nm": (4, 4, 4), "progress": False} | options
    with pytest.raises(error, match=message) as caught:
        to_precomputed(data, tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_existing_files_are_not_touched(tmp_path: Path, image: Any) -> None:
    volume, foreign, mixed = tmp_path / "volume", tmp_path / "foreign", tmp_path / "mixed"
    for folder in (volume, mixed):
        to_precomputed(image, folder, **PLACEMENT, **OPTIONS)
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years")
    (mixed / "thesis.txt").write_text("years")
    before = contents(tmp_path)
    for folder, overwrite, message in (
        (volume, False, "exists already"),
        (foreign, False, "is not a precomputed volume"),
        (foreign, True, "is not a precomputed volume"),
        (mixed, True, r"holds 'thesis\.txt'"),
    ):
        with pytest.raises(FileExistsError, match=message):
            to_precomputed(255 - image, folder, overwrite=overwrite, **PLACEMENT, **OPTIONS)
    assert contents(tmp_path) == before


def test_the_old_volume_stays_until_its_replacement_is_complete(tmp_path: Path, image: Any, threads: Client) -> None:
    out = tmp_path / "out"
    to_precomputed(image, out, levels=1, compress="gzip", **PLACEMENT, **OPTIONS)
    before = contents(out)

    class Stopped(Exception):
        pass

    def stop(report: Any) -> None:
        assert contents(out) == before
        raise Stopped

    with pytest.raises(Stopped):
        to_precomputed(255 - image, out, overwrite=True, cluster=threads, **PLACEMENT, **(OPTIONS | {"progress": stop}))
    assert contents(out) == before
    # The volume that is replaced may not be the one that is read.
    source = ImageryClient(image_source=f"precomputed://file://{out}").image_volume()
    with pytest.raises(FileExistsError, match="which the export reads: it would be overwritten"):
        to_precomputed(255 - source, out, overwrite=True, cluster=threads, **OPTIONS)
    assert contents(out) == before
    to_precomputed(255 - image, out, overwrite=True, cluster=threads, **PLACEMENT, **OPTIONS)
    np.testing.assert_array_equal(read(out), 255 - image)
    assert not [name for name in contents(out) if name.endswith((".gz", ".partial"))]


def test_a_late_task_does_not_create_the_deleted_folder_again(tmp_path: Path, image: Any) -> None:
    level = PrecomputedLevel(
        Files.at(tmp_path / "gone"), "8_8_8", (0, 0, 0), SHAPE, CHUNKS, "raw", "uint8", 1, compress=None, quality=None
    )
    with pytest.raises(FileNotFoundError):
        level.write((slice(0, SHAPE[0]), slice(0, SHAPE[1]), slice(0, SHAPE[2])), image)
    assert not (tmp_path / "gone").exists()


def test_channels_of_ids_are_raw_by_default(tmp_path: Path, ids: Any) -> None:
    both = np.stack([ids, ids[::-1]], axis=3)
    to_precomputed(both, tmp_path / "out", **PLACEMENT, **OPTIONS)
    np.testing.assert_array_equal(read(tmp_path / "out"), both, strict=True)


# --------------------------------------------------------------------------------------------------- targets, inputs


def test_a_volume_is_written_to_a_bucket_and_protected(s3_server: Any, ids: Any, image: Any) -> None:
    pytest.importorskip("obstore")
    bucket = f"t-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(bucket)
    with s3_server.environment():
        url = f"s3://{bucket}/some/ids"
        to_precomputed(ids, url, **PLACEMENT, **OPTIONS)
        np.testing.assert_array_equal(read(url), ids, strict=True)
        np.testing.assert_array_equal(read_with_client(f"precomputed://{url}", labels=True), ids.astype(np.int64))
        with s3_server._closing_client() as client:
            listed = client.list_objects_v2(Bucket=bucket, Prefix="some/ids/4.3_4.3_13/")["Contents"]
            head = client.head_object(Bucket=bucket, Key=listed[0]["Key"])
            assert len(listed) == 3 * 2 * 2
            assert head["ContentEncoding"] == "gzip"
        with pytest.raises(FileExistsError):
            to_precomputed(image, url, encoding="png", **PLACEMENT, **OPTIONS)
        to_precomputed(image, url, overwrite=True, compress=None, **PLACEMENT, **OPTIONS)
        np.testing.assert_array_equal(read(url), image, strict=True)


def test_a_volume_in_memory_is_written_by_this_process_only(ids: Any, processes: Client) -> None:
    name = f"memory://t-{uuid.uuid4().hex[:12]}/ids"
    cloud = name.replace("memory", "mem")
    to_precomputed(ids, name, **PLACEMENT, **OPTIONS)
    np.testing.assert_array_equal(read(cloud), ids, strict=True)
    with pytest.raises(FileExistsError):
        to_precomputed(ids[:40], name, **PLACEMENT, **OPTIONS)
    to_precomputed(ids[:40], name, overwrite=True, **PLACEMENT, **OPTIONS)
    np.testing.assert_array_equal(read(cloud), ids[:40], strict=True)
    with pytest.raises(ValueError, match="memory of this process"):
        to_precomputed(ids, f"memory://t-{uuid.uuid4().hex[:12]}/ids", cluster=processes, **PLACEMENT, **OPTIONS)
    files = CloudFiles(cloud)
    files.delete(list(files.list()))


def test_two_volumes_may_share_a_memory_bucket(ids: Any) -> None:
    bucket = f"memory://t-{uuid.uuid4().hex[:12]}"
    for name in ("one", "two"):
        to_precomputed(ids, f"{bucket}/{name}", **PLACEMENT, **OPTIONS)


def test_worker_processes_write_the_same_voxels(tmp_path: Path, image: Any, ids: Any, processes: Client) -> None:
    client = client_of(tmp_path, image, ids)
    bounds = [[-30, 105, 8], [40, 150, 36]]
    part = np.s_[3:73, 4:49, 1:29]
    report = to_precomputed(client.dataset(bounds), tmp_path / "out", cluster=processes, **OPTIONS)
    assert report.blocks > 4
    np.testing.assert_array_equal(read(tmp_path / "out", folder="image"), image[part], strict=True)
    np.testing.assert_array_equal(read(tmp_path / "out", folder="segmentation"), ids[part], strict=True)


def test_an_array_computed_from_a_cutout_is_written(tmp_path: Path, image: Any, ids: Any, processes: Client) -> None:
    client = client_of(tmp_path, image, ids)
    bounds = [OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]]
    array = client.image_cutout(bounds).map_blocks(lambda block: 255 - block, dtype=np.uint8)
    to_precomputed(array, tmp_path / "out", cluster=processes, **PLACEMENT, **OPTIONS)
    np.testing.assert_array_equal(read(tmp_path / "out"), 255 - image, strict=True)
    assert tuple(CloudVolume(f"file://{tmp_path}/out").voxel_offset) == OFFSET


def test_failed_blocks_are_recorded_in_the_provenance(tmp_path: Path, image: Any) -> None:
    path = write_volume(tmp_path / "em", image, resolution=NM, voxel_offset=OFFSET, chunk_size=CHUNKS)
    delete_chunks(path, 0, lambda start: start == OFFSET)
    data = ImageryClient(image_source=path, missing="error").image_volume()
    with pytest.raises(BlockFailedError) as caught:
        to_precomputed(data, tmp_path / "out", **OPTIONS)
    (step,) = CloudVolume(f"file://{tmp_path}/out").provenance.processing
    assert step["method"]["imagery_dask"]["blocks_failed"] == caught.value.report.failures == 1


# -------------------------------------------------------------------------------------------------------- command line


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], threads: Client) -> Run:
    """Run the command line in this process, on threads; return exit code and stderr."""
    from imagery_dask.cli import main

    def call(*arguments: Any) -> tuple[int, str]:
        address = threads.scheduler_info()["address"]
        monkeypatch.setattr(sys, "argv", ["imagery-dask", *map(str, arguments), "--cluster", address])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), without_dashboard(capfd.readouterr().err)

    return call


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, image: Any, ids: Any) -> list[Any]:
    client = client_of(tmp_path_factory.mktemp("sources"), image, ids)
    return [
        "--image-source", client.image_source, "--segmentation-source", client.segmentation_source,
        "--bounds", -32, 104, 8, 40, 160, 36,
    ]  # fmt: skip


PART = np.s_[1:73, 3:59, 1:29]


@pytest.mark.parametrize(
    ("image_encoding", "label_encoding", "options", "tolerance"),
    [
        ("jpeg", "compresso", ("--quality", 95), 8),
        ("png", "crackle", ("--compress", "gzip"), 0),
        ("jxl", "raw", ("--compress", "br", "--levels", 2), 24),
        ("raw", "compressed_segmentation", ("--levels", "auto", "--block-mib", 0.1), 0),
    ],
)
def test_options_of_the_command_choose_encoding_and_compression(
    run: Run, tmp_path: Path, sources: list[Any], image: Any, ids: Any, image_encoding: str, label_encoding: str,
    options: Any, tolerance: int,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    code, error = run(
        "export", "precomputed", out, *sources, "--image-encoding", image_encoding, "--segmentation-encoding",
        label_encoding, "--chunks", "32,32,16", *options,
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert np.abs(read(out, folder="image").astype(int) - image[PART]).max() <= tolerance
    np.testing.assert_array_equal(read(out, folder="segmentation"), ids[PART], strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image-encoding", "gif"), "'gif' is not one of"),
        (("--quality", 101), "101 is not in the range"),
        (("--image-encoding", "png", "--quality", 50), "quality"),
        (("--compress", "zip"), "'zip' is not one of"),
        (("--levels", 0), "not a number of levels"),
        (("--levels", 5), "begin at a multiple"),
        (("--levels", "source"), "no mip coarser"),
        (("--chunks", "1,2"), "not three whole numbers"),
        (("--block-mib", 0), "Invalid value for '--block-mib'"),
    ],
    ids=str,
)
def test_invalid_values_are_named(run: Run, tmp_path: Path, sources: list[Any], options: Any, message: str) -> None:
    code, error = run("export", "precomputed", tmp_path / "out", *sources, *options)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("Error")]) == 1
    assert not (tmp_path / "out").exists()


def test_a_store_of_another_format_is_not_overwritten(tmp_path: Path, image: Any) -> None:
    to_zarr(image, tmp_path / "out", progress=False)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="is not a precomputed volume"):
        to_precomputed(image, tmp_path / "out", overwrite=True, **PLACEMENT, **OPTIONS)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("folder", ["image", "segmentation"])
def test_a_volume_with_a_foreign_folder_is_not_replaced(tmp_path: Path, folder: str) -> None:
    to_precomputed(np.ones((8, 8, 8), np.uint8), tmp_path / "o", progress=False, **PLACEMENT)
    foreign = tmp_path / "o" / folder / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds '{folder}'"):
        to_precomputed(np.ones((8, 8, 8), np.uint8), tmp_path / "o", overwrite=True, progress=False, **PLACEMENT)
    assert foreign.read_text() == "mine"


@pytest.mark.parametrize("encoding", ["compressed_segmentation", "compresso", "crackle"])
def test_label_encodings_refuse_several_channels(tmp_path: Path, encoding: str) -> None:
    ids = np.ones((8, 8, 8, 3), np.uint64)
    with pytest.raises(ValueError, match=f"{encoding} cannot hold uint64 with 3 channels"):
        to_precomputed(ids, tmp_path / "o", encoding=encoding, progress=False, **PLACEMENT)
    assert not (tmp_path / "o").exists()
    to_precomputed(ids, tmp_path / "o", progress=False, **PLACEMENT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "jpeg", "quality": -5}, "quality of jpeg must be a whole number from .* to 100"),
        ({"encoding": "png", "quality": 50}, "quality of png must be a whole number from .* to 9"),
        ({"encoding": {"imagery": "jpeg"}}, "encoding names .*imagery"),
    ],
)
def test_invalid_options_write_nothing(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_precomputed(np.ones((8, 8, 8), np.uint8), tmp_path / "o", progress=False, **PLACEMENT, **options)
    assert not (tmp_path / "o").exists()


@pytest.mark.long
def test_the_command_line_writes_small_ids(tmp_path: Path) -> None:
    source = write_volume(tmp_path / "seg", np.ones((16, 16, 16), np.uint16), layer_type="segmentation")
    bounds = [str(value) for value in (0, 0, 0, 16, 16, 16)]
    arguments = ["export", "precomputed", str(tmp_path / "o"), "--segmentation-source", source, "--bounds", *bounds]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["image", "segmentation"])
def test_a_dataset_of_one_variable_is_written_to_the_target(tmp_path: Path, ids: Any, name: str) -> None:
    data = xr.Dataset({name: xr.DataArray(ids, dims=("x", "y", "z"))})
    to_precomputed(data, tmp_path / "out", **PLACEMENT, **OPTIONS)
    np.testing.assert_array_equal(read(tmp_path / "out"), ids)
    assert not (tmp_path / "out" / name).exists()


def test_an_export_that_was_begun_in_a_folder_is_resumed_there(tmp_path: Path, ids: Any) -> None:
    data, url = xr.Dataset({"segmentation": xr.DataArray(ids, dims=("x", "y", "z"))}), tmp_path / "out"
    options = PrecomputedOptions(chunks=(32, 32, 16), **PLACEMENT)
    before = PrecomputedExport(data, url, options, in_root=False)
    execute(before, RunOptions(progress=False))
    assert not (url / "info").exists()
    report = to_precomputed(data, url, chunks=(32, 32, 16), progress=False, **PLACEMENT)
    assert (report.before, report.blocks) == (report.blocks, report.blocks)
    assert not (url / "info").exists()
    np.testing.assert_array_equal(read(url / "segmentation"), ids)
    verify_export(url)
    to_precomputed(data, url, chunks=(32, 32, 16), progress=False, overwrite=True, **PLACEMENT)
    np.testing.assert_array_equal(read(url), ids)
