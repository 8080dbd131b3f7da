"""Exports to sharded precomputed volumes: when shards are chosen, encodings, buckets, resuming, repair, older runs."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from cloudvolume import CloudVolume
from distributed import Client
from numpy.typing import NDArray
from support.stopping import Stopped, stop
from support.volumes import coordinate_volume, delete_chunks, random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient, to_precomputed, verify_export
from imagery_dask.cli.main import commands
from imagery_dask.cluster import WorkerResources
from imagery_dask.config import config
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.planning.estimate import plan_export
from imagery_dask.export.precomputed import to_precomputed as module
from imagery_dask.export.precomputed.precomputed_options import PrecomputedOptions
from imagery_dask.export.precomputed.to_precomputed import PrecomputedExport
from imagery_dask.export.registry import export_of, read_plan

SHAPE = (75, 60, 29)
OFFSET = (-32, 100, 8)
NM = (4, 4, 40)
CHUNKS = (16, 16, 8)
PLACEMENT: dict[str, Any] = {
    "resolution_nm": NM,
    "translation_nm": [(first + 0.5) * size for first, size in zip(OFFSET, NM, strict=True)],
}
OPTIONS: dict[str, Any] = {"chunks": CHUNKS, "block_mib": 0.01, "progress": False}
#: Shards of 2 x 2 x 2 chunks.
SMALL = {"preshift_bits": 2, "minishard_bits": 1, "shard_bits": 6, "minishard_index_encoding": "gzip"}


def read(url: Any, mip: int = 0) -> NDArray[Any]:
    """Read a mip with CloudVolume, x, y, z(, c)."""
    text = str(url) if "://" in str(url) else f"file://{url}"
    voxels = np.asarray(CloudVolume(text, mip=mip, progress=False)[:])
    return voxels if voxels.shape[3] > 1 else voxels[..., 0]


def read_tensorstore(path: Path, mip: int = 0) -> NDArray[Any]:
    ts = pytest.importorskip("tensorstore", reason="needs tensorstore")
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{path}/"}, "scale_index": mip}
    voxels: NDArray[Any] = ts.open(spec, read=True).result().read().result()
    return voxels if voxels.shape[3] > 1 else voxels[..., 0]


def scales(folder: Path) -> list[dict[str, Any]]:
    scales: list[dict[str, Any]] = json.loads((folder / "info").read_bytes())["scales"]
    return scales


def names_in(folder: Path) -> set[str]:
    """Return the names of the files of chunks and shards of all mips."""
    return {file.name for scale in scales(folder) for file in (folder / scale["key"]).iterdir()}


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return smooth_image(SHAPE)


@pytest.fixture(scope="module")
def ids() -> NDArray[np.uint64]:
    labels = random_labels(SHAPE, n=40)
    assert labels.max() > 2**53
    return labels


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make exports of more than 100 chunks large, and shards small."""
    monkeypatch.setattr(module, "CHUNKS_UNSHARDED", 100)
    for name in ("LARGEST_SHARD", "LARGEST_HELD_SHARD"):
        monkeypatch.setattr(module, name, 2**17)


# ------------------------------------------------------------------------------------------------------- what is chosen


def test_shards_are_chosen_where_they_save_many_files(tmp_path: Path, ids: Any, few_files: None) -> None:
    report = to_precomputed(ids, tmp_path / "many", levels=2, **PLACEMENT, **OPTIONS)
    first, second = (scale["sharding"] for scale in scales(tmp_path / "many"))
    # 5 x 4 x 4 chunks of 16 KiB.
    assert first == {
        "@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 3, "minishard_bits": 0,
        "shard_bits": 4, "minishard_index_encoding": "gzip", "data_encoding": "raw",
    }  # fmt: skip
    assert (second["preshift_bits"], second["shard_bits"]) == (3, 2)
    assert all(name.endswith(".shard") for name in names_in(tmp_path / "many"))
    np.testing.assert_array_equal(read(tmp_path / "many"), ids)
    (note,) = (note for note in report.notes if "lie in" in note)
    assert note.startswith("image: 104 chunks lie in 16 shards, which a task writes as a whole")

    to_precomputed(ids[:64], tmp_path / "few", **PLACEMENT, **OPTIONS)
    assert "sharding" not in scales(tmp_path / "few")[0]
    to_precomputed(ids, tmp_path / "none", levels=2, sharding=None, **PLACEMENT, **OPTIONS)
    assert "sharding" not in scales(tmp_path / "none")[0]
    for mip in (0, 1):
        np.testing.assert_array_equal(read(tmp_path / "many", mip), read(tmp_path / "none", mip))
    # Brotli is not in the format of shards.
    to_precomputed(ids, tmp_path / "br", levels=2, compress="br", **PLACEMENT, **OPTIONS)
    assert "sharding" not in scales(tmp_path / "br")[0]


