"""Plans: counts are exact, measurements are close, planning writes nothing, and an export follows its plan."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integration.stores import files_of
from support.dynamic import TOKEN, roots_at, served
from support.http_server import Fault, FileServer
from support.programs import Done, program, python
from support.settings import Configure
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.cluster import WorkerResources
from imagery_dask.export.core import run_options
from imagery_dask.export.core.base import held_bytes
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.execution import execute
from imagery_dask.export.planning import adapting
from imagery_dask.export.planning.estimate import plan_export
from imagery_dask.export.planning.sampling import Sample, Sampling
from imagery_dask.export.registry import KINDS, read_plan
from imagery_dask.run.thread_workers import ThreadWorkers
from imagery_dask.testing.cave import CaveServer, World, make_world

SHAPE = (96, 80, 40)
OFFSET = (-32, 48, 16)
BOUNDS = [[-20, 60, 20], [50, 110, 50]]
CLI_BOUNDS = ("--bounds", -20, 60, 20, 50, 110, 50)
RESOURCES = WorkerResources(2, 2**31)
WRITERS: dict[str, Any] = {"zarr": to_zarr, "precomputed": to_precomputed, "png": to_png}

Command = Callable[..., Done]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sources")
    image = coordinate_volume(SHAPE, OFFSET, np.uint8)
    ids = random_labels(SHAPE, n=30)
    return {
        "image_source": write_volume(folder / "image", image, voxel_offset=OFFSET, mips=3),
        "segmentation_source": write_volume(
            folder / "ids", ids, voxel_offset=OFFSET, layer_type="segmentation", mips=3
        ),
    }


@pytest.fixture(scope="module")
def listed() -> list[int]:
    return [int(value) for value in np.unique(random_labels(SHAPE, n=30))[1:6]]


@pytest.fixture
def client(sources: dict[str, str]) -> ImageryClient:
    return ImageryClient(**sources)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("dynamic"), (128, 128, 32))


@pytest.fixture
def server(world: World) -> Iterator[CaveServer]:
    with served(world) as server:
        yield server


def source_options(sources: dict[str, str]) -> tuple[Any, ...]:
    return ("--image-source", sources["image_source"], "--segmentation-source", sources["segmentation_source"])


def planned(data: Any, kind: str = "zarr", out: Any = "/nowhere/out", block: int | None = None, **options: Any) -> Any:
    """Plan an export without measuring anything."""
    return KINDS[kind](data, out, **options).plan(RESOURCES, block)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return all names below a folder, including hidden ones, with sizes and modification times."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# --------------------------------------------------------------------------------------------- plans that are run later

FORMATS: dict[str, tuple[str, ...]] = {
    "zarr": ("--chunks", "32,16,8", "--levels", "2", "--block-mib", "0.05"),
    "precomputed": ("--chunks", "32,16,8", "--block-mib", "0.05", "--segmentation-encoding", "raw"),
    "png": ("--what", "overlay", "--tile", "64"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.long
def test_a_saved_plan_runs_in_another_folder(
    tmp_path: Path,
    sources: dict[str, str],
    threads: Client,
    processes: Client,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """The files equal those of the same export by one command."""
    plan_folder, other_folder = tmp_path / "plan", tmp_path / "other"
    plan_folder.mkdir()
    other_folder.mkdir()
    relative = [os.path.relpath(sources[name].removeprefix("precomputed://file://"), plan_folder) for name in sources]
    region = ("--image-source", relative[0], "--segmentation-source", relative[1], *CLI_BOUNDS)

    def run_in(folder: Path, *words: Any) -> Done:
        if kind == "zarr":
            return program(*words, cwd=folder)
        with monkeypatch.context() as patch:  # in this process, which saves the seconds of imports in a new one
            patch.chdir(folder)
            return command(*words)

    planning = run_in(plan_folder, "plan", kind, "out/em", *region, *FORMATS[kind], "--save", "plan.json")
    assert planning.code == 0
    assert "Run it with: imagery-dask export --plan plan.json" in planning.out
    assert [path.name for path in plan_folder.iterdir()] == ["plan.json"]
    address = processes.scheduler_info()["address"]
    running = run_in(other_folder, "export", "--plan", plan_folder / "plan.json", "--cluster", address)
    assert (running.code, running.error) == (0, "")
    assert list(other_folder.iterdir()) == []
    cluster = ("--cluster", threads.scheduler_info()["address"])
    direct = command(
        "export", kind, tmp_path / "direct" / "em", *source_options(sources), *CLI_BOUNDS, *FORMATS[kind], *cluster
    )
    assert (direct.code, direct.error) == (0, "")
    stores = [plan_folder / "out", tmp_path / "direct"]
    if kind != "png":
        stores = [store / "em" for store in stores]
    one, other = (
        {name: content for name, content in files_of(store).items() if "receipts" not in name} for store in stores
    )
    assert len(one) > 8
    assert one.keys() == other.keys()
    for name, content in one.items():
        if not name.endswith("provenance"):  # contains the date
            assert content == other[name], name
    again = command("export", "--plan", plan_folder / "plan.json", *cluster)
    assert "blocks were written before; 0 were left to do" in again.out


@pytest.mark.usefixtures("sampled_here")
def test_a_plan_is_saved_as_versioned_json_and_read_back(
    tmp_path: Path, client: ImageryClient, listed: list[int]
) -> None:
    saved = client.plan_export(BOUNDS, tmp_path / "out.zarr", chunks=(32, 16, 8), levels=2, root_ids=listed, samples=1)
    saved.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    assert (content["format"], content["version"]) == ("imagery_dask.plan", 1)
    assert content["fingerprint"] == saved.plan.fingerprint
    assert content["estimate"]["samples"] == saved.estimate.samples
    assert json.loads(json.dumps(content), parse_int=float)["volumes"][1]["cutout"]["labels"]["keep"] == [
        str(value) for value in listed
    ]
    loaded = read_plan(tmp_path / "plan.json")
    assert loaded.to_json() == saved.plan.to_json()
    assert loaded.stages == saved.plan.stages
    data = client.dataset(BOUNDS, root_ids=listed, scale_to_bounds=False)
    plan = KINDS["zarr"](data, tmp_path / "out.zarr", chunks=(32, 16, 8), levels=2).plan(RESOURCES, None)
    assert plan.fingerprint == loaded.fingerprint
    assert f"{saved}"
    assert saved.plan.fingerprint[:16] in f"{saved}"
    assert saved.plan.fingerprint[:16] in saved._repr_html_()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "This is not a plan"),
        ('{"a": 1}', "This is not a plan"),
        (
            '{"format": "imagery_dask.plan", "version": 2}',
            "The plan has version 2, and this program reads version 1",
        ),
        ('{"format": "imagery_dask.plan", "version": 1}', "The plan is damaged"),
    ],
)
def test_invalid_plan_files_are_refused(tmp_path: Path, command: Command, content: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    done = command("export", "--plan", tmp_path / "plan.json")
    assert done.code == 2
    assert done.error.startswith("Error: ")
    assert message in done.error
    assert len(done.error.splitlines()) == 1


def test_a_plan_of_a_computed_array_cannot_be_run_by_command(
    tmp_path: Path, client: ImageryClient, command: Command
) -> None:
    array = client.image_cutout(BOUNDS) + 1
    plan = planned(array, out=tmp_path / "out.zarr")
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    done = command("export", "--plan", tmp_path / "plan.json")
    assert done.code == 2
    assert "is the plan of a computed array" in done.error


@pytest.mark.usefixtures("sampled_here")
def test_a_plan_runs_from_python(tmp_path: Path, client: ImageryClient, threads: Client) -> None:
    planned_export = client.plan_export(BOUNDS, tmp_path / "out.zarr", chunks=(32, 16, 8), block_mib=0.03, samples=1)
    report = planned_export.run(cluster=threads, progress=False)
    assert (report.ok, report.blocks) == (True, planned_export.plan.blocks)
    assert planned_export.run(cluster=threads, progress=False).before == report.blocks


def taking(seconds: float, cpu_seconds: float) -> Callable[[Sampling], list[Sample]]:
    """Return what writes sample blocks and says that each took a time."""

    def sampled(wanted: Sampling) -> list[Sample]:
        samples = wanted(measured=False)
        return [
            replace(sample, seconds=seconds, cpu_seconds=cpu_seconds, queued_seconds=0.0, voxels=10**9)
            for sample in samples
        ]

    return sampled


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        ({}, 8),
        ({"threads": 3}, 3),
        ({"cluster": "local"}, 4),
        ({"cluster": "local", "workers": 4}, 2),
        ({"cluster": "local", "workers": "auto"}, 4),
        ({"cluster": "local", "threads": 3}, 3),
        ({"cluster": "tcp://host:8786"}, None),
    ],
)
def test_a_plan_runs_with_the_threads_that_its_blocks_ask_for(
    tmp_path: Path, client: ImageryClient, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], threads: int | None
) -> None:
    started: list[int | None] = []

    @contextmanager
    def workers_of(*given: Any, threads: int | None, **more: Any) -> Iterator[ThreadWorkers]:
        started.append(threads)
        yield ThreadWorkers(threads)

    for module in (run_options, execute, adapting):
        monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(run_options, "workers_of", workers_of)
    export = KINDS["zarr"](client.image_cutout(BOUNDS), tmp_path / "out.zarr", chunks=(32, 16, 8))
    planned_export = plan_export(export, samples=1, sampled=taking(10, 2))
    assert "8 on 2 cores: blocks wait 80% of their time" in f"{planned_export}"
    planned_export.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    assert (content["waiting"], content["adapted"]["threads"]) == (0.8, 8)
    assert replace(planned_export, plan=read_plan(tmp_path / "plan.json")).run(progress=False, **options).ok
    assert started == [threads]
    assert read_plan(tmp_path / "out.zarr").waiting == 0.8  # a resumed run has it too


def test_threads_are_bounded_by_memory(tmp_path: Path, client: ImageryClient, monkeypatch: pytest.MonkeyPatch) -> None:
    export = KINDS["zarr"](client.image_cutout(BOUNDS), tmp_path / "out.zarr", chunks=(32, 16, 8))
    planned_export = plan_export(export, samples=1, sampled=taking(10, 2))
    held = held_bytes(export, planned_export.plan)
    looked: list[int | None] = []
    for module in (run_options, execute):
        monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(execute, "free_memory", lambda: 5 * held)
    monkeypatch.setattr(run_options, "workers_of", lambda *given, threads, **more: looked.append(threads) or stop())
    with pytest.raises(KeyboardInterrupt):
        planned_export.run(progress=False)
    assert looked == [5]


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("sampled_here")
def test_threads_are_for_this_machine(tmp_path: Path, client: ImageryClient) -> None:
    planned_export = client.plan_export(BOUNDS, tmp_path / "out.zarr", chunks=(32, 16, 8), samples=1)
    with pytest.raises(ValueError, match=r"threads \(--threads\) is for processes of this machine"):
        planned_export.run(cluster="slurm.yaml", threads=2)


def test_blocks_that_take_minutes_are_planned_smaller(
    tmp_path: Path, client: ImageryClient, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The voxels and files are those of an export that was not planned."""
    monkeypatch.setattr(adapting, "SMALLEST_BYTES", 1)
    configure("export.small_block_bytes", 2**20)

    def planned_of(out: str, sampled: Any, **options: Any) -> Any:
        export = KINDS["zarr"](client.image_cutout(BOUNDS), tmp_path / out, chunks=(32, 16, 8))
        return plan_export(export, samples=1, sampled=sampled, **options)

    usual = planned_of("usual.zarr", taking(59, 2))
    assert (usual.plan.blocks, usual.adapted.slow_block_seconds) == (1, None)
    assert planned_of("usual.zarr", taking(600, 2), block_mib=1).plan.blocks == 1
    smaller = planned_of("smaller.zarr", taking(240, 2))
    assert smaller.plan.blocks > 1
    assert smaller.plan.fingerprint == usual.plan.fingerprint
    assert "of the usual size it took 4 min" in f"{smaller}"
    for made in (usual, smaller):
        assert made.run(progress=False).blocks == made.plan.blocks
    assert smaller.run(progress=False).before == smaller.plan.blocks
    assert voxel_files(tmp_path / "usual.zarr") == voxel_files(tmp_path / "smaller.zarr") != {}


