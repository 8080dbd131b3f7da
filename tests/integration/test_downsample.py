"""`downsample` and its command: levels that are added to volumes of other writers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from cloudvolume import CloudVolume
from support.http_server import FileServer
from support.programs import PROGRAM, Done, environment
from support.stopping import Stopped, stop
from support.stored_volumes import RESOLUTION, write_stored
from support.volumes import coordinate_volume, delete_chunks, random_labels, sharding_spec, smooth_image, write_volume

import imagery_dask
from imagery_dask import ImageryClient, downsample, kernels, open_export, to_zarr, verify_export
from imagery_dask.errors import BlockFailedError, SourceError, TooManyMissingError
from imagery_dask.export.downsampling.additions import Additions
from imagery_dask.geometry.pyramid import pyramid
from imagery_dask.sources import open_volume

SHAPE = (131, 77, 45)
ZARR = ("zarr2", "zarr2-nested", "zarr3", "zarr3-shards")
QUIET: dict[str, Any] = {"progress": False}


def voxels_of(what: str, shape: Any = SHAPE) -> Any:
    if what == "ids":
        return random_labels(shape, above_2_63=True)
    return coordinate_volume(shape if what != "channels" else (*shape, 3), (0, 0, 0, 0)[: 3 + (what == "channels")],
                             np.uint8 if what != "uint16" else np.uint16)  # fmt: skip


def levels_of(data: Any, levels: int, ids: bool) -> list[Any]:
    """Return all levels, each of the one above."""
    made = [data]
    for level in pyramid(data.shape[:3], RESOLUTION, (0, 0, 0), levels)[1:]:
        made.append(kernels.downsample(made[-1], level.step, ids))
    return made


def multiscale_of(folder: Path) -> Any:
    attributes: Any = dict(zarr.open_group(folder, mode="r").attrs)
    return attributes.get("ome", attributes)["multiscales"][0]


def stored(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def placed(dataset: Any) -> Any:
    return {step["type"]: step[step["type"]] for step in dataset["coordinateTransformations"]}


@pytest.mark.long
@pytest.mark.parametrize("what", ["uint16", "ids", "channels"])
@pytest.mark.parametrize("kind", ZARR)
def test_levels_of_a_foreign_zarr_are_those_of_an_export_of_the_whole(tmp_path: Path, kind: str, what: str) -> None:
    folder, offset, data = tmp_path / "em", (3, -5, 7), voxels_of(what)
    write_stored(kind, folder, data, offset)
    before = stored(folder)
    report = downsample(folder, levels=4, **QUIET)
    assert report.ok
    assert report.counts.missing == 0
    after = stored(folder)
    (changed,) = (name for name, content in before.items() if after[name] != content)
    assert changed == (".zattrs" if kind.startswith("zarr2") else "zarr.json")
    centre = [(at + 0.5) * size for at, size in zip(offset, RESOLUTION, strict=True)]
    whole = tmp_path / "whole.zarr"
    ours = "0.4" if kind.startswith("zarr2") else "0.5"
    to_zarr(data, whole, levels=4, resolution_nm=RESOLUTION, translation_nm=centre, ome_version=ours, **QUIET)  # type: ignore[arg-type]
    added, made = multiscale_of(folder)["datasets"], multiscale_of(whole)["datasets"]
    assert [dataset["path"] for dataset in added] == ["s0", "downsampled/0", "downsampled/1", "downsampled/2"]
    for one, other, expected in zip(added, made, levels_of(data, 4, what == "ids"), strict=True):
        assert placed(one) == placed(other)
        array: Any = zarr.open_array(folder, path=one["path"], mode="r")
        np.testing.assert_array_equal(array[...].T, expected, strict=True)
        np.testing.assert_array_equal(zarr.open_array(whole, path=other["path"], mode="r")[...].T, expected)  # type: ignore[index]
        driver = "zarr" if kind.startswith("zarr2") else "zarr3"
        read = tensorstore.open({"driver": driver, "kvstore": f"file://{folder}/{one['path']}/"}).result().read()
        np.testing.assert_array_equal(read.result().T, expected)
    arrays: Any = [zarr.open_array(folder, path=path, mode="r") for path in ("s0", "downsampled/2")]
    first, last = arrays
    assert last.chunks[-3:] == tuple(map(min, first.chunks[-3:], last.shape[-3:]))
    assert type(last.compressors[0]) is type(first.compressors[0])


@pytest.mark.long
@pytest.mark.parametrize("what", ["uint8", "ids"])
@pytest.mark.parametrize("kind", ["precomputed", "precomputed-sharded"])
def test_levels_of_a_foreign_precomputed_volume(tmp_path: Path, kind: str, what: str) -> None:
    folder, data = tmp_path / "em", voxels_of(what)
    path = write_stored(kind, folder, data, (8, -16, 24))
    before = stored(folder)
    assert downsample(path, levels=4, **QUIET).ok
    after, info = stored(folder), json.loads((folder / "info").read_bytes())
    assert [name for name, content in before.items() if after[name] != content] == ["info"]
    old = json.loads(before["info"])
    assert info == old | {"scales": info["scales"]}
    assert info["scales"][: len(old["scales"])] == old["scales"]
    keys = ["8_8_40", "downsampled/16_16_40", "downsampled/32_32_40", "downsampled/64_64_80"]
    assert [scale["key"] for scale in info["scales"]] == keys
    assert [scale["voxel_offset"] for scale in info["scales"]][-1] == [1, -2, 12]
    client: Any = ImageryClient(image_source=path) if what != "ids" else ImageryClient(segmentation_source=path)
    for mip, expected in enumerate(levels_of(data, 4, what == "ids")):
        volume = CloudVolume(path, mip=mip, progress=False)
        np.testing.assert_array_equal(volume[:][..., 0], expected, strict=True)
        spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/", "scale_index": mip}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result()[..., 0], expected)
        own = client.image_volume(mip=mip) if what != "ids" else client.segmentation_volume(mip=mip)
        np.testing.assert_array_equal(own.values, expected)


def test_our_own_reader_sees_the_new_mips(tmp_path: Path) -> None:
    data = voxels_of("uint8")
    path = write_stored("zarr3", tmp_path / "em", data, (8, 16, 24))
    assert len(open_volume(path).layer.mips) == 1
    downsample(path, levels=3, **QUIET)
    client: Any = ImageryClient(image_source=path)
    for mip, expected in enumerate(levels_of(data, 3, False)):
        np.testing.assert_array_equal(client.image_volume(mip=mip).values, expected)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "precomputed"])
def test_more_levels_follow_the_coarsest_one_that_is_there(tmp_path: Path, kind: str) -> None:
    folder, data = tmp_path / "em", voxels_of("ids")
    write_stored(kind, folder, data, (0, 0, 0))
    downsample(folder, levels=2, **QUIET)
    before = stored(folder)
    nothing = downsample(folder, levels=2, **QUIET)
    assert nothing.ok
    assert nothing.notes == [note for note in nothing.notes if "Nothing is left to do" in note and "2 levels" in note]
    assert stored(folder) == before
    downsample(folder, levels=4, **QUIET)
    for level, (path, expected) in enumerate(zip(paths_of(folder), levels_of(data, 4, True), strict=True)):
        assert path.startswith(["s0", "downsampled/", "downsampled-2/", "downsampled-2/"][level]) or level == 0
        np.testing.assert_array_equal(read_level(folder, path, level), expected)


def paths_of(folder: Path) -> list[str]:
    if (folder / "info").exists():
        return [scale["key"] for scale in json.loads((folder / "info").read_bytes())["scales"]]
    return [dataset["path"] for dataset in multiscale_of(folder)["datasets"]]


def read_level(folder: Path, path: str, level: int) -> Any:
    if (folder / "info").exists():
        return CloudVolume(f"file://{folder}", mip=level, progress=False)[:][..., 0]
    return zarr.open_array(folder, path=path, mode="r")[...].T  # type: ignore[union-attr]


@pytest.mark.long
def test_levels_of_an_export_are_continued_as_it_would_have_made_them(tmp_path: Path) -> None:
    data, folder = voxels_of("uint8"), tmp_path / "em.zarr"
    to_zarr(data, folder, levels=2, resolution_nm=(8, 8, 40), translation_nm=(12, 20, 60), chunks=(32, 32, 16), **QUIET)
    downsample(folder, levels=4, **QUIET)
    whole = tmp_path / "whole.zarr"
    to_zarr(data, whole, levels=4, resolution_nm=(8, 8, 40), translation_nm=(12, 20, 60), **QUIET)
    for one, other in zip(multiscale_of(folder)["datasets"], multiscale_of(whole)["datasets"], strict=True):
        assert placed(one) == placed(other)
        read: Any = [
            zarr.open_array(at, path=dataset["path"], mode="r")[...] for at, dataset in ((folder, one), (whole, other))
        ]
        np.testing.assert_array_equal(*read)


@pytest.mark.long
def test_writers_that_do_not_move_coarser_levels_are_followed(tmp_path: Path) -> None:
    folder, data = tmp_path / "em", voxels_of("uint8", (64, 64, 32))
    group = zarr.open_group(folder, mode="w", zarr_format=2)
    group.attrs["multiscales"] = [{
        "version": "0.4", "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
        "coordinateTransformations": [{"type": "scale", "scale": [2.0, 2.0, 2.0]}],
        "datasets": [
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [1.0, size, size]}]}
            for level, size in enumerate((1.0, 2.0))
        ],
    }]  # fmt: skip
    for level, voxels in enumerate(levels_of(data, 2, False)):
        group.create_array(str(level), data=np.ascontiguousarray(voxels.T), chunks=(16, 16, 16))
    downsample(folder, levels=3, **QUIET)
    assert multiscale_of(folder)["datasets"][2]["coordinateTransformations"] == [
        {"type": "scale", "scale": [2.0, 2.0, 2.0]}
    ]
    expected = kernels.downsample(levels_of(data, 2, False)[1], (1, 1, 2), False)
    read: Any = zarr.open_array(folder, path="downsampled/0", mode="r")
    np.testing.assert_array_equal(read[...].T, expected)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
@pytest.mark.parametrize(
    ("names", "channels"), [("czyx", 1), ("tczyx", 2), ("tzyx", 1), ("xyz", 1), ("cxyz", 2), ("tcxyz", 1)]
)
def test_axes_of_the_volume_are_kept(tmp_path: Path, kind: str, names: str, channels: int) -> None:
    folder, data = tmp_path / "em", voxels_of("uint8", (100, 70, 20))
    data = data if channels == 1 else np.stack([data, data[::-1]], axis=3)
    ahead = tuple(channels if name == "c" else 1 for name in names[:-3])
    group = zarr.open_group(folder, mode="w", zarr_format=int(kind[-1]))  # type: ignore[arg-type]
    space = names[-3:]

    def as_stored(voxels: Any) -> Any:
        voxels = voxels.T if space == "zyx" else np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels
        return np.ascontiguousarray(voxels).reshape(*ahead, *voxels.shape[-3:])

    group.create_array("0", data=as_stored(data), chunks=(*[1] * len(ahead), 16, 32, 32))
    kinds, sizes = {"t": "time", "c": "channel"}, [40.0 if name == "z" else 8.0 for name in space]
    multiscale = {
        "axes": [{"name": name, "type": kinds.get(name, "space")} for name in names],
        "datasets": [{
            "path": "0",
            "coordinateTransformations": [{"type": "scale", "scale": [*(1.0 for _ in ahead), *sizes]}],
        }],
    }  # fmt: skip
    group.attrs.update({"multiscales": [multiscale | {"version": "0.4"}]} if kind == "zarr2" else
                       {"ome": {"version": "0.5", "multiscales": [multiscale]}})  # fmt: skip
    assert downsample(folder, levels=3, **QUIET).ok
    for dataset, expected in zip(multiscale_of(folder)["datasets"], levels_of(data, 3, False), strict=True):
        array: Any = zarr.open_array(folder, path=dataset["path"], mode="r")
        np.testing.assert_array_equal(array[...], as_stored(expected), strict=True)
        assert placed(dataset)["scale"][: len(ahead)] == [1.0 for _ in ahead]
    assert verify_export(folder / "downsampled", sample=None).ok
    assert len(open_volume(str(folder)).layer.mips) == 3
    own: Any = open_export(folder / "downsampled")["0"]["image"]
    np.testing.assert_array_equal(np.squeeze(own.values), levels_of(data, 3, False)[1])
    if channels > 1:
        with pytest.raises(ValueError, match="has no c"):
            to_zarr(data, tmp_path / "other", axes="tzyx", resolution_nm=RESOLUTION, **QUIET)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_consolidated_metadata_names_the_new_levels(tmp_path: Path, zarr_format: Any) -> None:
    data = voxels_of("uint8")
    write_stored(f"zarr{zarr_format}", tmp_path / "em", data, (0, 0, 0))
    zarr.consolidate_metadata(tmp_path / "em")
    downsample(tmp_path / "em", levels=3, **QUIET)
    group = zarr.open_consolidated(tmp_path / "em")
    attributes: Any = dict(group.attrs)
    for dataset in attributes.get("ome", attributes)["multiscales"][0]["datasets"]:
        assert group[dataset["path"]].shape
    assert group["downsampled/1"].shape == (45, 20, 33)


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "precomputed"])
def test_a_stopped_run_resumes_and_leaves_the_volume_as_it_is_until_then(
    tmp_path: Path, kind: str, small_blocks: int
) -> None:
    folder, data = tmp_path / "em", voxels_of("ids")
    write_stored(kind, folder, data, (0, 0, 0))
    before = stored(folder)
    with pytest.raises(Stopped):
        downsample(folder, levels=3, progress=stop)
    assert {name: content for name, content in stored(folder).items() if name in before} == before
    report = downsample(folder, levels=3, **QUIET)
    assert report.before >= 3
    assert report.ok
    for level, (path, expected) in enumerate(zip(paths_of(folder), levels_of(data, 3, True), strict=True)):
        np.testing.assert_array_equal(read_level(folder, path, level), expected)
    assert verify_export(folder / "downsampled", sample=None).ok


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zarr3", "precomputed"])
def test_an_interrupted_run_with_other_arguments_is_replaced_if_that_is_asked_for(
    tmp_path: Path, kind: str, small_blocks: int
) -> None:
    folder, data = tmp_path / "em", voxels_of("ids")
    write_stored(kind, folder, data, (0, 0, 0))
    before = stored(folder)
    with pytest.raises(Stopped):
        downsample(folder, levels=3, progress=stop)
    with pytest.raises(FileExistsError, match="was written with other arguments.*chunk"):
        downsample(folder, levels=3, chunks=(16, 16, 16), **QUIET)
    assert downsample(folder, levels=3, chunks=(16, 16, 16), overwrite=True, **QUIET).before == 0
    after, metadata = stored(folder), "info" if kind == "precomputed" else "zarr.json"
    assert [name for name, content in before.items() if after[name] != content] == [metadata]
    for level, (path, expected) in enumerate(zip(paths_of(folder), levels_of(data, 3, True), strict=True)):
        np.testing.assert_array_equal(read_level(folder, path, level), expected)


@pytest.mark.long
def test_a_process_that_is_killed_leaves_the_volume_as_it_was(tmp_path: Path) -> None:
    folder, data = tmp_path / "em", voxels_of("ids")
    write_stored("zarr3", folder, data, (0, 0, 0))
    before = (folder / "zarr.json").read_bytes()
    receipts = folder / "downsampled.receipts"
    options = ("downsample", folder, "--levels", 3, "--threads", 1, "--block-mib", 0.05)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, options)], env=environment())
    while process.poll() is None and not any(path.stat().st_size for path in receipts.rglob("*receipts*")):
        time.sleep(0.001)
    process.kill()
    if process.wait():
        assert (folder / "zarr.json").read_bytes() == before
    assert downsample(folder, levels=3, block_mib=0.05, **QUIET).ok
    for path, expected in zip(paths_of(folder), levels_of(data, 3, True), strict=True):
        np.testing.assert_array_equal(read_level(folder, path, 0), expected)


@pytest.mark.long
def test_a_run_that_is_killed_before_the_metadata_is_replaced_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stored("precomputed", tmp_path / "em", voxels_of("uint8"), (0, 0, 0))

    def killed(additions: Additions) -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(Additions, "publish", killed)
        with pytest.raises(Stopped):
            downsample(tmp_path / "em", levels=3, **QUIET)
    assert len(paths_of(tmp_path / "em")) == 1
    report = downsample(tmp_path / "em", levels=3, **QUIET)
    assert report.before == report.blocks > 0
    assert len(paths_of(tmp_path / "em")) == 3


@pytest.mark.parametrize(("kind", "name"), [("zarr2", ".zattrs"), ("zarr3", "zarr.json"), ("precomputed", "info")])
def test_metadata_that_somebody_else_changed_meanwhile_is_left(tmp_path: Path, kind: str, name: str) -> None:
    folder = tmp_path / "em"
    write_stored(kind, folder, voxels_of("uint8"), (0, 0, 0))
    file = folder / name

    def change(report: Any) -> None:
        content = json.loads(file.read_bytes())
        (content["attributes"] if kind == "zarr3" else content)["said"] = 1e300
        file.write_text(json.dumps(content))

    with pytest.raises(SourceError, match=f"{name} has changed while levels were added"):
        downsample(folder, levels=3, progress=change)
    assert "downsampled" not in file.read_text()
    assert downsample(folder, levels=3, **QUIET).ok
    assert "1e+300" in file.read_text()
    assert len(paths_of(folder)) == 3


@pytest.mark.long
def test_options_decide_how_new_levels_are_stored(tmp_path: Path) -> None:
    data = smooth_image((200, 180, 40))
    write_stored("zarr3", tmp_path / "z", data, (0, 0, 0))
    downsample(tmp_path / "z", levels=2, chunks=(16, 16, 8), shards=(64, 64, 16), codec="zstd:7", **QUIET)
    array: Any = zarr.open_array(tmp_path / "z", path="downsampled/0", mode="r")
    assert (array.chunks, array.shards, array.compressors[0].level) == ((8, 16, 16), (16, 64, 64), 7)
    path = write_volume(tmp_path / "p", data, encoding="jpeg")
    downsample(path, levels=2, **QUIET)
    downsample(path, levels=3, encoding="png", chunks=(64, 64, 8), **QUIET)
    sharding = sharding_spec((25, 23, 20), (8, 8, 8))
    downsample(path, levels=4, encoding="raw", chunks=(8, 8, 8), sharding=sharding, **QUIET)
    scales = json.loads((tmp_path / "p" / "info").read_bytes())["scales"]
    assert [scale["encoding"] for scale in scales] == ["jpeg", "jpeg", "png", "raw"]
    assert [scale["chunk_sizes"][0] for scale in scales][1:] == [[32, 32, 16], [64, 64, 8], [8, 8, 8]]
    assert ["sharding" in scale for scale in scales] == [False, False, False, True]
    above, last = (CloudVolume(path, mip=mip, progress=False)[:][..., 0] for mip in (2, 3))
    np.testing.assert_array_equal(last, kernels.downsample(np.asfortranarray(above), (2, 2, 2), False))


@pytest.mark.long
def test_the_kind_is_the_volumes_unless_it_is_given(tmp_path: Path) -> None:
    data = (random_labels((64, 48, 16)) % np.uint64(251)).astype(np.uint8)
    for name, layer_type, kind, ids in (
        ("a", "segmentation", None, True), ("b", "image", None, False), ("c", "image", "segmentation", True),
        ("d", "segmentation", "image", False),
    ):  # fmt: skip
        path = write_volume(tmp_path / name, data, layer_type=layer_type)
        downsample(path, levels=2, kind=kind, **QUIET)  # type: ignore[arg-type]
        np.testing.assert_array_equal(
            CloudVolume(path, mip=1, progress=False)[:][..., 0], levels_of(data, 2, ids)[1], strict=True
        )
    path = write_volume(tmp_path / "f", data.astype(np.float32))
    with pytest.raises(ValueError, match="ids are integers"):
        downsample(path, kind="segmentation", levels=2, **QUIET)


@pytest.mark.long
def test_labels_of_an_image_are_ids_whatever_their_data_type(tmp_path: Path) -> None:
    data = (random_labels((64, 48, 16)) % np.uint64(251)).astype(np.uint8)
    to_zarr(data, tmp_path / "em.zarr", kind="segmentation", resolution_nm=RESOLUTION, **QUIET)
    downsample(tmp_path / "em.zarr", levels=3, **QUIET)
    for dataset, expected in zip(
        multiscale_of(tmp_path / "em.zarr")["datasets"], levels_of(data, 3, True), strict=True
    ):
        array: Any = zarr.open_array(tmp_path / "em.zarr", path=dataset["path"], mode="r")
        np.testing.assert_array_equal(array[...].T, expected, strict=True)


@pytest.mark.long
def test_missing_chunks_are_counted_and_limited(tmp_path: Path) -> None:
    data = voxels_of("uint8")
    path = write_volume(tmp_path / "em", data)
    (gone,) = delete_chunks(path, 0, lambda start: start == (32, 32, 16))
    data[gone] = 0
    with pytest.raises(TooManyMissingError):
        downsample(path, levels=2, max_missing=0, **QUIET)
    assert len(paths_of(tmp_path / "em")) == 1
    report = downsample(path, levels=2, **QUIET)
    assert report.counts.missing == 1
    np.testing.assert_array_equal(CloudVolume(path, mip=1, progress=False)[:][..., 0], levels_of(data, 2, False)[1])


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        ("n5", {}, SourceError, "is N5, which is read and not written"),
        ("array", {}, SourceError, "no image of OME-Zarr 0.4 or 0.5"),
        ("precomputed", {"codec": "zstd"}, ValueError, "codec='zstd' is an option of OME-Zarr"),
        ("zarr3", {"encoding": "raw"}, ValueError, "encoding='raw' is an option of precomputed volumes"),
        ("zarr3", {"levels": "source"}, ValueError, "levels must be 'auto' or a whole number"),
        ("zarr2", {"shards": (64, 64, 32), "levels": 2}, ValueError, "has no shards"),
        ("odd", {"levels": 2}, ValueError, r"begins at voxel \(3, 5, 0\), which is not a multiple of \(2, 2, 1\)"),
        ("even", {"levels": 3}, ValueError, r"multiple of \(4, 4, 1\).*or 2 levels \(--levels 2\)"),
        ("compresso", {"levels": 2, "encoding": "jpeg"}, ValueError, "encoding of labels"),
    ],
)  # fmt: skip
def test_volumes_to_which_no_levels_can_be_added(
    tmp_path: Path, make: str, options: Any, error: Any, words: str
) -> None:
    folder, data = tmp_path / "em", voxels_of("uint8", (64, 64, 32))
    if make in ("odd", "even", "compresso"):
        offset = {"odd": (3, 5, 0), "even": (2, 2, 0)}.get(make, (0, 0, 0))
        is_labels = make == "compresso"
        data = random_labels(data.shape) if is_labels else data
        write_volume(folder, data, voxel_offset=offset, layer_type="segmentation" if is_labels else "image")
    elif make == "array":
        zarr.create_array(folder, data=np.ascontiguousarray(data.T))
    else:
        write_stored(make, folder, data, (0, 0, 0))
    before = stored(folder)
    with pytest.raises(error, match=words):
        downsample(folder, **QUIET, **options)
    assert stored(folder) == before


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zarr3", "precomputed"])
def test_a_volume_over_http_is_refused_before_anything_is_read(tmp_path: Path, kind: str) -> None:
    write_stored(kind, tmp_path / "em", voxels_of("uint8", (64, 64, 32)), (0, 0, 0))
    with FileServer(tmp_path) as server:
        for url in (f"{kind}://{server.url}/em", f"{server.url}/em"):
            with pytest.raises(SourceError, match="a volume of http:// can only be read.*s3://"):
                downsample(url, **QUIET)
        assert server.count() == 0


@pytest.mark.long
def test_blocks_that_fail_leave_the_metadata(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "em", voxels_of("uint8"), compress=False)
    chunk = next((tmp_path / "em" / "8_8_40").iterdir())
    whole = chunk.read_bytes()
    chunk.write_bytes(b"short")
    with pytest.raises(BlockFailedError):
        downsample(path, levels=2, **QUIET)
    assert len(paths_of(tmp_path / "em")) == 1
    chunk.write_bytes(whole)
    assert downsample(path, levels=2, **QUIET).ok
    assert len(paths_of(tmp_path / "em")) == 2


@pytest.mark.long
@pytest.mark.parametrize("server", ["s3_server", "gcs_server"])
@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "precomputed"])
def test_levels_are_added_in_a_bucket(tmp_path: Path, request: pytest.FixtureRequest, server: str, kind: str) -> None:
    data, bucket = voxels_of("ids"), request.getfixturevalue(server)
    write_stored(kind, tmp_path / kind, data, (0, 0, 0))
    url = bucket.upload(tmp_path / kind, f"downsampled-{kind}", "some/em")  # whose format is found out
    # The emulator of Google's storage does not say how content is encoded.
    options: Any = {"levels": 3, "compress": None if (server, kind) == ("gcs_server", "precomputed") else "auto"}
    with bucket.environment():
        assert downsample(url, **options, **QUIET).ok
        assert "Nothing is left" in downsample(url, **options, **QUIET).notes[0]
        client = ImageryClient(segmentation_source=url)
        for mip, expected in enumerate(levels_of(data, 3, True)):
            np.testing.assert_array_equal(client.segmentation_volume(mip=mip).values, expected)


def test_the_command_adds_levels_once(tmp_path: Path, command: Callable[..., Done]) -> None:
    data = voxels_of("ids")
    write_stored("zarr3", tmp_path / "em", data, (0, 0, 0))
    url = tmp_path / "em"
    done = command("downsample", url, "--levels", 3, "--max-requests", 4, "--report", tmp_path / "page.html")
    assert (done.code, done.error) == (0, "")
    assert "downsampled: " in done.out
    assert "names the new levels now" in done.out
    assert (tmp_path / "page.html").exists()
    again = command("downsample", url, "--levels", 3)
    assert (again.code, again.error) == (0, "")
    assert "Nothing is left to do" in again.out
    assert "has 3 levels" in again.out
    assert command("verify", url / "downsampled", "--all").code == 0
    assert command("status", url / "downsampled").code == 0
    refused = command("downsample", "https://localhost:1/em")
    assert (refused.code, refused.out) == (2, "")
    assert "can only be read" in refused.error
    assert imagery_dask.downsample is downsample


@pytest.mark.long
def test_the_command_runs_on_a_cluster(tmp_path: Path, command: Callable[..., Done], address: str) -> None:
    data = voxels_of("uint8")
    path = write_stored("precomputed", tmp_path / "em", data, (0, 0, 0))
    done = command("downsample", path, "--levels", 2, "--cluster", address)
    assert (done.code, done.error) == (0, "")
    np.testing.assert_array_equal(CloudVolume(path, mip=1, progress=False)[:][..., 0], levels_of(data, 2, False)[1])