def test_the_plan_says_how_many_files_there_will_be(tmp_path: Path, ids: Any, few_files: None) -> None:
    for sharding, files in (("auto", 16), (None, 104)):
        options = PrecomputedOptions(chunks=CHUNKS, levels=2, sharding=sharding, **PLACEMENT)
        planned = plan_export(PrecomputedExport(ids, tmp_path / "out", options), samples=1)
        assert dict(planned.rows())["to write"].endswith(f"in at most {files + 2} files")
        assert any("104 chunks lie in 16 shards" in note for note in planned.notes) == (sharding == "auto")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_shards_of_what_is_read_part_by_part_may_be_larger(tmp_path: Path, image: Any) -> None:
    """A task holds blocks that are computed, and a layer of those that are only read."""
    source = write_volume(tmp_path / "em", image, voxel_offset=OFFSET, resolution=NM)
    cutout = ImageryClient(image_source=source).image_volume().data
    bits = []
    for data in (cutout, cutout + 1):
        options = PrecomputedOptions(chunks=(1, 1, 1), sharding="auto", **PLACEMENT)
        export = PrecomputedExport(data, tmp_path / "out", options)
        (scale,) = export.layers[0].info["scales"]
        bits.append(scale["sharding"]["preshift_bits"] + scale["sharding"]["minishard_bits"])
    assert bits == [18, 18]  # all of its ids
    chosen = [
        module.Sharding.chosen((1000, 1000, 1000), 2**21, most, "raw").chunk_bits
        for most in (module.LARGEST_SHARD, module.LARGEST_HELD_SHARD)
    ]
    assert chosen == [9, 6]