def voxel_files(store: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(store).items() if "/c/" in f"/{name}"}


def test_a_typo_in_an_option_is_a_type_error(tmp_path: Path, client: ImageryClient) -> None:
    with pytest.raises(TypeError, match="chunk"):
        client.plan_export(BOUNDS, tmp_path / "out.zarr", chunk=(32, 16, 8))
    with pytest.raises(ValueError, match="format must be 'zarr', 'precomputed', 'png' or 'tiff'; got 'jpeg'"):
        client.plan_export(BOUNDS, tmp_path / "out", format="jpeg")  # type: ignore[arg-type]


SCRIPT = """
import sys
from imagery_dask import ImageryClient
client = ImageryClient(image_source=sys.argv[1])
print(client.plan_export([[-20, 60, 20], [50, 110, 50]], sys.argv[2], samples=2))
"""


@pytest.mark.long
def test_a_script_without_a_main_guard_plans(tmp_path: Path, sources: dict[str, str]) -> None:
    """The script lacks the guard that worker processes need."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = python(tmp_path / "script.py", sources["image_source"], tmp_path / "out.zarr")
    assert (done.code, done.error) == (0, "")
    assert done.out.count("measured on") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


# ------------------------------------------------------------------------------------------------------- fingerprints


def test_the_fingerprint_covers_everything_that_determines_voxels(
    sources: dict[str, str], client: ImageryClient, listed: list[int], tmp_path: Path
) -> None:
    def fingerprint_of(kind: str = "zarr", region: Any = None, **options: Any) -> str:
        arguments: dict[str, Any] = {"bounds": BOUNDS, "scale_to_bounds": False} | (region or {})
        fingerprint: str = planned(client.dataset(**arguments), kind, **options).fingerprint
        return fingerprint

    smaller = [[-20, 60, 20], [50, 110, 49]]
    moved = [[-21, 60, 20], [49, 110, 50]]
    strict = ImageryClient(**sources, missing="error")
    image = client.image_cutout(BOUNDS)
    linear = [client.image_cutout(BOUNDS, mip=1, scale_to_bounds=True, order=order) for order in (0, 1)]
    other = write_volume(tmp_path / "other", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
    precomputed: dict[str, Any] = {"kind": "precomputed"}
    png: dict[str, Any] = {"kind": "png", "region": {"root_ids": listed}}
    masks = png | {"what": "masks", "root_ids": listed}
    overlay = png | {"what": "overlay", "root_ids": listed}
    fingerprints = {
        "plain": fingerprint_of(),
        "smaller": fingerprint_of(region={"bounds": smaller}),
        "moved": fingerprint_of(region={"bounds": moved}),
        "mip": fingerprint_of(region={"image_mip": 1, "segmentation_mip": 1}),
        "mip of one": fingerprint_of(region={"image_mip": 1}),
        "resolution": fingerprint_of(region={"resolution": (4, 4, 40)}),
        "ids": fingerprint_of(region={"root_ids": listed}),
        "other ids": fingerprint_of(region={"root_ids": listed[1:]}),
        "no ids": fingerprint_of(region={"root_ids": []}),
        "int64": fingerprint_of(region={"convert_to_int64": True}),
        "missing": planned(strict.dataset(BOUNDS, scale_to_bounds=False)).fingerprint,
        "order 0": planned(linear[0]).fingerprint,
        "order 1": planned(linear[1]).fingerprint,
        "source": planned(ImageryClient(image_source=other).image_cutout(BOUNDS)).fingerprint,
        "one": planned(image).fingerprint,
        "computed": planned(image + 1).fingerprint,
        "computed otherwise": planned(image + 2).fingerprint,
        "place": planned(image, resolution_nm=(1, 2, 3)).fingerprint,
        "other place": planned(image, translation_nm=(1, 2, 3)).fingerprint,
        "chunks": fingerprint_of(chunks=(32, 16, 8)),
        "shards": fingerprint_of(chunks=(32, 16, 8), shards=(64, 64, 64)),
        "codec": fingerprint_of(codec="gzip"),
        "levels": fingerprint_of(levels=3),
        "levels of the source": fingerprint_of(levels="source"),
        "version": fingerprint_of(ome_version="0.4"),
        "precomputed": fingerprint_of(**precomputed),
        "encoding": fingerprint_of(**precomputed, encoding={"image": "png"}),
        "quality": fingerprint_of(**precomputed, encoding={"image": "jpeg"}, quality=80),
        "other quality": fingerprint_of(**precomputed, encoding={"image": "jpeg"}, quality=81),
        "compress": fingerprint_of(**precomputed, compress="gzip"),
        "precomputed chunks": fingerprint_of(**precomputed, chunks=(32, 16, 8)),
        "one precomputed": planned(image, "precomputed").fingerprint,
        "dataset of one": planned(xr.Dataset({"image": client.dataset(BOUNDS).image}), "precomputed").fingerprint,
        "imagery": fingerprint_of("png"),
        "axis": fingerprint_of("png", slice_axis=0),
        "names": fingerprint_of("png", names="absolute"),
        "format": fingerprint_of("png", format="tiff"),
        "window": fingerprint_of("png", window=(3, 200)),
        "other window": fingerprint_of("png", window=(3, 201)),
        "bits": fingerprint_of("png", window=(3, 200), bits=16),
        "tile": fingerprint_of("png", tile=32),
        "masks": fingerprint_of(**masks),
        "colors": fingerprint_of(**masks, colors={listed[0]: (1, 2, 3)}),
        "other colors": fingerprint_of(**masks, colors={listed[0]: (1, 2, 4)}),
        "labels": fingerprint_of(**masks | {"what": "labels"}),
        "overlay": fingerprint_of(**overlay),
        "alpha": fingerprint_of(**overlay, alpha=0.3),
        "outline": fingerprint_of(**overlay, outline=True),
        "no merge": fingerprint_of(**overlay, outline=True, merge_outline=False),
        "width": fingerprint_of(**overlay, outline=True, width=3),
    }
    same = {
        name: [other for other in fingerprints if fingerprints[other] == fingerprints[name]] for name in fingerprints
    }
    assert [names for names in same.values() if len(names) > 1] == []


def test_the_fingerprint_ignores_what_does_not_determine_voxels(client: ImageryClient, listed: list[int]) -> None:
    data = client.dataset(BOUNDS, root_ids=listed)
    export = KINDS["zarr"](data, "/nowhere/out.zarr", chunks=(32, 16, 8))
    expected = export.plan(RESOURCES, None)
    for other in (
        export.plan(WorkerResources(64, 2**33), None),
        export.plan(RESOURCES, 10_000),
        export.plan(RESOURCES, 2**28),
        planned(data, out="s3://bucket/out.zarr", chunks=(32, 16, 8)),
        planned(data, chunks=[32, 16, 8]),
        planned(data, chunks=np.array([32, 16, 8])),
        planned(ImageryClient(**{name: f"{path}/" for name, path in (("image_source", client.image_source),
                ("segmentation_source", client.segmentation_source))}).dataset(BOUNDS, root_ids=listed),
                chunks=(32, 16, 8)),
    ):  # fmt: skip
        assert other.fingerprint == expected.fingerprint
    assert export.plan(RESOURCES, 10_000).blocks > expected.blocks
    slices = [planned(data, "png", window=(0, 9), max_files=n, block=n * 1000).fingerprint for n in (1000, 2000)]
    assert slices[0] == slices[1]


def test_the_moment_is_in_the_fingerprint(server: CaveServer, world: World) -> None:
    client = ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)
    roots = roots_at(world, world.times["split_1"])[:3]
    plans = [
        planned(client.segmentation_volume(timestamp=world.times["split_1"])),
        planned(client.segmentation_volume(timestamp=world.times["split_2"])),
        planned(client.segmentation_volume(timestamp=world.times["split_1"], root_ids=None)),
        planned(client.segmentation_volume(timestamp=world.times["split_1"], root_ids=roots)),
        planned(client.segmentation_volume(timestamp=world.times["split_1"], stop_layer=2)),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    same = planned(client.segmentation_volume(timestamp=world.times["split_1"]), block=1000)
    assert same.fingerprint == plans[0].fingerprint


# ------------------------------------------------------------------------------------------------ storage chunks read


def chunks_read(plan: ExportPlan, export: Any) -> int:
    """Count the storage chunks of all pieces of all blocks by enumeration."""
    total = 0
    for _, part in plan.parts:
        for source in export.format.reads(export, part).sources:
            cutout = source.cutout
            for _, region in part.blocks:
                for piece in part.blocks.pieces(region):
                    along = [chunks_along(cutout, piece[axis], axis) for axis in range(3)]
                    total += len(list(product(*along)))
    return total


def chunks_along(cutout: Any, part: slice, axis: int) -> set[int]:
    """Return the chunks along an axis that hold the source voxels at the centres of target voxels, or around them."""
    grid = cutout.mip.grid
    fine, coarse = Fraction(cutout.target.resolution_nm[axis]), Fraction(grid.resolution_nm[axis])
    needed: set[int] = set()
    linear = cutout.order == 1 and cutout.target.resolution_nm != grid.resolution_nm
    for index in range(part.start, part.stop):
        centre = (cutout.target.start[axis] + index + Fraction(1, 2)) * fine / coarse
        if linear:
            left = math.floor(centre - Fraction(1, 2))
            needed |= {left, left + 1}
        else:
            needed.add(math.floor(centre))
    # A read is one box, so voxels between the needed ones are read too, even if the last of them lie outside.
    box = range(max(min(needed), grid.start[axis]), min(max(needed) + 1, grid.stop[axis]))
    return {(voxel - grid.start[axis]) // cutout.mip.chunk_shape[axis] for voxel in box}


def empty_volume(folder: Path, shape: Any, offset: Any, resolution: Any, chunk: Any, mips: int = 1) -> str:
    """Write a volume without chunks; reads of missing chunks are counted, too."""
    folder.mkdir(parents=True)
    scales = [
        {
            "key": f"m{mip}", "size": [-(-shape[0] // 2**mip), -(-shape[1] // 2**mip), shape[2]], "encoding": "raw",
            "resolution": [resolution[0] * 2**mip, resolution[1] * 2**mip, resolution[2]],
            "voxel_offset": [offset[0] // 2**mip, offset[1] // 2**mip, offset[2]], "chunk_sizes": [list(chunk)],
        }
        for mip in range(mips)
    ]  # fmt: skip
    info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": scales}
    (folder / "info").write_text(json.dumps(info))
    return f"precomputed://file://{folder}"


def triples(values: Any) -> Any:
    return st.tuples(values, values, values)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=triples(st.integers(20, 90)),
    offset=triples(st.integers(-50, 50)),
    chunk=triples(st.sampled_from([7, 8, 16, 20, 32])),
    out=triples(st.sampled_from([8, 12, 16, 32])),
    low=triples(st.integers(-15, 15)),
    size=triples(st.integers(1, 60)),
    scale=st.sampled_from([None, (4, 4, 20), (12, 8, 40), (16, 16, 40), (20, 20, 100)]),
    order=st.sampled_from([0, 1]),
    block=st.sampled_from([500, 5_000, 10**6]),
    data=st.data(),
)
def test_the_number_of_source_chunks_is_exact(
    tmp_path_factory: pytest.TempPathFactory, threads: Client, shape: Any, offset: Any, chunk: Any, out: Any, low: Any,
    size: Any, scale: Any, order: int, block: int, data: Any,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("geometry")
    client = ImageryClient(image_source=empty_volume(folder / "em", shape, offset, (8, 8, 40), chunk), outside="fill")
    start = np.add(offset, low)
    if scale is None:
        array = client.image_cutout([start, start + size], mip=0)
    else:
        start = np.floor(start * np.array((8, 8, 40)) / scale).astype(int)
        array = client.image_cutout([start, start + size], mip=0, resolution=scale, scale_to_bounds=True, order=order)
    kind = data.draw(st.sampled_from(["zarr", "precomputed", "png"]))
    options: dict[str, Any] = {"chunks": out}
    if kind == "png":
        options = {"slice_axis": data.draw(st.sampled_from([0, 1, 2]))}
    export: Any = KINDS[kind](array, folder / "out", **options)
    plan = export.plan(RESOURCES, block)
    assert plan.source_chunks == chunks_read(plan, export)
    block_size = {} if kind == "png" else {"block_mib": block / 2**20}
    report = WRITERS[kind](array, folder / "out", cluster=threads, progress=False, **options, **block_size)
    assert report.counts.chunks == read_plan(folder / "out").source_chunks


@pytest.mark.parametrize("levels", [1, 3, "source"])
@pytest.mark.parametrize("kind", ["zarr", "precomputed"])
def test_the_number_of_source_chunks_is_exact_with_levels(
    tmp_path: Path, client: ImageryClient, threads: Client, kind: str, levels: Any
) -> None:
    data = client.dataset([[-32, 48, 16], [60, 120, 50]])
    options: dict[str, Any] = {"chunks": (16, 16, 8), "levels": levels}
    export: Any = KINDS[kind](data, tmp_path / "out", **options)
    plan = export.plan(RESOURCES, 20_000)
    assert plan.source_chunks == chunks_read(plan, export)
    report = WRITERS[kind](data, tmp_path / "out", cluster=threads, progress=False, block_mib=0.02, **options)
    assert report.counts.chunks == plan.source_chunks


@pytest.mark.parametrize("what", ["imagery", "masks", "labels", "overlay", "outlines"])
def test_the_number_of_source_chunks_is_exact_for_slices(
    tmp_path: Path, client: ImageryClient, threads: Client, listed: list[int], what: str
) -> None:
    """Outlines read voxels beyond the edges of a tile."""
    data = client.dataset(BOUNDS)
    options: dict[str, Any] = {"what": what, "tile": 32}
    if what == "outlines":
        options |= {"what": "overlay", "outline": True, "width": 20}
    if what != "imagery":
        options["root_ids"] = listed
    export: Any = KINDS["png"](data, tmp_path / "em", **options)
    report = to_png(data, tmp_path / "em", cluster=threads, progress=False, **options)
    assert report.counts.chunks == read_plan(tmp_path / "em").source_chunks
    assert len(list(tmp_path.glob("*.png"))) == planned_pictures(export)


def planned_pictures(export: Any) -> int:
    """Return the planned number of files without the table of labels."""
    return int(export.format.objects(export)) - (export.target.table is not None)


def test_the_number_of_source_chunks_is_exact_for_pieces_of_graph_chunks(
    tmp_path: Path, threads: Client, configure: Configure
) -> None:
    configure("export.block_bytes", 8**3 * 8)
    world = make_world(tmp_path / "world", (128, 128, 32), storage_chunk=(8, 8, 8))
    with served(world) as server:
        client = ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)
        start = np.array(world.voxel_offset)
        for number, box in enumerate([((0, 0, 0), (64, 64, 32)), ((3, 5, 1), (60, 50, 29))]):
            array = client.segmentation_cutout(
                np.array(box) + start, mip=0, timestamp=world.times["split_1"], resolution=world.resolution
            )
            out = tmp_path / f"{number}.zarr"
            export: Any = KINDS["zarr"](array, out, chunks=(8, 8, 8))
            report = to_zarr(array, out, chunks=(8, 8, 8), cluster=threads, progress=False)
            plan = read_plan(out)
            assert (plan.parts[0][1].blocks.inner is not None) == (number == 0)
            assert plan.source_chunks == chunks_read(plan, export) == report.counts.chunks


@pytest.mark.long
@pytest.mark.usefixtures("sampled_here")
def test_amplification_is_the_number_of_reads_per_chunk(client: ImageryClient, threads: Client) -> None:
    aligned = client.plan_export([[-32, 48, 16], [64, 128, 56]], "/tmp/nowhere", chunks=(32, 32, 16), samples=1)
    assert aligned.estimate.amplification == 1
    across = client.plan_export([[-16, 64, 24], [48, 128, 56]], "/tmp/nowhere", chunks=(32, 32, 16), block_mib=0.01,
                                samples=1)  # fmt: skip
    # Along each axis, two blocks read two chunks each of the three that the region touches.
    assert across.estimate.amplification == pytest.approx((4 / 3) * (4 / 3) * (4 / 3), rel=0.3)
    export = across.export
    reads = export.format.reads(export, across.plan.parts[0][1])
    whole = {axis: chunks_along(reads.sources[0].cutout, slice(0, size), axis)
             for axis, size in enumerate((64, 64, 32))}  # fmt: skip
    once = 2 * math.prod(map(len, whole.values()))
    assert across.estimate.amplification == chunks_read(across.plan, export) / once
    assert any("Each storage chunk is read" in problem for problem in across.problems)


# ------------------------------------------------------------------------------------------------------ measurements


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ImageryClient:
    """A volume of noise, which no codec compresses, so all samples are alike."""
    folder = tmp_path_factory.mktemp("noise")
    voxels = np.random.default_rng(0).integers(1, 256, (128, 128, 64), np.uint8)
    levels = [np.random.default_rng(1).integers(1, 256, (64, 64, 64), np.uint8)]
    path = write_volume(folder / "em", voxels, chunk_size=(32, 32, 32), compress=False, mips=2, levels=levels)
    return ImageryClient(image_source=path)


def size_of(files: Iterator[Path]) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in files if path.is_file() and "receipts" not in str(path)]
    return len(sizes), sum(sizes)


MEASURED: dict[str, tuple[str, dict[str, Any]]] = {
    "chunks": ("zarr", {"chunks": (32, 32, 32), "shards": None}),
    "shards": ("zarr", {"chunks": (16, 16, 16), "shards": (32, 32, 32)}),
    "zarr 2": ("zarr", {"chunks": (32, 32, 32), "ome_version": "0.4"}),
    "pyramid": ("zarr", {"chunks": (32, 32, 32), "levels": 3}),
    "levels of the source": ("zarr", {"chunks": (32, 32, 32), "levels": "source"}),
    "precomputed": ("precomputed", {"chunks": (32, 32, 32)}),
    "precomputed pyramid": ("precomputed", {"chunks": (32, 32, 32), "levels": 3, "compress": "gzip"}),
    "png": ("png", {}),
    "tiles": ("tiff", {"tile": 32}),
}


@pytest.mark.parametrize("case", MEASURED)
@pytest.mark.long
def test_estimated_bytes_and_files_are_close(tmp_path: Path, noise: ImageryClient, threads: Client, case: str) -> None:
    kind, options = MEASURED[case]
    block = {} if kind in ("png", "tiff") else {"block_mib": 0.1}
    planned_export = noise.plan_export([[0, 0, 0], [128, 128, 64]], tmp_path / "out", format=kind, **options, **block)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    report = planned_export.run(cluster=threads, progress=False)
    files, size = size_of(tmp_path.rglob("*"))
    estimate = planned_export.estimate
    assert estimate.read_bytes.typical == pytest.approx(report.counts.stored_bytes, rel=0.1)
    # The tolerance covers metadata and shard indices, a noticeable part of exports this small.
    assert estimate.written_bytes.typical == pytest.approx(size, rel=0.1)
    assert estimate.written_bytes.low <= estimate.written_bytes.typical <= estimate.written_bytes.high
    assert estimate.objects == files
    assert estimate.source_chunks == report.counts.chunks
    assert estimate.missing == 0
    assert 50e6 < estimate.peak_bytes < 2e9
    assert 0 < estimate.seconds.low <= estimate.seconds.typical <= estimate.seconds.high < 100


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", ["zarr", "precomputed"])
def test_the_number_of_files_of_datasets_is_exact(
    tmp_path: Path, sources: dict[str, str], threads: Client, kind: str, version: str
) -> None:
    """The number includes metadata of groups and arrays."""
    options: dict[str, Any] = {"chunks": (32, 32, 16), "levels": 2}
    if kind == "zarr":
        options["ome_version"] = version
    for number, names in enumerate((["image_source", "segmentation_source"], ["segmentation_source"])):
        client = ImageryClient(**{name: sources[name] for name in names})
        data = client.dataset([[-32, 48, 16], [64, 128, 56]])
        export: Any = KINDS[kind](data, tmp_path / f"{number}", **options)
        WRITERS[kind](data, tmp_path / f"{number}", cluster=threads, progress=False, **options)
        files, _ = size_of((tmp_path / f"{number}").rglob("*"))
        assert export.format.objects(export) == files


@pytest.mark.usefixtures("sampled_here")
def test_empty_chunks_are_not_counted_as_files(tmp_path: Path, threads: Client) -> None:
    voxels = np.zeros((96, 64, 32), np.uint8)
    voxels[:32] = np.random.default_rng(0).integers(1, 256, (32, 64, 32), np.uint8)
    client = ImageryClient(image_source=write_volume(tmp_path / "em", voxels, chunk_size=(32, 32, 32)))
    delete_chunks(client.image_source or "", 0, lambda start: start[0] == 64)
    planned_export = client.plan_export(
        [[0, 0, 0], [96, 64, 32]], tmp_path / "out.zarr", chunks=(32, 32, 32), block_mib=0.03, samples=100
    )
    assert planned_export.estimate.samples == planned_export.plan.blocks == 6
    assert planned_export.estimate.missing == pytest.approx(1 / 3)
    assert "33.33% of the chunks" in f"{planned_export}"
    assert planned_export.estimate.written_bytes.low == 0
    planned_export.run(cluster=threads, progress=False)
    files, _ = size_of((tmp_path / "out.zarr").rglob("*"))
    assert files == planned_export.estimate.objects - 4
    # All blocks were samples, so the estimate is exact except for metadata.
    chunks = sum(path.stat().st_size for path in (tmp_path / "out.zarr" / "0" / "c").rglob("*") if path.is_file())
    assert planned_export.estimate.written_bytes.typical == pytest.approx(chunks)


@pytest.mark.long
def test_lookups_of_roots_are_measured(tmp_path: Path, server: CaveServer, world: World, command: Command) -> None:
    client = ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)
    start = np.array(world.voxel_offset)
    planned_export = client.plan_export(
        np.array([start, start + (64, 64, 32)]), tmp_path / "out.zarr", resolution=world.resolution,
        timestamp=world.times["split_1"], chunks=(32, 32, 16), samples=100,
    )  # fmt: skip
    assert planned_export.estimate.supervoxels.typical == server.ids_sent > 10
    assert planned_export.estimate.root_requests.typical > 0
    assert "supervoxels, in" in f"{planned_export}"
    assert TOKEN not in json.dumps(planned_export.to_json())


# ----------------------------------------------------------------------------------------- refusals and empty targets


def plan_command(command: Command, sources: dict[str, str], out: Any, *options: Any, kind: str = "zarr") -> Done:
    region = ("--image-source", sources["image_source"], *CLI_BOUNDS, "--samples", 1)
    return command("plan", kind, out, *region, *options)


def one_line(done: Done) -> str:
    """Check that a command failed with one line on stderr; return it."""
    assert done.code == 2
    assert done.error.startswith("Error: ")
    assert len(done.error.splitlines()) == 1
    assert "Traceback" not in done.error + done.out
    assert done.out == ""
    return done.error


def test_a_block_that_does_not_fit_is_refused(tmp_path: Path, sources: dict[str, str], command: Command) -> None:
    for kind in ("zarr", "precomputed", "png"):
        error = one_line(plan_command(command, sources, tmp_path / "out", "--worker-memory", "100kB", kind=kind))
        assert "0.0001 GB" in error
    assert list(tmp_path.iterdir()) == []


def test_insufficient_memory_of_workers_is_a_warning(tmp_path: Path, sources: dict[str, str], command: Command) -> None:
    """A block fits, but the whole worker process needs more."""
    done = plan_command(command, sources, tmp_path / "out.zarr", "--worker-memory", "20MB")
    assert done.code == 0
    assert "Problem: A worker would take" in done.error


@pytest.mark.parametrize("kind", ["zarr", "precomputed", "png"])
def test_a_target_below_a_file_is_refused(tmp_path: Path, sources: dict[str, str], command: Command, kind: str) -> None:
    (tmp_path / "file").write_text("a file")
    before = listing(tmp_path)
    error = one_line(plan_command(command, sources, tmp_path / "file" / "deeper" / "out", kind=kind))
    assert f"{tmp_path}/file" in error
    assert listing(tmp_path) == before


AS_NOBODY = """
import os
import json, tempfile, uuid  # import first: the other user may not read the interpreter's folder
import imagery_dask
from imagery_dask.cli import cmd_plan, main
from imagery_dask.export import registry
from imagery_dask.export.planning import estimate
from imagery_dask.cli.files import config_files, region_files
from imagery_dask.sources.precomputed.precomputed_volume import PrecomputedVolume
from imagery_dask.xarrays import accessor
names = [getattr(imagery_dask, name) for name in imagery_dask.__all__]
os.setgid(65534)
os.setuid(65534)
main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("kind", ["zarr", "precomputed", "png"])
@pytest.mark.long
def test_a_folder_of_another_user_is_refused(kind: str) -> None:
    # Not below pytest's own folder, which other users may not enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        source = write_volume(folder / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
        before = listing(folder)
        done = python("-c", AS_NOBODY, "plan", kind, folder / "new" / "out", "--image-source", source, *CLI_BOUNDS,
                      env={"HOME": "/nonexistent"})  # fmt: skip
        assert done.code == 2, done
        assert "Traceback" not in done.error
        assert f"{folder}" in done.error.splitlines()[-1]
        assert "ermission denied" in done.error
        assert listing(folder) == before


