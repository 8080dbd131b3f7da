"""Plans: what is counted is exact, what is measured is near, nothing is spent, and what was planned is what is run."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
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
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.registry import KINDS, read_plan
from imagery_dask.testing.cave import CaveServer, World, make_world

SHAPE = (96, 80, 40)
OFFSET = (-32, 48, 16)
BOUNDS = [[-20, 60, 20], [50, 110, 50]]
CLI_BOUNDS = ("--bounds", -20, 60, 20, 50, 110, 50)
ROOM = WorkerResources(2, 2**31)
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


def options_of(sources: dict[str, str]) -> tuple[Any, ...]:
    return ("--image-source", sources["image_source"], "--segmentation-source", sources["segmentation_source"])


def planned(data: Any, kind: str = "zarr", out: Any = "/nowhere/out", block: int | None = None, **options: Any) -> Any:
    """Plan without measuring anything."""
    return KINDS[kind](data, out, **options).plan(ROOM, block)


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Names below a folder, hidden ones too, with sizes and times of writing."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# ----------------------------------------------------------------------------------------- plans that are run elsewhere

FORMATS: dict[str, tuple[str, ...]] = {
    "zarr": ("--chunks", "32,16,8", "--levels", "2", "--block-mib", "0.05"),
    "precomputed": ("--chunks", "32,16,8", "--block-mib", "0.05", "--segmentation-encoding", "raw"),
    "png": ("--what", "overlay", "--tile", "64"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.long
def test_a_saved_plan_is_run_elsewhere(
    tmp_path: Path, sources: dict[str, str], threads: Client, processes: Client, command: Command, kind: str
) -> None:
    """By another process, in another folder; what comes out is what the command itself writes."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    relative = [os.path.relpath(sources[name].removeprefix("precomputed://file://"), here) for name in sources]
    places = ("--image-source", relative[0], "--segmentation-source", relative[1], *CLI_BOUNDS)
    said = program("plan", kind, "out/em", *places, *FORMATS[kind], "--save", "plan.json", cwd=here)
    assert said.code == 0
    assert "Run it with: imagery-dask export --plan plan.json" in said.out
    assert [path.name for path in here.iterdir()] == ["plan.json"]
    ran = program("export", "--plan", here / "plan.json", "--cluster", processes.scheduler_info()["address"], cwd=there)
    assert (ran.code, ran.error) == (0, "")
    assert list(there.iterdir()) == []
    cluster = ("--cluster", threads.scheduler_info()["address"])
    direct = command(
        "export", kind, tmp_path / "direct" / "em", *options_of(sources), *CLI_BOUNDS, *FORMATS[kind], *cluster
    )
    assert (direct.code, direct.error) == (0, "")
    stores = [here / "out", tmp_path / "direct"]
    if kind != "png":
        stores = [store / "em" for store in stores]
    one, other = (
        {name: content for name, content in files_of(store).items() if "receipts" not in name} for store in stores
    )
    assert len(one) > 8
    assert one.keys() == other.keys()
    for name, content in one.items():
        if not name.endswith("provenance"):  # has the moment it was made
            assert content == other[name], name
    again = command("export", "--plan", here / "plan.json", *cluster)
    assert "blocks were written before; 0 were left to do" in again.out


def test_a_plan_is_json_with_a_version_and_comes_back(tmp_path: Path, client: ImageryClient, listed: list[int]) -> None:
    made = client.plan_export(BOUNDS, tmp_path / "out.zarr", chunks=(32, 16, 8), levels=2, root_ids=listed, samples=1)
    made.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    assert (content["format"], content["version"]) == ("imagery_dask.plan", 1)
    assert content["fingerprint"] == made.plan.fingerprint
    assert content["estimate"]["samples"] == made.estimate.samples
    assert json.loads(json.dumps(content), parse_int=float)["volumes"][1]["cutout"]["labels"]["keep"] == [
        str(value) for value in listed
    ]
    back = read_plan(tmp_path / "plan.json")
    assert back.to_json() == made.plan.to_json()
    assert back.stages == made.plan.stages
    assert KINDS["zarr"](client.dataset(BOUNDS, root_ids=listed, scale_to_bounds=False), tmp_path / "out.zarr",
                         chunks=(32, 16, 8), levels=2).plan(ROOM, None).fingerprint == back.fingerprint  # fmt: skip
    assert f"{made}"
    assert made.plan.fingerprint[:16] in f"{made}"
    assert made.plan.fingerprint[:16] in made._repr_html_()