@pytest.mark.long
def test_tasks_hold_a_part_of_large_shards(tmp_path: Path) -> None:
    source, size = tmp_path / "em", (8192, 8192, 8192)
    info = CloudVolume.create_new_info(1, "image", "uint8", "raw", NM, OFFSET, size, chunk_size=(128, 128, 128))
    source.mkdir()
    (source / "info").write_text(json.dumps(info))
    data = ImageryClient(image_source=f"precomputed://file://{source}").image_volume().data
    export = PrecomputedExport(data, tmp_path / "out", PrecomputedOptions(levels=3))
    plan = export.plan(WorkerResources(2, int(1.5e9)), None)
    first, *others = (part.blocks for stage in plan.stages for part in stage)
    assert (first.largest, first.part, first.reads_once) == ((1024, 1024, 1024), (128, 128, 128), (True, True, True))
    assert all(blocks.part == (128, 128, 128) for blocks in others)
    assert len(others) == 2
    with pytest.raises(ValueError, match=r"a task would hold 1\.\d+ GB.*and a worker has 1 GB"):
        export.plan(WorkerResources(2, 10**9), None)
    # 262,144 chunks and two levels of them.
    assert export.format.objects(export) < 700


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharding": "always"}, "sharding must be 'auto', None, or the sharding entry of an info; got 'always'"),
        ({"sharding": SMALL | {"hash": "murmurhash3_x86_128"}}, "hash must be 'identity'"),
        ({"sharding": SMALL | {"shard_bits": 1}}, "5 x 4 x 4 chunks have ids of 7 bits.*Choose shard_bits of 4"),
        ({"sharding": SMALL, "compress": "gzip"}, "data_encoding 'raw', which says how"),
        ({"sharding": SMALL, "compress": "br"}, "data_encoding 'raw', which says how"),
    ],
)
def test_invalid_shardings_write_nothing(tmp_path: Path, ids: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_precomputed(ids, tmp_path / "o", **PLACEMENT, **OPTIONS, **options)
    assert not (tmp_path / "o").exists()


# ------------------------------------------------------------------------------------------------- encodings and levels


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "encoding", "options", "tolerance"),
    [
        ("image", "jpeg", {"quality": 95}, 8),
        ("image", "png", {}, 0),
        ("image", "jxl", {"quality": 100}, 0),
        ("rgb", "raw", {}, 0),
        ("rgb", "png", {}, 0),
        ("uint16", "png", {}, 0),
        ("ids", "compressed_segmentation", {}, 0),
        ("ids", "compresso", {}, 0),
        ("ids", "crackle", {}, 0),
    ],
)
@pytest.mark.parametrize("data_encoding", ["raw", "gzip"])
def test_every_encoding_lies_in_shards(
    tmp_path: Path, image: Any, ids: Any, kind: str, encoding: str, options: Any, tolerance: int, data_encoding: str
) -> None:
    voxels: NDArray[Any] = {
        "image": lambda: image,
        "rgb": lambda: smooth_image((*SHAPE, 3)),
        "uint16": lambda: coordinate_volume(SHAPE, dtype=np.uint16),
        "ids": lambda: ids,
    }[kind]()
    out, sharding = tmp_path / "out", SMALL | {"data_encoding": data_encoding}
    assert to_precomputed(voxels, out, encoding=encoding, sharding=sharding, **PLACEMENT, **OPTIONS, **options).ok
    assert verify_export(out, sample=None, progress=False).ok
    # CloudVolume (12.15) reads neither the colors nor the 16 bits of a PNG chunk.
    by_cloudvolume = [] if kind in ("rgb", "uint16") and encoding == "png" else [read]
    by_tensorstore = [] if encoding in ("jxl", "compresso", "crackle") else [read_tensorstore]
    for reader in (*by_cloudvolume, *by_tensorstore):
        stored = reader(out)
        assert stored.dtype == voxels.dtype
        assert np.abs(stored.astype(float) - voxels.astype(float)).max() <= tolerance
        if not tolerance:
            np.testing.assert_array_equal(stored, voxels)
    path = f"precomputed://file://{out}"
    client = ImageryClient(segmentation_source=path) if kind == "ids" else ImageryClient(image_source=path)
    own = client.segmentation_volume() if kind == "ids" else client.image_volume()
    stored = own.transpose("x", "y", "z", ...).values
    assert np.abs(stored.astype(float) - voxels.astype(float)).max() <= tolerance


def test_mips_of_the_source_lie_in_shards(tmp_path: Path, ids: Any) -> None:
    source = write_volume(
        tmp_path / "seg", ids, voxel_offset=OFFSET, resolution=NM, layer_type="segmentation", mips=2, factor=(2, 2, 1)
    )
    data = ImageryClient(segmentation_source=source).segmentation_volume()
    to_precomputed(data, tmp_path / "out", levels="source", sharding=SMALL, **OPTIONS)
    for mip in (0, 1):
        assert scales(tmp_path / "out")[mip]["sharding"]["shard_bits"] == 6
        np.testing.assert_array_equal(read(tmp_path / "out", mip), read(tmp_path / "seg", mip))


@pytest.mark.long
def test_worker_processes_write_the_same_shards(tmp_path: Path, image: Any, processes: Client) -> None:
    source = write_volume(tmp_path / "em", image, voxel_offset=OFFSET, resolution=NM)
    data = ImageryClient(image_source=source).image_volume()
    for name, cluster in {"here": None, "there": processes}.items():
        to_precomputed(data, tmp_path / name, levels=3, sharding=SMALL, cluster=cluster, **OPTIONS)
    files = {name: sorted((tmp_path / name).rglob("*.shard")) for name in ("here", "there")}
    assert len(files["here"]) == len(files["there"]) > 12
    for here, there in zip(files["here"], files["there"], strict=True):
        assert (here.name, here.read_bytes()) == (there.name, there.read_bytes())


# ---------------------------------------------------------------------------------------------------- resume and repair