# A refusal takes 15 s, since CloudFiles sends the request seven times.
@pytest.mark.parametrize(("keys", "kind"), [("wrong", "zarr"), ("reader", "png")])
@pytest.mark.long
def test_a_bucket_that_refuses_is_one_line(
    tmp_path: Path, sources: dict[str, str], command: Command, s3_server: Any, kind: str, keys: str
) -> None:
    s3_server.create_bucket("plans")
    overrides = s3_server.reader if keys == "reader" else {"AWS_SECRET_ACCESS_KEY": "planted-secret"}
    with s3_server.environment(**overrides):
        error = one_line(plan_command(command, sources, "s3://plans/some/out", kind=kind))
    assert "s3://plans/some" in error
    assert "planted-secret" not in error
    with s3_server._closing_client() as client:
        assert client.list_objects_v2(Bucket="plans").get("KeyCount", 0) == 0


@pytest.mark.parametrize("out", ["s3://planned/some/out", "s3://planned-root"])
@pytest.mark.long
def test_planning_writes_nothing_to_a_bucket(
    sources: dict[str, str], command: Command, s3_server: Any, out: str
) -> None:
    bucket = out.split("/")[2]
    s3_server.create_bucket(bucket)
    with s3_server.environment():
        done = plan_command(command, sources, out)
    assert (done.code, done.error) == (0, "")
    with s3_server._closing_client() as client:
        assert client.list_objects_v2(Bucket=bucket).get("KeyCount", 0) == 0
        assert [entry["Name"] for entry in client.list_buckets()["Buckets"] if entry["Name"].startswith(bucket)] == [
            bucket
        ]