@pytest.mark.parametrize(
    ("content", "says"),
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
def test_what_is_no_plan_is_refused(tmp_path: Path, command: Command, content: str, says: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    done = command("export", "--plan", tmp_path / "plan.json")
    assert done.code == 2
    assert done.error.startswith("Error: ")
    assert says in done.error
    assert len(done.error.splitlines()) == 1


def test_a_plan_of_a_computed_array_says_what_to_do(tmp_path: Path, client: ImageryClient, command: Command) -> None:
    array = client.image_cutout(BOUNDS) + 1
    plan = planned(array, out=tmp_path / "out.zarr")
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    done = command("export", "--plan", tmp_path / "plan.json")
    assert done.code == 2
    assert "array that was computed" in done.error


def test_a_plan_runs_from_python(tmp_path: Path, client: ImageryClient, threads: Client) -> None:
    made = client.plan_export(BOUNDS, tmp_path / "out.zarr", chunks=(32, 16, 8), block_mib=0.03, samples=1)
    report = made.run(cluster=threads, progress=False)
    assert (report.ok, report.blocks) == (True, made.plan.blocks)
    assert made.run(cluster=threads, progress=False).before == report.blocks


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
def test_a_plain_script_plans(tmp_path: Path, sources: dict[str, str]) -> None:
    """One without the guard that worker processes need."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = python(tmp_path / "script.py", sources["image_source"], tmp_path / "out.zarr")
    assert (done.code, done.error) == (0, "")
    assert done.out.count("measured on") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


# ------------------------------------------------------------------------------------------------------- fingerprints


def test_everything_that_decides_voxels_is_in_the_fingerprint(
    sources: dict[str, str], client: ImageryClient, listed: list[int], tmp_path: Path
) -> None:
    def of(kind: str = "zarr", region: Any = None, **options: Any) -> str:
        given = {"scale_to_bounds": False} | (region or {})
        fingerprint: str = planned(client.dataset(**({"bounds": BOUNDS} | given)), kind, **options).fingerprint
        return fingerprint

    smaller = [[-20, 60, 20], [50, 110, 49]]
    moved = [[-21, 60, 20], [49, 110, 50]]
    strict = ImageryClient(**sources, missing="error")
    image = client.image_cutout(BOUNDS)
    linear = [client.image_cutout(BOUNDS, mip=1, scale_to_bounds=True, order=order) for order in (0, 1)]
    other = write_volume(tmp_path / "other", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
    of_precomputed: dict[str, Any] = {"kind": "precomputed"}
    of_png: dict[str, Any] = {"kind": "png", "region": {"root_ids": listed}}
    masks = of_png | {"what": "masks", "root_ids": listed}
    overlay = of_png | {"what": "overlay", "root_ids": listed}
    found = {
        "plain": of(),
        "smaller": of(region={"bounds": smaller}),
        "moved": of(region={"bounds": moved}),
        "mip": of(region={"image_mip": 1, "segmentation_mip": 1}),
        "mip of one": of(region={"image_mip": 1}),
        "resolution": of(region={"resolution": (4, 4, 40)}),
        "ids": of(region={"root_ids": listed}),
        "other ids": of(region={"root_ids": listed[1:]}),
        "no ids": of(region={"root_ids": []}),
        "int64": of(region={"convert_to_int64": True}),
        "missing": planned(strict.dataset(BOUNDS, scale_to_bounds=False)).fingerprint,
        "order 0": planned(linear[0]).fingerprint,
        "order 1": planned(linear[1]).fingerprint,
        "source": planned(ImageryClient(image_source=other).image_cutout(BOUNDS)).fingerprint,
        "one": planned(image).fingerprint,
        "computed": planned(image + 1).fingerprint,
        "computed otherwise": planned(image + 2).fingerprint,
        "place": planned(image, resolution_nm=(1, 2, 3)).fingerprint,
        "other place": planned(image, translation_nm=(1, 2, 3)).fingerprint,
        "chunks": of(chunks=(32, 16, 8)),
        "shards": of(chunks=(32, 16, 8), shards=(64, 64, 64)),
        "codec": of(codec="gzip"),
        "levels": of(levels=3),
        "levels of the source": of(levels="source"),
        "version": of(ome_version="0.4"),
        "precomputed": of(**of_precomputed),
        "encoding": of(**of_precomputed, encoding={"image": "png"}),
        "quality": of(**of_precomputed, encoding={"image": "jpeg"}, quality=80),
        "other quality": of(**of_precomputed, encoding={"image": "jpeg"}, quality=81),
        "compress": of(**of_precomputed, compress="gzip"),
        "precomputed chunks": of(**of_precomputed, chunks=(32, 16, 8)),
        "one precomputed": planned(image, "precomputed").fingerprint,
        "dataset of one": planned(xr.Dataset({"image": client.dataset(BOUNDS).image}), "precomputed").fingerprint,
        "imagery": of("png"),
        "axis": of("png", slice_axis=0),
        "names": of("png", names="absolute"),
        "format": of("png", format="tiff"),
        "window": of("png", window=(3, 200)),
        "other window": of("png", window=(3, 201)),
        "bits": of("png", window=(3, 200), bits=16),
        "tile": of("png", tile=32),
        "masks": of(**masks),
        "colors": of(**masks, colors={listed[0]: (1, 2, 3)}),
        "other colors": of(**masks, colors={listed[0]: (1, 2, 4)}),
        "labels": of(**masks | {"what": "labels"}),
        "overlay": of(**overlay),
        "alpha": of(**overlay, alpha=0.3),
        "outline": of(**overlay, outline=True),
        "no merge": of(**overlay, outline=True, merge_outline=False),
        "width": of(**overlay, outline=True, width=3),
    }
    same = {name: [other for other in found if found[other] == found[name]] for name in found}
    assert [names for names in same.values() if len(names) > 1] == []


def test_what_decides_no_voxel_is_not(client: ImageryClient, listed: list[int]) -> None:
    data = client.dataset(BOUNDS, root_ids=listed)
    export = KINDS["zarr"](data, "/nowhere/out.zarr", chunks=(32, 16, 8))
    expected = export.plan(ROOM, None)
    for other in (
        export.plan(WorkerResources(64, 2**33), None),
        export.plan(ROOM, 10_000),
        export.plan(ROOM, 2**28),
        planned(data, out="s3://bucket/out.zarr", chunks=(32, 16, 8)),
        planned(data, chunks=[32, 16, 8]),
        planned(data, chunks=np.array([32, 16, 8])),
        planned(ImageryClient(**{name: f"{path}/" for name, path in (("image_source", client.image_source),
                ("segmentation_source", client.segmentation_source))}).dataset(BOUNDS, root_ids=listed),
                chunks=(32, 16, 8)),
    ):  # fmt: skip
        assert other.fingerprint == expected.fingerprint
    assert export.plan(ROOM, 10_000).blocks > expected.blocks
    slices = [planned(data, "png", window=(0, 9), max_files=n, block=n * 1000).fingerprint for n in (1000, 2000)]
    assert slices[0] == slices[1]


def test_the_moment_is_in_the_fingerprint(server: CaveServer, world: World) -> None:
    client = ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)
    roots = roots_at(world, world.times["split_1"])[:3]
    found = [
        planned(client.segmentation_volume(timestamp=world.times["split_1"])),
        planned(client.segmentation_volume(timestamp=world.times["split_2"])),
        planned(client.segmentation_volume(timestamp=world.times["split_1"], root_ids=None)),
        planned(client.segmentation_volume(timestamp=world.times["split_1"], root_ids=roots)),
        planned(client.segmentation_volume(timestamp=world.times["split_1"], stop_layer=2)),
    ]
    assert len({plan.fingerprint for plan in found}) == len(found)
    same = planned(client.segmentation_volume(timestamp=world.times["split_1"]), block=1000)
    assert same.fingerprint == found[0].fingerprint


# ----------------------------------------------------------------------------------------- storage chunks that are read


def chunks_read(plan: ExportPlan, export: Any) -> int:
    """Count by enumeration: every piece of every block, and the storage chunks of the voxels that it needs."""
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
    """Chunks along an axis that hold the voxels under the centres of some target voxels, or those around these."""
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
    # A read is one box: voxels between those that are needed are read too, also where the last of these lie outside.
    box = range(max(min(needed), grid.start[axis]), min(max(needed) + 1, grid.stop[axis]))
    return {(voxel - grid.start[axis]) // cutout.mip.chunk_shape[axis] for voxel in box}


def empty_volume(folder: Path, shape: Any, offset: Any, resolution: Any, chunk: Any, mips: int = 1) -> str:
    """Make an info without any chunks: what is asked for is counted all the same."""
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
def test_source_chunks_are_those_that_are_read(
    tmp_path_factory: pytest.TempPathFactory, threads: Client, shape: Any, offset: Any, chunk: Any, out: Any, low: Any,
    size: Any, scale: Any, order: int, block: int, data: Any,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("geometry")
    client = ImageryClient(image_source=empty_volume(folder / "em", shape, offset, (8, 8, 40), chunk))
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
    plan = export.plan(ROOM, block)
    assert plan.source_chunks == chunks_read(plan, export)
    more = {} if kind == "png" else {"block_mib": block / 2**20}
    report = WRITERS[kind](array, folder / "out", cluster=threads, progress=False, **options, **more)
    assert report.counts.chunks == read_plan(folder / "out").source_chunks


@pytest.mark.parametrize("levels", [1, 3, "source"])
@pytest.mark.parametrize("kind", ["zarr", "precomputed"])
def test_levels_read_what_is_planned(
    tmp_path: Path, client: ImageryClient, threads: Client, kind: str, levels: Any
) -> None:
    data = client.dataset([[-32, 48, 16], [60, 120, 50]])
    options: dict[str, Any] = {"chunks": (16, 16, 8), "levels": levels}
    export: Any = KINDS[kind](data, tmp_path / "out", **options)
    plan = export.plan(ROOM, 20_000)
    assert plan.source_chunks == chunks_read(plan, export)
    report = WRITERS[kind](data, tmp_path / "out", cluster=threads, progress=False, block_mib=0.02, **options)
    assert report.counts.chunks == plan.source_chunks


@pytest.mark.parametrize("what", ["imagery", "masks", "labels", "overlay", "outlines"])
def test_slices_read_what_is_planned(
    tmp_path: Path, client: ImageryClient, threads: Client, listed: list[int], what: str
) -> None:
    """Outlines look beyond the edges of a tile."""
    data = client.dataset(BOUNDS)
    options: dict[str, Any] = {"what": what, "tile": 32}
    if what == "outlines":
        options |= {"what": "overlay", "outline": True, "width": 20}
    if what != "imagery":
        options["root_ids"] = listed
    export: Any = KINDS["png"](data, tmp_path / "em", **options)
    report = to_png(data, tmp_path / "em", cluster=threads, progress=False, **options)
    assert report.counts.chunks == read_plan(tmp_path / "em").source_chunks
    assert len(list(tmp_path.glob("*.png"))) == report_files(export)


def report_files(export: Any) -> int:
    return int(export.format.objects(export)) - (export.target.table is not None)


def test_graph_chunks_are_read_in_pieces(tmp_path: Path, threads: Client, configure: Configure) -> None:
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


def test_amplification_counts_reads_of_one_chunk(client: ImageryClient, threads: Client) -> None:
    aligned = client.plan_export([[-32, 48, 16], [64, 128, 56]], "/tmp/nowhere", chunks=(32, 32, 16), samples=1)
    assert aligned.estimate.amplification == 1
    across = client.plan_export([[-16, 64, 24], [48, 128, 56]], "/tmp/nowhere", chunks=(32, 32, 16), block_mib=0.01,
                                samples=1)  # fmt: skip
    # Two blocks along each of three axes, each of which crosses two chunks where the region has three.
    assert across.estimate.amplification == pytest.approx((4 / 3) * (4 / 3) * (4 / 3), rel=0.3)
    export = across.export
    reads = export.format.reads(export, across.plan.parts[0][1])
    whole = {axis: chunks_along(reads.sources[0].cutout, slice(0, size), axis)
             for axis, size in enumerate((64, 64, 32))}  # fmt: skip
    once = 2 * math.prod(map(len, whole.values()))
    assert across.estimate.amplification == chunks_read(across.plan, export) / once
    assert any("Each storage chunk is read" in problem for problem in across.problems)


# ---------------------------------------------------------------------------------------------------- what is measured


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ImageryClient:
    """Voxels that no codec makes smaller: every part is like every other."""
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
def test_bytes_and_files_are_near(tmp_path: Path, noise: ImageryClient, threads: Client, case: str) -> None:
    kind, options = MEASURED[case]
    block = {} if kind in ("png", "tiff") else {"block_mib": 0.1}
    made = noise.plan_export([[0, 0, 0], [128, 128, 64]], tmp_path / "out", format=kind, **options, **block)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    report = made.run(cluster=threads, progress=False)
    files, size = size_of(tmp_path.rglob("*"))
    estimate = made.estimate
    assert estimate.read_bytes.typical == pytest.approx(report.counts.stored_bytes, rel=0.1)
    # Metadata and indices of shards are as large as they are, and these exports are small.
    assert estimate.written_bytes.typical == pytest.approx(size, rel=0.1)
    assert estimate.written_bytes.low <= estimate.written_bytes.typical <= estimate.written_bytes.high
    assert estimate.objects == files
    assert estimate.source_chunks == report.counts.chunks
    assert estimate.missing == 0
    assert 50e6 < estimate.peak_bytes < 2e9
    assert 0 < estimate.seconds.low <= estimate.seconds.typical <= estimate.seconds.high < 100


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", ["zarr", "precomputed"])
def test_files_of_datasets_are_counted(
    tmp_path: Path, sources: dict[str, str], threads: Client, kind: str, version: str
) -> None:
    """With their groups and what describes them."""
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


def test_empty_chunks_are_no_files(tmp_path: Path, threads: Client) -> None:
    voxels = np.zeros((96, 64, 32), np.uint8)
    voxels[:32] = np.random.default_rng(0).integers(1, 256, (32, 64, 32), np.uint8)
    client = ImageryClient(image_source=write_volume(tmp_path / "em", voxels, chunk_size=(32, 32, 32)))
    delete_chunks(client.image_source or "", 0, lambda start: start[0] == 64)
    made = client.plan_export([[0, 0, 0], [96, 64, 32]], tmp_path / "out.zarr", chunks=(32, 32, 32), block_mib=0.03,
                              samples=100)  # fmt: skip
    assert made.estimate.samples == made.plan.blocks == 6
    assert made.estimate.missing == pytest.approx(1 / 3)
    assert "33.33% of the chunks" in f"{made}"
    assert made.estimate.written_bytes.low == 0
    made.run(cluster=threads, progress=False)
    files, _ = size_of((tmp_path / "out.zarr").rglob("*"))
    assert files == made.estimate.objects - 4
    # Every block was measured: what they are in all is exact but for the metadata.
    chunks = sum(path.stat().st_size for path in (tmp_path / "out.zarr" / "0" / "c").rglob("*") if path.is_file())
    assert made.estimate.written_bytes.typical == pytest.approx(chunks)


@pytest.mark.long
def test_lookups_of_roots_are_measured(tmp_path: Path, server: CaveServer, world: World, command: Command) -> None:
    client = ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)
    start = np.array(world.voxel_offset)
    made = client.plan_export(
        np.array([start, start + (64, 64, 32)]), tmp_path / "out.zarr", resolution=world.resolution,
        timestamp=world.times["split_1"], chunks=(32, 32, 16), samples=100,
    )  # fmt: skip
    assert made.estimate.supervoxels.typical == server.ids_sent > 10
    assert made.estimate.root_requests.typical > 0
    assert "supervoxels, in" in f"{made}"
    assert TOKEN not in json.dumps(made.to_json())


# --------------------------------------------------------------------------------------------- refused before any work


def plan_command(command: Command, sources: dict[str, str], out: Any, *more: Any, kind: str = "zarr") -> Done:
    options = ("--image-source", sources["image_source"], *CLI_BOUNDS, "--samples", 1)
    return command("plan", kind, out, *options, *more)


def one_line(done: Done) -> str:
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


def test_memory_that_is_not_enough_is_said(tmp_path: Path, sources: dict[str, str], command: Command) -> None:
    """A block fits, and the process that does it has more besides."""
    done = plan_command(command, sources, tmp_path / "out.zarr", "--worker-memory", "20MB")
    assert done.code == 0
    assert "Problem: A worker would take" in done.error


@pytest.mark.parametrize("kind", ["zarr", "precomputed", "png"])
def test_a_place_below_a_file_is_refused(tmp_path: Path, sources: dict[str, str], command: Command, kind: str) -> None:
    (tmp_path / "file").write_text("a file")
    before = everything(tmp_path)
    error = one_line(plan_command(command, sources, tmp_path / "file" / "deeper" / "out", kind=kind))
    assert f"{tmp_path}/file" in error
    assert everything(tmp_path) == before


AS_NOBODY = """
import os
import json, tempfile, uuid  # now: an interpreter in somebody's home is nobody else's to read
import imagery_dask
from imagery_dask.cli import cmd_plan, main
from imagery_dask.export import registry
from imagery_dask.export.planning import estimate
from imagery_dask.sources.precomputed import PrecomputedVolume
names = [getattr(imagery_dask, name) for name in imagery_dask.__all__]
os.setgid(65534)
os.setuid(65534)
main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("kind", ["zarr", "precomputed", "png"])
@pytest.mark.long
def test_a_folder_of_somebody_else_is_refused(kind: str) -> None:
    # Not below pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        source = write_volume(folder / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
        before = everything(folder)
        done = python("-c", AS_NOBODY, "plan", kind, folder / "new" / "out", "--image-source", source, *CLI_BOUNDS,
                      env={"HOME": "/nonexistent"})  # fmt: skip
        assert done.code == 2, done
        assert "Traceback" not in done.error
        assert f"{folder}" in done.error.splitlines()[-1]
        assert "ermission denied" in done.error
        assert everything(folder) == before


# A refusal takes 15 s: CloudFiles asks seven times.
@pytest.mark.parametrize(("keys", "kind"), [("wrong", "zarr"), ("reader", "png")])
@pytest.mark.long
def test_a_bucket_that_refuses(
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
def test_a_bucket_is_left_as_it_is(sources: dict[str, str], command: Command, s3_server: Any, out: str) -> None:
    bucket = out.split("/")[2]
    s3_server.create_bucket(bucket)
    with s3_server.environment():
        done = plan_command(command, sources, out)
    assert (done.code, done.error) == (0, "")
    with s3_server._closing_client() as client:
        assert client.list_objects_v2(Bucket=bucket).get("KeyCount", 0) == 0
        assert [each["Name"] for each in client.list_buckets()["Buckets"] if each["Name"].startswith(bucket)] == [
            bucket
        ]


def test_a_store_that_is_there_is_left_as_it_is(
    tmp_path: Path, sources: dict[str, str], command: Command, threads: Client
) -> None:
    to_zarr(np.ones((8, 8, 8), np.uint8), tmp_path / "out.zarr", cluster=threads, progress=False)
    before = everything(tmp_path)
    assert plan_command(command, sources, tmp_path / "out.zarr").code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", ["zarr", "precomputed", "png"])
def test_a_plan_writes_nothing(tmp_path: Path, sources: dict[str, str], command: Command, kind: str) -> None:
    assert plan_command(command, sources, tmp_path / "deep" / "down" / "out", kind=kind).code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_refuses_is_one_line(
    tmp_path: Path, command: Command, http_server_factory: Callable[..., FileServer]
) -> None:
    write_volume(tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
    server = http_server_factory(tmp_path, faults=lambda path, n: Fault(403) if "8_8_40" in path else None)
    source = f"precomputed://{server.url}/em"
    error = one_line(plan_command(command, {"image_source": source}, tmp_path / "out.zarr"))
    assert f"Access was refused to {source}/8_8_40/" in error


def test_a_chunk_that_is_missing_is_one_line(tmp_path: Path, command: Command) -> None:
    source = write_volume(tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
    delete_chunks(source, 0, lambda start: start[2] == 32)
    error = one_line(plan_command(command, {"image_source": source}, tmp_path / "out.zarr", "--missing", "error"))
    assert "8_8_40/" in error
    assert "32-48" in error


def test_a_chunk_that_does_not_decode_is_one_line(tmp_path: Path, command: Command) -> None:
    source = write_volume(
        tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET, compress=False
    )
    for path in (tmp_path / "em" / "8_8_40").iterdir():
        path.write_bytes(b"torn")
    error = one_line(plan_command(command, {"image_source": source}, tmp_path / "out.zarr"))
    assert "does not decode" in error


def test_a_wrong_token_is_one_line(tmp_path: Path, server: CaveServer, world: World, command: Command,
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


def test_a_plan_prints_as_json(tmp_path: Path, sources: dict[str, str], command: Command) -> None:
    done = plan_command(command, sources, tmp_path / "out.zarr", "--json")
    assert done.code == 0
    content = json.loads(done.out)
    assert content["estimate"]["source_chunks"] == content["source_chunks"]
    assert ExportPlan.from_json(content).url == f"{tmp_path}/out.zarr"
