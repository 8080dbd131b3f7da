"""Exports of named regions: one plan, one run, one status, and a group or folder for each region."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from cloudvolume import CloudVolume
from integration.stores import files_of
from PIL import Image
from support.http_server import FileServer
from support.programs import PROGRAM, Done, environment
from support.stopping import Stopped, stop
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, open_export, root_ids_of, to_precomputed, to_zarr, verify_export
from imagery_dask.cli.cmd_submit import submit
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.export.precomputed.to_precomputed import PrecomputedExport
from imagery_dask.export.registry import read_plan
from imagery_dask.export.reports.status import Status, status_of
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.storage.zarr_stores import open_store
from imagery_dask.viewer.served_stores import stores_in

if TYPE_CHECKING:
    from support.buckets import S3Server

SHAPE = (64, 48, 32)
IMAGE, IDS = coordinate_volume(SHAPE, dtype=np.uint8), random_labels(SHAPE, n=9)
CSV = "name,x0,y0,z0,x1,y1,z1\na,0,0,0,20,16,8\nb-2,32,16,8,64,48,32\n"
PARTS = {"a": np.s_[:20, :16, :8], "b-2": np.s_[32:, 16:, 8:]}
BOXES: dict[str, Any] = {"a": [[0, 0, 0], [20, 16, 8]], "b-2": [[32, 16, 8], [64, 48, 32]]}
Command = Callable[..., Done]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_volume(folder / "em", IMAGE, compress=False)
    write_volume(folder / "seg", IDS, layer_type="segmentation", compress=False)
    return folder


@pytest.fixture(scope="module")
def sources(volumes: Path) -> list[str]:
    return ["--image-source", str(volumes / "em"), "--segmentation-source", str(volumes / "seg")]


@pytest.fixture(scope="module")
def client(volumes: Path) -> ImageryClient:
    return ImageryClient(image_source=str(volumes / "em"), segmentation_source=str(volumes / "seg"))


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    (tmp_path / "r.csv").write_text(CSV)
    return tmp_path / "r.csv"


@pytest.fixture
def data(client: ImageryClient) -> dict[str, xr.Dataset]:
    return {name: client.dataset(box) for name, box in BOXES.items()}


def voxels_of(form: str, out: Path, name: str) -> tuple[Any, Any]:
    """Return imagery and ids of a region as other libraries read them."""
    if form == "zarr":
        group: Any = zarr.open_group(out, mode="r")
        return group[f"{name}/0"][:].T, group[f"{name}/labels/segmentation/0"][:].T
    image, ids = (CloudVolume(f"file://{out}/{name}/{layer}") for layer in ("image", "segmentation"))
    return np.asarray(image[:])[..., 0], np.asarray(ids[:])[..., 0]


def status(out: object) -> Status:
    (one,) = status_of(str(out))
    return one


@pytest.mark.parametrize("form", ["zarr", "precomputed"])
def test_one_run_writes_a_group_for_each_region(
    form: str, command: Command, sources: list[str], address: str, regions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = tmp_path / "report.html"
    arguments = ["export", form, out, *sources, "--regions", regions, "--cluster", address, "--report", report]
    code, text, error = command(*arguments)
    assert (code, error) == (0, "")
    assert f"{out}: 4 of 4 blocks" in text
    for name, part in PARTS.items():
        image, ids = voxels_of(form, out, name)
        np.testing.assert_array_equal(image, IMAGE[part])
        np.testing.assert_array_equal(ids, IDS[part])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.receipts", "r.csv", "report.html"]
    assert all(name in report.read_text() for name in ("a/image", "b-2/segmentation"))
    before = files_of(out)
    code, text, _ = command(*arguments)
    assert (code, "4 blocks were written before; 0 were left to do" in text) == (0, True)
    assert files_of(out) == before
    code, text, _ = command("status", out)
    assert (code, f"{out} ({form}): complete" in text, "b-2/image from level 0: 1 of 1" in text) == (0, True, True)
    code, text, _ = command("verify", out, "--all", "--cluster", address)
    assert (code, "4 of 4 blocks read back" in text, "all as written" in text) == (0, True, True)


@pytest.mark.parametrize("what", ["imagery", "labels", "masks"])
def test_pictures_lie_in_a_folder_for_each_region(
    what: str, command: Command, sources: list[str], address: str, regions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["export", "png", out, *sources, "--what", what, "--regions", regions, "--cluster", address]
    code, text, error = command(*arguments)
    assert (code, error) == (0, "")
    for name, part in PARTS.items():
        shape = IMAGE[part].shape
        assert len(list((out / name).glob(f"{name}_slice_*.png"))) >= shape[2]
        if what == "imagery":
            picture = np.asarray(Image.open(sorted((out / name).iterdir())[3]))
            np.testing.assert_array_equal(picture.T, IMAGE[part][..., 3])
    ids = {name: {path.name for path in (out / name).iterdir()} for name in PARTS}
    assert ("a_labels.csv" in ids["a"], "b-2_labels.csv" in ids["b-2"]) == ((what == "labels"),) * 2
    code, text, _ = command(*arguments)
    assert (code, "2 blocks were written before; 0 were left to do" in text) == (0, True)
    assert command("verify", out, "--all", "--cluster", address).code == 0
    next((out / "b-2").glob("*.png")).unlink()
    code, _, error = command("verify", out, "--all", "--cluster", address)
    assert (code, "b-2:z0 y0 x0" in error) == (1, True)
    code, text, _ = command("export", "--plan", out, "--repair", "--cluster", address)
    assert (code, "1 were left to do" in text) == (0, True)
    assert command("verify", out, "--all", "--cluster", address).code == 0


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_an_export_of_regions_opens_as_a_tree(version: Any, data: dict[str, xr.Dataset], tmp_path: Path) -> None:
    to_zarr(data, tmp_path / "out", ome_version=version, levels=2, chunks=(16, 16, 8), progress=False)
    group = zarr.open_group(tmp_path / "out", mode="r")
    assert group.metadata.zarr_format == (3 if version == "0.5" else 2)
    assert sorted(name for name, _ in group.groups()) == ["a", "b-2"]
    tree = open_export(tmp_path / "out")
    assert isinstance(tree, xr.DataTree)
    assert list(tree.children) == ["a", "b-2"]
    flat = open_export(tmp_path / "out", level=0)
    for name, part in PARTS.items():
        xr.testing.assert_equal(tree[name].to_dataset(), open_export(tmp_path / "out" / name).to_dataset())
        assert list(tree[name].children) == ["0", "1"]
        np.testing.assert_array_equal(tree[f"{name}/0/image"], IMAGE[part])
        np.testing.assert_array_equal(flat[name]["segmentation"], IDS[part])
        np.testing.assert_array_equal(tree[f"{name}/0"].coords["x"], data[name].coords["x"])


def test_a_config_has_the_boxes(
    command: Command, sources: list[str], address: str, regions: Path, tmp_path: Path
) -> None:
    code, _, error = command("export", "zarr", tmp_path / "a" / "out", *sources, "--regions", regions,
                             "--cluster", address)  # fmt: skip
    assert (code, error) == (0, "")
    regions.unlink()
    config = tmp_path / "a" / "out.receipts" / "config.yaml"
    copy = tmp_path / "config.yaml"
    copy.write_text(config.read_text().replace(f"{tmp_path}/a/out", f"{tmp_path}/b/out"))
    code, _, error = command("export", "--config", copy)
    assert (code, error) == (0, "")
    assert (tmp_path / "b" / "out.receipts" / "config.yaml").read_text() == copy.read_text()
    voxels = [files_of(tmp_path / place / "out") for place in "ab"]
    chunks = [{name: content for name, content in one.items() if "/c/" in name} for one in voxels]
    assert chunks[0] == chunks[1] != {}
    # The command line wins.
    code, _, error = command("export", "zarr", tmp_path / "c", "--config", copy, "--bounds", 0, 0, 0, 9, 9, 9)
    assert (code, error) == (0, "")
    assert zarr.open_array(str(tmp_path / "c"), path="0", mode="r").shape == (9, 9, 9)
    kept = (tmp_path / "c.receipts" / "config.yaml").read_text()
    assert ("bounds: [0, 0, 0, 9, 9, 9]" in kept, "regions" in kept) == (True, False)


@pytest.mark.usefixtures("sampled_here")
def test_one_plan_has_a_row_for_each_region(
    command: Command, sources: list[str], address: str, regions: Path, tmp_path: Path
) -> None:
    out, saved = tmp_path / "out", tmp_path / "plan.json"
    code, text, error = command("plan", "zarr", out, *sources, "--regions", regions, "--samples", 1, "--save", saved)
    assert (code, error) == (0, "")
    assert not out.exists()
    rows = {words[0]: words for line in text.splitlines() if (words := line.split())}
    assert rows["regions"] == ["regions", "2"]
    voxels = {name: 2 * IMAGE[part].size for name, part in PARTS.items()}
    assert rows["voxels"] == ["voxels", f"{sum(voxels.values()):,}"]
    assert {name: rows[name][1:3] for name in PARTS} == {name: [f"{n:,}", "2"] for name, n in voxels.items()}
    content = json.loads(saved.read_text())
    found = content["regions"]
    assert sum(region["source_chunks"] for region in found.values()) == content["source_chunks"]
    assert sum(region["objects"] for region in found.values()) + 1 == content["estimate"]["objects"]
    # The saved plan is run in parts, the second of which closes the store.
    for part, left in (("1/2", "2 blocks of other parts are left"), ("2/2", "and so are all others")):
        code, text, error = command("export", "--plan", saved, "--part", part, "--cluster", address)
        assert (code, error, left in text) == (0, "", True), text
    assert status(out).state == "complete"
    assert sum(1 for _ in files_of(out)) <= content["estimate"]["objects"]
    np.testing.assert_array_equal(voxels_of("zarr", out, "b-2")[1], IDS[PARTS["b-2"]])


@pytest.mark.usefixtures("sampled_here")
def test_notes_are_given_once(client: ImageryClient, tmp_path: Path) -> None:
    boxes = {f"r{n}": [[n, n, n], [n + 20, n + 20, n + 20]] for n in range(1, 6)}
    planned = client.plan_export(boxes, tmp_path / "out", chunks=(8, 8, 8), block_mib=0.001, samples=1)
    (image, _) = planned.notes
    assert image.startswith("r1, r2, r3 and 2 more: image: blocks cut chunks of the source along x, y, z")
    (table,) = planned.tables
    assert [row[0] for row in table.rows] == list(boxes)
    assert planned.estimate.samples == 2  # one of each layer, whatever the number of regions
    planned.run(progress=False)
    assert open_export(tmp_path / "out", level=0)["r3"]["image"].shape == (20, 20, 20)


def test_a_region_that_fails_does_not_stop_the_others(
    command: Command, volumes: Path, address: str, regions: Path, tmp_path: Path
) -> None:
    seg = tmp_path / "seg"
    shutil.copytree(volumes / "seg", seg)
    (chunk,) = seg.glob("*/0-32_0-32_0-16")
    kept = chunk.read_bytes()
    chunk.write_bytes(kept[:100])
    arguments = ["export", "zarr", tmp_path / "out", "--segmentation-source", seg, "--regions", regions]
    code, text, error = command(*arguments, "--cluster", address)
    assert (code, "1 of 2 blocks" in text, "1 blocks FAILED" in error) == (1, True, True)
    assert "segmentation a:z0 y0 x0" in error
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "out"), path="b-2/0")[:].T, IDS[PARTS["b-2"]])
    failed = {name: zarr.open_group(str(tmp_path / "out"), path=name).attrs["imagery_dask"] for name in PARTS}
    assert {name: made["blocks_failed"] for name, made in failed.items()} == {"a": 1, "b-2": 0}  # type: ignore
    assert status(tmp_path / "out").state == "failed"
    chunk.write_bytes(kept)
    code, text, error = command(*arguments, "--cluster", address)
    assert (code, "1 were left to do" in text) == (0, True)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "out"), path="a/0")[:].T, IDS[PARTS["a"]])


def test_a_stopped_run_resumes_with_the_blocks_that_are_left(data: dict[str, xr.Dataset], tmp_path: Path) -> None:
    options: dict[str, Any] = {"chunks": (8, 8, 8), "levels": 2, "block_mib": 0.004}
    with pytest.raises(Stopped):
        to_zarr(data, tmp_path / "out", progress=stop, **options)
    begun = status(tmp_path / "out")
    assert (begun.state, begun.done > 2) == ("interrupted", True)
    report = to_zarr(data, tmp_path / "out", progress=False, **options)
    assert report.before == begun.done < report.blocks == report.done
    assert verify_export(tmp_path / "out", sample=None, progress=False).ok
    to_zarr(data, tmp_path / "whole", progress=False, **options)
    same = [
        {name: content for name, content in files_of(tmp_path / place).items() if not name.endswith("zarr.json")}
        for place in ("out", "whole")
    ]
    assert same[0] == same[1] != {}


def test_a_killed_command_resumes(volumes: Path, regions: Path, tmp_path: Path) -> None:
    with FileServer(volumes, latency_s=0.1) as server:
        arguments = [
            "export", "zarr", str(tmp_path / "out"), "--image-source", f"{server.url}/em",
            "--regions", str(regions), "--chunks", "8,8,8", "--shards", "none", "--block-mib", "0.002",
        ]  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            deadline = time.monotonic() + 120
            while not list(tmp_path.glob("out.receipts/*/receipts-*.bin")):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        before = status(tmp_path / "out")
        assert (before.state, 0 < before.done < before.blocks) == ("interrupted", True)
        server.latency_s = 0.0
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments], env=environment(), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert f"{before.done} blocks were written before" in done.stdout
    for name, part in PARTS.items():
        np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "out"), path=f"{name}/0")[:].T, IMAGE[part])


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(("write", "kind"), [(to_zarr, ZarrExport), (to_precomputed, PrecomputedExport)])
def test_a_run_that_made_half_of_the_groups_begins_anew(
    write: Any, kind: Any, killed: bool, data: dict[str, xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, calls = kind.create, []

    def fail_in_the_second(self: Any, *arguments: Any) -> None:
        calls.append(self.url)
        if len(calls) == 2:
            raise Stopped
        create(self, *arguments)

    monkeypatch.setattr(kind, "create", fail_in_the_second)
    if killed:  # and so could not remove it
        monkeypatch.setattr(StartedRun, "abandon", lambda self: None)
    with pytest.raises(Stopped):
        write(data, tmp_path / "out", progress=False)
    assert (tmp_path / "out").exists() == killed
    assert write(data, tmp_path / "out", progress=False).ok
    assert verify_export(tmp_path / "out", sample=None, progress=False).ok


@pytest.mark.parametrize("write", [to_zarr, to_precomputed])
def test_regions_are_replaced_together(write: Any, data: dict[str, xr.Dataset], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(data, out, progress=False)
    other = {"c": data["a"]}
    with pytest.raises(FileExistsError, match="regions was .* and is"):
        write(other, out, progress=False)
    (out / "b-2" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.txt"):
        write(other, out, progress=False, overwrite=True)
    (out / "b-2" / "mine.txt").unlink()
    write(other, out, progress=False, overwrite=True)
    assert {path.name for path in out.iterdir()} - {"zarr.json"} == {"c"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.receipts"]
    assert status(out).state == "complete"


def test_what_is_no_export_of_regions_is_left_alone(data: dict[str, xr.Dataset], tmp_path: Path) -> None:
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "notes.txt").write_text("mine")
    for write in (to_zarr, to_precomputed):
        with pytest.raises(FileExistsError, match="will not be replaced"):
            write(data, tmp_path / "out", progress=False, overwrite=True)
    assert files_of(tmp_path / "out") == {"a/notes.txt": b"mine"}


def test_lost_metadata_are_written_again(data: dict[str, xr.Dataset], tmp_path: Path) -> None:
    to_zarr(data, tmp_path / "out", progress=False)
    for name in ("zarr.json", "a/zarr.json", "b-2/labels/zarr.json"):
        (tmp_path / "out" / name).unlink()
    assert sorted(verify_export(tmp_path / "out", progress=False).metadata) == [
        "a/zarr.json", "b-2/labels/zarr.json", "zarr.json",
    ]  # fmt: skip
    to_zarr(data, tmp_path / "out", progress=False)
    assert verify_export(tmp_path / "out", sample=None, progress=False).ok
    assert list(open_export(tmp_path / "out").children) == ["a", "b-2"]


def test_each_region_has_its_own_compact_ids(data: dict[str, xr.Dataset], tmp_path: Path) -> None:
    to_zarr(data, tmp_path / "out", relabel="uint32", progress=False)
    for name, part in PARTS.items():
        compact = zarr.open_array(str(tmp_path / "out"), path=f"{name}/labels/segmentation/0")[:].T
        assert compact.dtype == np.uint32
        assert compact.max() == len(set(np.unique(IDS[part]).tolist()) - {0})
        np.testing.assert_array_equal(root_ids_of(tmp_path / "out" / name, compact), IDS[part])


def test_arrays_and_other_layers_may_be_regions(tmp_path: Path) -> None:
    arrays = {"one": da.from_array(IMAGE), "two": IDS[:20]}
    to_zarr(arrays, tmp_path / "out", progress=False, resolution_nm=(8, 8, 40))
    opened = open_export(tmp_path / "out", level=0)
    np.testing.assert_array_equal(opened["one"]["image"], IMAGE)
    np.testing.assert_array_equal(opened["two"]["segmentation"], IDS[:20])
    with pytest.raises(ValueError, match="region 'two': relabel"):
        to_zarr({"one": IDS, "two": IMAGE}, tmp_path / "other", relabel="uint32")


def test_regions_in_a_bucket(client: ImageryClient, data: dict[str, xr.Dataset], s3_server: S3Server) -> None:
    s3_server.create_bucket("regions")
    with s3_server.environment():
        for write, name in ((to_zarr, "zarr"), (to_precomputed, "volumes")):
            out = f"s3://regions/{name}"
            with pytest.raises(Stopped):
                write(data, out, progress=stop, chunks=(8, 8, 8), block_mib=0.004)
            report = write(data, out, progress=False, chunks=(8, 8, 8), block_mib=0.004)
            assert 0 < report.before < report.done == report.blocks
            assert status(out).state == "complete"
            assert verify_export(out, sample=None, progress=False).ok
            write({"c": data["a"]}, out, progress=False, overwrite=True)
            assert status(out).state == "complete"
        tree = open_export("s3://regions/zarr")
        assert list(tree.children) == ["c"]
        np.testing.assert_array_equal(tree["c/0/image"], IMAGE[PARTS["a"]])
        group: Any = zarr.open_group(open_store("s3://regions/zarr"), mode="r")
        assert group["c/0"].shape == (8, 16, 20)
        # Some servers list folders that became empty.
        listed = [entry for entry in s3_server.client().list_objects_v2(Bucket="regions")["Contents"] if entry["Size"]]
    kept = {tuple(entry["Key"].split("/")[:2]) for entry in listed}
    assert {names for names in kept if not names[0].endswith(".receipts")} == {
        ("zarr", "c"), ("zarr", "zarr.json"), ("volumes", "c"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"a": [[0, 0, 0], [20, 16, 8]], "far": [[900, 0, 0], [999, 9, 9]]},
            "the bounds of 'far' in --regions lie out",
        ),
        ({"a": [[0, 0, 0], [20, 16, 8]], "a/b": [[0, 0, 0], [9, 9, 9]]}, "'a/b' names a folder and must be letters"),
        ({}, "has no boxes"),
    ],
)
@pytest.mark.parametrize("verb", ["export", "plan"])
def test_bad_regions_are_refused_before_anything_is_written(
    verb: str, content: Any, message: str, command: Command, sources: list[str], tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(content))
    arguments = [verb, "zarr", tmp_path / "out", *sources, "--regions", tmp_path / "r.json"]
    code, _, error = command(*arguments)
    assert (code, message in error) == (2, True), error
    code, _, error = command(*arguments, "--bounds", 0, 0, 0, 9, 9, 9)
    assert (code, "exclude each other" in error) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_regions_are_submitted_as_one_job(
    sources: list[str], regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = tmp_path / "slurm.yaml"
    cluster.write_text(
        "cluster: dask_jobqueue.SLURMCluster\narguments: {cores: 1, memory: 1GiB, walltime: 00:30:00}\nworkers: 2\n"
    )
    pytest.importorskip("dask_jobqueue")
    export = ["zarr", str(tmp_path / "out"), *sources, "--regions", str(regions)]
    submit.main(["--cluster", str(cluster), "--dry-run", *export], standalone_mode=False)
    script = capsys.readouterr().out
    assert f"export zarr --cluster {cluster} {tmp_path}/out" in script
    assert f"--regions {regions}" in script


def test_the_viewer_asks_for_a_region(data: dict[str, xr.Dataset], tmp_path: Path) -> None:
    to_zarr(data, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match=r"has the regions a, b-2: name one, as in .*/out/a\."):
        stores_in(tmp_path / "out")
    assert [store.kind for store in stores_in(tmp_path / "out" / "a")] == ["image", "segmentation"]


def test_a_plan_of_regions_is_read_again(data: dict[str, xr.Dataset], tmp_path: Path) -> None:
    to_zarr(data, tmp_path / "out", levels=2, chunks=(8, 8, 8), progress=False)
    plan = read_plan(tmp_path / "out")
    assert type(plan).from_json(plan.to_json()) == plan
    assert {part.region for _, part in plan.parts} == set(PARTS)