@pytest.mark.usefixtures("sampled_here")
def test_planning_does_not_change_an_existing_store(
    tmp_path: Path, sources: dict[str, str], command: Command, threads: Client
) -> None:
    to_zarr(np.ones((8, 8, 8), np.uint8), tmp_path / "out.zarr", cluster=threads, progress=False)
    before = listing(tmp_path)
    assert plan_command(command, sources, tmp_path / "out.zarr").code == 0
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "kind", ["zarr", pytest.param("precomputed", marks=pytest.mark.long), pytest.param("png", marks=pytest.mark.long)]
)
def test_planning_writes_nothing(tmp_path: Path, sources: dict[str, str], command: Command, kind: str) -> None:
    assert plan_command(command, sources, tmp_path / "deep" / "down" / "out", kind=kind).code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_refused_source_is_one_line(
    tmp_path: Path, command: Command, http_server_factory: Callable[..., FileServer]
) -> None:
    write_volume(tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
    server = http_server_factory(tmp_path, faults=lambda path, n: Fault(403) if "8_8_40" in path else None)
    source = f"precomputed://{server.url}/em"
    error = one_line(plan_command(command, {"image_source": source}, tmp_path / "out.zarr"))
    assert f"Access was refused to {source}/8_8_40/" in error


@pytest.mark.usefixtures("sampled_here")
def test_a_missing_chunk_is_one_line(tmp_path: Path, command: Command) -> None:
    source = write_volume(tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
    delete_chunks(source, 0, lambda start: start[2] == 32)
    error = one_line(plan_command(command, {"image_source": source}, tmp_path / "out.zarr", "--missing", "error"))
    assert "8_8_40/" in error
    assert "32-48" in error


@pytest.mark.usefixtures("sampled_here")
def test_a_chunk_that_does_not_decode_is_one_line(tmp_path: Path, command: Command) -> None:
    source = write_volume(
        tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET, compress=False
    )
    for path in (tmp_path / "em" / "8_8_40").iterdir():
        path.write_bytes(b"torn")
    error = one_line(plan_command(command, {"image_source": source}, tmp_path / "out.zarr"))
    assert "does not decode" in error


def test_a_wrong_token_is_one_line_and_not_shown(tmp_path: Path, server: CaveServer, world: World, command: Command,
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    start = np.array(world.voxel_offset)
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    arguments = ("plan", "zarr", tmp_path / "out.zarr", "--segmentation-source", server.segmentation_source,
                 "--bounds", *start, *(start + 32), "--resolution", *world.resolution, "--samples", 1)  # fmt: skip
    done = command(*arguments, "--save", tmp_path / "plan.json")
    assert (done.code, done.error) == (0, "")
    assert TOKEN not in (tmp_path / "plan.json").read_text() + done.out
    monkeypatch.setenv("CAVE_TOKEN", "0ther" + TOKEN)
    error = one_line(command(*arguments))
    assert "refused" in error
    assert TOKEN not in error


@pytest.mark.usefixtures("sampled_here")
def test_a_plan_is_printed_as_json(tmp_path: Path, sources: dict[str, str], command: Command) -> None:
    done = plan_command(command, sources, tmp_path / "out.zarr", "--json")
    assert done.code == 0
    content = json.loads(done.out)
    assert content["estimate"]["source_chunks"] == content["source_chunks"]
    assert ExportPlan.from_json(content).url == f"{tmp_path}/out.zarr"