@pytest.mark.long
def test_an_export_that_was_stopped_is_resumed(tmp_path: Path, ids: Any) -> None:
    options = OPTIONS | {"workers": 1, "levels": 2, "sharding": SMALL}
    with pytest.raises(Stopped), config.set({"export.small_fused_bytes": 1}):
        to_precomputed(ids, tmp_path / "out", **PLACEMENT, **options | {"progress": stop})
    key = scales(tmp_path / "out")[0]["key"]
    (tmp_path / "out" / key / ".00.shard.01234567.partial").write_bytes(b"half")
    report = to_precomputed(ids, tmp_path / "out", **PLACEMENT, **options)
    assert 3 <= report.before < report.blocks
    assert all(name.endswith(".shard") and name[0] != "." for name in names_in(tmp_path / "out"))
    np.testing.assert_array_equal(read(tmp_path / "out"), ids)
    assert verify_export(tmp_path / "out", sample=None, progress=False).ok


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_shards_are_found_and_repaired(tmp_path: Path, ids: Any, damage: str) -> None:
    out, options = tmp_path / "out", OPTIONS | {"levels": 2, "sharding": SMALL}
    to_precomputed(ids, out, **PLACEMENT, **options)
    before = {file.name: file.read_bytes() for file in out.rglob("*.shard")}
    shard = sorted((out / scales(out)[0]["key"]).glob("*.shard"))[1]
    content = bytearray(shard.read_bytes())
    content[500] ^= 1
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(content[:400] if damage == "cut" else content)
    found = verify_export(out, sample=None, progress=False)
    assert len(found.damaged) == 1
    to_precomputed(ids, out, repair=True, **PLACEMENT, **options)
    assert {file.name: file.read_bytes() for file in out.rglob("*.shard")} == before
    assert verify_export(out, sample=None, progress=False).ok


@pytest.mark.long
def test_blocks_with_missing_chunks_are_made_again(tmp_path: Path, image: Any) -> None:
    source = write_volume(tmp_path / "em", image, voxel_offset=OFFSET, resolution=NM)
    kept = {file: file.read_bytes() for file in (tmp_path / "em" / "4_4_40").iterdir()}
    delete_chunks(source, 0, lambda start: start[0] == OFFSET[0])
    data = ImageryClient(image_source=source).image_volume()
    options = OPTIONS | {"sharding": SMALL}
    assert to_precomputed(data, tmp_path / "out", **options).counts.missing
    for file, content in kept.items():
        file.write_bytes(content)
    assert not to_precomputed(data, tmp_path / "out", redo_missing=True, **options).counts.missing
    np.testing.assert_array_equal(read(tmp_path / "out"), image)


@pytest.mark.long
def test_an_older_export_that_has_begun_without_shards_goes_on_without(
    tmp_path: Path, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS | {"workers": 1, "levels": 2}
    with pytest.raises(Stopped):
        to_precomputed(ids, tmp_path / "out", **PLACEMENT, **options | {"progress": stop})
    assert "sharding" not in read_plan(tmp_path / "out").options
    monkeypatch.setattr(module, "CHUNKS_UNSHARDED", 100)
    report = to_precomputed(ids, tmp_path / "out", **PLACEMENT, **options)
    assert report.before >= 3
    assert not any(name.endswith(".shard") for name in names_in(tmp_path / "out"))
    np.testing.assert_array_equal(read(tmp_path / "out"), ids)
    assert verify_export(tmp_path / "out", sample=None, progress=False).ok


@pytest.mark.long
def test_a_plan_keeps_its_shards(tmp_path: Path, ids: Any, few_files: None) -> None:
    for name, sharding in (("auto", "auto"), ("own", SMALL)):
        to_precomputed(ids, tmp_path / name, levels=2, sharding=sharding, **PLACEMENT, **OPTIONS)
        again: Any = export_of(read_plan(tmp_path / name))
        assert again.layers[0].info["scales"] == scales(tmp_path / name)


@pytest.mark.long
def test_regions_that_had_begun_without_shards_go_on_without(
    tmp_path: Path, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_volume(tmp_path / "em", image, voxel_offset=OFFSET, resolution=NM)
    client, (x, y, z) = ImageryClient(image_source=source), OFFSET
    regions = {
        name: client.image_cutout([[x + first, y, z], [x + stop, y + SHAPE[1], z + SHAPE[2]]])
        for name, first, stop in (("a", 0, 40), ("b", 40, SHAPE[0]))
    }
    options = OPTIONS | {"workers": 1}
    with pytest.raises(Stopped):
        to_precomputed(regions, tmp_path / "out", **options | {"progress": stop})
    monkeypatch.setattr(module, "CHUNKS_UNSHARDED", 10)
    assert to_precomputed(regions, tmp_path / "out", **options).before >= 3
    assert not list((tmp_path / "out").rglob("*.shard"))
    to_precomputed(regions, tmp_path / "out", overwrite=True, **options)
    assert list((tmp_path / "out").rglob("*.shard"))
    np.testing.assert_array_equal(np.concatenate([read(tmp_path / "out" / name) for name in "ab"]), image)
    assert verify_export(tmp_path / "out", sample=None, progress=False).ok


@pytest.mark.long
def test_an_export_of_shards_is_replaced(tmp_path: Path, ids: Any) -> None:
    out = tmp_path / "out"
    execute(
        PrecomputedExport(ids, out, PrecomputedOptions(chunks=CHUNKS, sharding=SMALL, **PLACEMENT)),
        RunOptions(progress=False),
    )
    with pytest.raises(FileExistsError, match="sharding"):
        to_precomputed(ids, out, **PLACEMENT, **OPTIONS)
    to_precomputed(ids, out, overwrite=True, **PLACEMENT, **OPTIONS)
    assert not list(out.rglob("*.shard"))
    np.testing.assert_array_equal(read(out), ids)


# ------------------------------------------------------------------------------------------- buckets, the command line


@pytest.mark.long
def test_shards_are_written_to_a_bucket(s3_server: Any, ids: Any, few_files: None) -> None:
    pytest.importorskip("obstore")
    bucket = f"t-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(bucket)
    with s3_server.environment():
        url = f"s3://{bucket}/some/ids"
        to_precomputed(ids, url, levels=2, **PLACEMENT, **OPTIONS)
        info = CloudVolume(url, progress=False).info
        assert {scale["sharding"]["data_encoding"] for scale in info["scales"]} == {"gzip"}
        np.testing.assert_array_equal(read(url), ids)
        with s3_server._closing_client() as client:
            listed = client.list_objects_v2(Bucket=bucket, Prefix="some/ids/4_4_40/")["Contents"]
            assert len(listed) == 12
            head = client.head_object(Bucket=bucket, Key=listed[0]["Key"])
            assert "ContentEncoding" not in head  # so that ranges of bytes are those of the shard
        assert verify_export(url, sample=None, progress=False).ok
        volume = ImageryClient(segmentation_source=f"precomputed://{url}").segmentation_volume()
        np.testing.assert_array_equal(volume.transpose("x", "y", "z").values.astype(np.uint64), ids)


@pytest.mark.long
def test_a_dataset_counts_the_files_of_both_volumes(
    tmp_path: Path, image: Any, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNKS_UNSHARDED", 100)
    data = xr.Dataset(
        {name: (("x", "y", "z"), voxels) for name, voxels in {"image": image, "segmentation": ids}.items()}
    )
    to_precomputed(data, tmp_path / "out", **PLACEMENT, **OPTIONS)
    for name, voxels in {"image": image, "segmentation": ids}.items():
        assert "sharding" in scales(tmp_path / "out" / name)[0]
        np.testing.assert_array_equal(read(tmp_path / "out" / name), voxels)


@pytest.mark.long
@pytest.mark.parametrize(
    ("value", "is_sharded"), [("auto", False), ("none", False), (json.dumps(SMALL), True)], ids=["auto", "none", "json"]
)
def test_the_command_line_chooses_shards(tmp_path: Path, image: Any, value: str, is_sharded: bool) -> None:
    source = write_volume(tmp_path / "em", image, voxel_offset=OFFSET, resolution=NM)
    bounds = [str(n) for n in (*OFFSET, *(first + size for first, size in zip(OFFSET, SHAPE, strict=True)))]
    arguments = ["export", "precomputed", str(tmp_path / "o"), "--image-source", source, "--bounds", *bounds,
                 "--chunks", "16,16,8", "--sharding", value]  # fmt: skip
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    assert ("sharding" in scales(tmp_path / "o")[0]) == is_sharded
    np.testing.assert_array_equal(read(tmp_path / "o"), image)


@pytest.mark.parametrize(
    ("value", "message"),
    [("many", "'many' is neither auto nor none nor a JSON object"), ('{"preshift_bits": 3}', "sharding lacks"),
     ('[1]', "nor a JSON object")],
)  # fmt: skip
def test_the_command_line_names_invalid_shards(tmp_path: Path, value: str, message: str) -> None:
    arguments = ["export", "precomputed", str(tmp_path / "o"), "--sharding", value]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 2
    assert message in result.output
