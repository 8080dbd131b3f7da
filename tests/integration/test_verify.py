"""Verifying exports: blocks that changed are found and named, and a repair does these blocks only."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from cloudvolume import CloudVolume
from distributed import Client
from integration.stores import files_of
from numpy.typing import NDArray
from support.http_server import Fault, FileServer
from support.programs import Done
from support.settings import Configure
from support.volumes import coordinate_volume, delete_chunks, random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr, verify_export
from imagery_dask.export.registry import read_plan, run_at
from imagery_dask.geometry.grid import XYZ
from imagery_dask.sources import handle
from imagery_dask.sources.precomputed.codecs import segmentation_damage

SHAPE = (96, 80, 40)
OFFSET = (-32, 48, 16)
BOUNDS = [[-32, 48, 16], [64, 128, 56]]
METADATA = (".json", ".jsonl", ".zarray", ".zgroup", ".zattrs", ".csv", "info", "provenance", ".bin")

Command = Callable[..., Done]


@dataclass(frozen=True)
class World:
    """Volumes in a folder of a test."""

    folder: Path
    client: ImageryClient

    def rewrite(self, image: NDArray[Any]) -> None:
        """Replace the imagery that was exported."""
        write_volume(self.folder / "image", image, voxel_offset=OFFSET)
        handle._volumes.clear()


@pytest.fixture
def world(tmp_path: Path) -> World:
    sources = {
        "image_source": write_volume(tmp_path / "image", smooth_image(SHAPE), voxel_offset=OFFSET),
        "segmentation_source": write_volume(
            tmp_path / "ids", random_labels(SHAPE, n=30), voxel_offset=OFFSET, layer_type="segmentation"
        ),
    }
    return World(tmp_path, ImageryClient(**sources))


@pytest.fixture(autouse=True)
def _blocks_of_several_stages(configure: Configure) -> None:
    """Split exports into many blocks, with coarser levels in a stage of their own."""
    configure("export.block_bytes", 2**15)
    for name in ("fused_bytes", "small_fused_bytes"):
        configure(f"export.{name}", 2**16)


Form = tuple[str, dict[str, Any], Callable[[World], Any]]
WRITERS: dict[str, Any] = {"zarr": to_zarr, "precomputed": to_precomputed, "png": to_png}


def image(world: World) -> Any:
    return world.client.image_cutout(BOUNDS)


def ids(world: World) -> Any:
    return world.client.segmentation_cutout(BOUNDS)


def both(world: World) -> Any:
    return world.client.dataset(BOUNDS)


CHUNKS = {"chunks": (32, 32, 16)}
FORMS: dict[str, Form] = {
    "zarr chunks": ("zarr", CHUNKS, image),
    "zarr ids": ("zarr", CHUNKS | {"codec": "gzip"}, ids),
    "zarr shards": ("zarr", {"chunks": (16, 16, 8), "shards": (32, 32, 16)}, both),
    "zarr pyramid": ("zarr", CHUNKS | {"levels": 3, "codec": "zstd"}, image),
    "zarr pyramid of ids": ("zarr", {"chunks": (16, 16, 8), "levels": 3, "shards": (32, 32, 16)}, ids),
    "zarr 2": ("zarr", CHUNKS | {"ome_version": "0.4", "levels": 2, "codec": "none"}, both),
    "raw": ("precomputed", CHUNKS | {"levels": 3}, image),
    "compressed_segmentation": ("precomputed", CHUNKS, ids),
    "both": ("precomputed", CHUNKS | {"encoding": {"segmentation": "raw"}}, both),
    "jpeg": ("precomputed", CHUNKS | {"encoding": "jpeg", "levels": 3}, image),
    "png encoding": ("precomputed", CHUNKS | {"encoding": "png"}, image),
    "jxl": ("precomputed", CHUNKS | {"encoding": "jxl", "quality": 90}, image),
    "jxl lossless": ("precomputed", CHUNKS | {"encoding": "jxl", "quality": 100}, image),
    "gzip": ("precomputed", CHUNKS | {"compress": "gzip"}, ids),
    "png": ("png", {}, image),
    "tiff tiles": ("png", {"format": "tiff", "tile": 32}, image),
    "masks": ("png", {"what": "masks", "root_ids": "all"}, ids),
    "labels": ("png", {"what": "labels", "root_ids": "all"}, ids),
    "overlay": ("png", {"what": "overlay", "outline": True, "tile": 40}, both),
}  # fmt: skip


def export(world: World, form: str, cluster: Client, **options: Any) -> str:
    """Export a form of the volumes; return the URL."""
    kind, form_options, data = FORMS[form]
    out = f"{world.folder}/out/em"
    report = WRITERS[kind](data(world), out, cluster=cluster, progress=False, **form_options, **options)
    assert report.ok
    return out


def check(out: str, cluster: Client, **options: Any) -> Any:
    """Verify all blocks of an export, unless the options say otherwise."""
    return verify_export(out, **{"sample": None, "cluster": cluster, "progress": False} | options)


def data_files(out: str) -> list[Path]:
    """Return the files that hold voxels."""
    names = sorted(path for path in Path(out).parent.rglob("*") if path.is_file() and "receipts" not in str(path))
    return [path for path in names if not path.name.endswith(METADATA)]


def content(out: str) -> dict[str, bytes]:
    """Return the content of all files except records and provenance, which contain dates."""
    files = files_of(Path(out).parent)
    return {name: data for name, data in files.items() if "receipts" not in name and not name.endswith("provenance")}


def finished(out: str) -> dict[int, float]:
    """Return the time at which each block was last written."""
    rows = run_at(out).records.receipts()
    return dict(zip(rows["block"].tolist(), rows["finished"].tolist(), strict=True))


# -------------------------------------------------------------------------------------------------- blocks of files


def owner(out: str, path: Path) -> int:
    """Return the number of the block that wrote a file, from its name, the metadata of the store and the plan."""
    plan = read_plan(out)
    name = path.relative_to(Path(out).parent).as_posix().removeprefix("em/")
    if plan.kind == "png":
        match = re.search(r"_slice_(\d+)(?:_[a-z_0-9]+?)?(?:_y(\d+)_x(\d+))?\.", name)
        assert match, name
        z, y, x = (int(value or 0) for value in match.groups())
        return block_at(plan, plan.parts[0][1].volume, 0, (x, y, z), (1, 1, 1))
    if plan.kind == "zarr":
        group, level, position = re.fullmatch(r"(labels/segmentation/)?(\d)/(?:c/)?([\d/]+)", name).groups()  # type: ignore[union-attr]
        array: Any = zarr.open_array(out, path=f"{group or ''}{level}", mode="r")
        unit = (array.shards or array.chunks)[-3:][::-1]
        first = tuple(int(at) * size for at, size in zip(position.split("/")[-3:][::-1], unit, strict=True))
        volume = "segmentation" if group or "segmentation" in {part.volume for _, part in plan.parts} else "image"
        volume = "image" if not group and len(plan.volumes) == 2 else volume
        fine: Any = zarr.open_array(out, path=f"{group or ''}{first_level(plan, volume, int(level))}", mode="r")
        factor = tuple(round(a / b) for a, b in zip(fine.shape[-3:][::-1], array.shape[-3:][::-1], strict=True))
        return block_at(plan, volume, int(level), first, factor)
    *folder, key, spans = name.split("/")
    volume = folder[0] if folder else plan.volumes[0]["name"]
    cv = CloudVolume(f"file://{out}/{'/'.join(folder)}".rstrip("/"), progress=False)
    level = next(n for n, scale in enumerate(cv.info["scales"]) if scale["key"] == key)
    start = cv.info["scales"][level]["voxel_offset"]
    first = tuple(int(re.match(r"-?\d+", span)[0]) - at for span, at in zip(spans.split("_"), start, strict=True))  # type: ignore[index]
    above = cv.info["scales"][first_level(plan, volume, level)]["resolution"]
    factor = tuple(round(a / b) for a, b in zip(cv.info["scales"][level]["resolution"], above, strict=True))
    return block_at(plan, volume, level, first, factor)


def first_level(plan: Any, volume: str, level: int) -> int:
    return max(part.level for _, part in plan.parts if part.volume == volume and part.level <= level)


def block_at(plan: Any, volume: str, level: int, voxel: Any, factor: Any) -> int:
    """Return the number of the block that holds a voxel of a level."""
    start = first_level(plan, volume, level)
    first, part = next(pair for pair in plan.parts if pair[1].volume == volume and pair[1].level == start)
    position = [at * times for at, times in zip(voxel, factor, strict=True)]
    (number,) = [
        first + n for n, (_, region) in enumerate(part.blocks)
        if all(span.start <= at < span.stop for span, at in zip(region, position, strict=True))
    ]  # fmt: skip
    return int(number)


def as_read(out: str) -> Any:
    """Return all voxels of an export, read with plain zarr and CloudVolume, or the bytes of its pictures."""
    plan = read_plan(out)
    try:
        if plan.kind == "png":
            return {path.name: path.read_bytes() for path in data_files(out)}
        if plan.kind == "zarr":
            members = zarr.open_group(out, mode="r").members(max_depth=None)
            return {path: np.asarray(member[...]) for path, member in members if isinstance(member, zarr.Array)}
        voxels = {}
        if [volume["name"] for volume in plan.volumes] == ["segmentation"]:
            for path in data_files(out):  # damaged chunks can crash CloudVolume
                stored = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
                if segmentation_damage(stored, (*chunk_shape(path), 1), (8, 8, 8), 8):
                    return "damaged"
        for info in Path(out).rglob("info"):
            for mip in range(len(CloudVolume(f"file://{info.parent}", progress=False).info["scales"])):
                voxels[f"{info.parent} {mip}"] = np.asarray(
                    CloudVolume(f"file://{info.parent}", mip=mip, progress=False)[:]
                )
    except Exception as error:
        return repr(type(error))
    return voxels


def chunk_shape(path: Path) -> XYZ:
    x, y, z = (int(stop) - int(start) for start, stop in re.findall(r"(-?\d+)-(-?\d+)", path.name))
    return x, y, z


def same(one: Any, other: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(other, dict) or one.keys() != other.keys():
        return False
    return all(np.array_equal(one[name], other[name]) for name in one)


# -------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.long
def test_a_flipped_bit_is_found(world: World, threads: Client, form: str) -> None:
    out = export(world, form, threads)
    report = check(out, threads)
    assert report.ok
    assert report.checked == report.blocks == read_plan(out).blocks > 2
    assert report.from_source == min(4, report.blocks)
    assert report.read_bytes == run_at(out).records.receipts()["written_bytes"].sum() > 0
    voxels, files, random = as_read(out), data_files(out), np.random.default_rng(len(form))
    assert isinstance(voxels, dict)
    changed_files = 0
    for _ in range(4):
        path = files[random.integers(len(files))]
        damaged = bytearray(path.read_bytes())
        # Any byte, including those at the end, where shards and pictures have indices and checksums.
        damaged[int(random.integers(len(damaged)))] ^= 1 << int(random.integers(8))
        whole = path.read_bytes()
        path.write_bytes(damaged)
        changed = not same(as_read(out), voxels)
        report = check(out, threads, source=False)
        if changed:
            assert (report.damaged, report.ok) == ([owner(out, path)], False), path
            changed_files += 1
        else:
            assert report.damaged in ([], [owner(out, path)])
        path.write_bytes(whole)
    assert changed_files > 0
    assert check(out, threads).ok


def delete(files: list[Path]) -> list[Path]:
    files[1].unlink()
    return files[1:2]


def truncate(files: list[Path]) -> list[Path]:
    files[0].write_bytes(files[0].read_bytes()[:-9])
    return files[:1]


def empty(files: list[Path]) -> list[Path]:
    files[0].write_bytes(b"")
    return files[:1]


def swap(files: list[Path]) -> list[Path]:
    one, other = files[0], next(path for path in files[::-1] if path.read_bytes() != files[0].read_bytes())
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return [one, other]


def flip(files: list[Path]) -> list[Path]:
    damaged = bytearray(files[-1].read_bytes())
    for at in range(len(damaged) // 3, len(damaged), 7):
        damaged[at] ^= 255
    files[-1].write_bytes(damaged)
    return files[-1:]


@pytest.mark.parametrize("damage", [delete, truncate, empty, swap, flip], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    "form", ["zarr shards", "zarr pyramid", "zarr 2", "raw", "jpeg", "gzip", "png", "masks", "labels"]
)
@pytest.mark.long
def test_damage_is_found_named_and_repaired(
    world: World, threads: Client, command: Command, form: str, damage: Callable[[list[Path]], list[Path]]
) -> None:
    address = threads.scheduler_info()["address"]
    out = export(world, form, threads)
    before, times = content(out), finished(out)
    owners = sorted({owner(out, path) for path in damage(data_files(out))})
    assert content(out) != before
    done = command("verify", out, "--all", "--no-source", "--cluster", address)
    assert (done.code, f"{len(owners):,} blocks DAMAGED" in done.error) == (1, True), done
    assert f"imagery-dask export --plan {out} --repair" in done.error
    assert "Traceback" not in done.error
    named_blocks = [line for line in done.error.splitlines() if line.startswith("    ")]
    assert len(named_blocks) == len(owners)
    done = command("export", "--plan", out, "--cluster", address)
    assert (done.code, "0 were left to do" in done.out) == (0, True)  # without --repair, no block is done
    assert finished(out) == times
    done = command("export", "--plan", out, "--repair", "--cluster", address)
    assert (done.code, done.error) == (0, "")
    assert f"{len(owners):,} were left to do" in done.out
    after = finished(out)
    assert [block for block in after if after[block] != times[block]] == owners
    done = command("verify", out, "--all", "--cluster", address)
    assert (done.code, done.error) == (0, "")
    assert "all as written" in done.out
    assert content(out) == before
    again = command("export", "--plan", out, "--repair", "--cluster", address)
    assert "0 were left to do" in again.out


def test_missing_files_are_reported_quickly(world: World, threads: Client) -> None:
    """Reading a missing file is not tried again."""
    out = export(world, "raw", threads)
    for path in data_files(out)[:6]:
        path.unlink()
    report = check(out, threads)
    assert len(report.damaged) > 3
    assert report.seconds < 10
    shutil.rmtree(Path(out) / "8_8_40")
    report = check(out, threads)
    assert report.seconds < 10
    assert report.checked - len(report.damaged) < 10


def test_all_blocks_of_a_deleted_array_are_damaged(world: World, threads: Client) -> None:
    out = export(world, "zarr chunks", threads)
    shutil.rmtree(Path(out) / "0")
    report = check(out, threads, source=False)
    assert len(report.damaged) == report.blocks


# ------------------------------------------------------------------------------------------------------------- samples


def test_a_sample_is_a_fraction_of_the_blocks(world: World, threads: Client, command: Command) -> None:
    address = threads.scheduler_info()["address"]
    out = export(world, "tiff tiles", threads)
    blocks = read_plan(out).blocks
    assert blocks == 18
    assert check(out, threads, sample=0.5).checked == 9
    assert check(out, threads, sample=0.01).checked == 4
    assert check(out, threads, sample=1.0).checked == 18
    done = command("verify", out, "--sample", "33%", "--seed", 5, "--cluster", address)
    assert (done.code, f"6 of {blocks} blocks read back" in done.out) == (0, True)
    for options in (("--sample", "5"), ("--sample", "50%", "--all"), ("--sample", "0%"), ("--sample", "200%")):
        assert command("verify", out, *options, "--cluster", address).code == 2
    for fraction in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="fraction of the blocks"):
            check(out, threads, sample=fraction)


def test_a_seed_chooses_the_same_blocks_again(world: World, threads: Client) -> None:
    out = export(world, "tiff tiles", threads)
    for path in data_files(out):
        path.write_bytes(b"")
    chosen = [sorted(check(out, threads, sample=0.3, seed=seed).damaged) for seed in (1, 1, 2)]
    assert len(chosen[0]) == 5
    assert chosen[0] == chosen[1] != chosen[2]
    # Damaged blocks of earlier samples are remembered until they are verified again.
    assert set(run_at(out).records.get("damaged.json")["blocks"]) == {*chosen[1], *chosen[2]}


# ------------------------------------------------------------------------------------------------- sources that changed


@pytest.mark.parametrize("form", ["zarr pyramid", "raw", "jpeg"])
def test_a_changed_source_is_found_and_repaired(world: World, threads: Client, command: Command, form: str) -> None:
    """Each verification compares four random blocks with the source, so several are needed."""
    address = threads.scheduler_info()["address"]
    out = export(world, form, threads)
    plan = read_plan(out)
    assert len(plan.stages) > 1
    world.rewrite(255 - smooth_image(SHAPE))
    assert command("verify", out, "--all", "--no-source", "--cluster", address).code == 0
    done = command("verify", out, "--all", "--cluster", address)
    assert done.code == 1
    assert "4 blocks for which the SOURCE CHANGED" in done.error
    for _ in range(plan.blocks):
        if (done := command("verify", out, "--all", "--cluster", address)).code == 0:
            break
        assert command("export", "--plan", out, "--repair", "--cluster", address).code == 0
    assert done.code == 0


def same_voxels(one: str, other: str) -> bool:
    return [path.read_bytes() for path in data_files(one)] == [path.read_bytes() for path in data_files(other)]


@pytest.mark.parametrize("state", ["changed", "damaged too"])
def test_repaired_blocks_of_a_changed_source_reach_all_levels(world: World, threads: Client, state: str) -> None:
    """This holds also for damaged blocks, which are not compared with the source."""
    out = export(world, "zarr pyramid", threads)
    before = finished(out)
    world.rewrite(255 - smooth_image(SHAPE))
    finest_files = [path for path in data_files(out) if f"{out}/0/" in str(path)]
    if state == "damaged too":
        for path in finest_files:
            path.write_bytes(b"torn")
        report = check(out, threads)
        assert report.source_changed == []
    else:
        damaged: set[int] = set()
        while len(damaged) < len(read_plan(out).stages[0][0].blocks):
            damaged |= set(check(out, threads).source_changed)
    repaired = to_zarr(image(world), out, **FORMS["zarr pyramid"][1], cluster=threads, progress=False, repair=True)
    assert (repaired.ok, repaired.done, repaired.before) == (True, repaired.blocks, 0)
    after = finished(out)
    assert all(after[block] > before[block] for block in after)
    assert check(out, threads).ok
    fresh = World(world.folder / "again", world.client)
    fresh.folder.mkdir()
    assert same_voxels(out, export(fresh, "zarr pyramid", threads))


def test_deleted_chunks_of_the_source_count_as_changed(world: World, threads: Client) -> None:
    client = ImageryClient(image_source=world.client.image_source, missing="error")
    out = world.folder / "out" / "em"
    to_zarr(client.image_cutout(BOUNDS), out, chunks=(32, 32, 16), cluster=threads, progress=False)
    delete_chunks(world.client.image_source or "", 0, lambda start: True)
    handle._volumes.clear()
    report = check(str(out), threads)
    assert (len(report.source_changed), report.damaged) == (4, [])
    assert "does not have all of it any more" in report.named[0].reason


def test_a_source_that_does_not_answer_is_not_damage(
    tmp_path: Path,
    threads: Client,
    http_server_factory: Callable[..., FileServer],
    monkeypatch: pytest.MonkeyPatch,
    configure: Configure,
) -> None:
    configure("run.pauses_s", (0.0,))
    monkeypatch.setattr("imagery_dask.sources.requests.transport.pause_s", lambda attempt, error=None: 0.0)
    write_volume(tmp_path / "em", smooth_image(SHAPE), voxel_offset=OFFSET)
    server = http_server_factory(tmp_path)
    client = ImageryClient(image_source=f"precomputed://{server.url}/em")
    out = str(tmp_path / "out.zarr")
    to_zarr(client.image_cutout(BOUNDS), out, chunks=(32, 32, 16), cluster=threads, progress=False)
    server.faults = lambda path, n: Fault(503)
    report = check(out, threads)
    assert (len(report.unread), report.damaged, report.source_changed, report.ok) == (4, [], [], False)
    assert run_at(out).records.get("damaged.json") is None
    server.faults = None
    assert check(out, threads).ok


# ----------------------------------------------------------------------------------------------- unfinished, unrecorded


def test_verifying_an_unfinished_export_counts_unwritten_blocks(
    world: World, threads: Client, command: Command
) -> None:
    address = threads.scheduler_info()["address"]
    out = world.folder / "out" / "em"
    delete_chunks(world.client.image_source or "", 0, lambda start: start[2] == 48)
    client = ImageryClient(image_source=world.client.image_source, missing="error")
    with pytest.raises(Exception, match="blocks failed"):
        to_zarr(client.image_cutout(BOUNDS), out, chunks=(32, 32, 16), cluster=threads, progress=False)
    left = read_plan(out).blocks - len(finished(str(out)))
    assert left > 0
    done = command("verify", out, "--all", "--cluster", address)
    assert done.code == 1
    assert f"{left:,} blocks are not written yet" in done.error
    write_volume(world.folder / "image", smooth_image(SHAPE), voxel_offset=OFFSET)
    assert command("export", "--plan", out, "--cluster", address).code == 0
    assert command("verify", out, "--all", "--cluster", address).code == 0


@pytest.mark.parametrize("exported", [True, False])
def test_an_export_without_records_is_refused(world: World, threads: Client, command: Command, exported: bool) -> None:
    """Without records there is nothing to compare with; what is stored is still checked as a volume."""
    address = threads.scheduler_info()["address"]
    out = f"{world.folder}/out/em"
    refused: list[tuple[str, ...]] = [("export", "--plan", out, "--repair")]
    if exported:
        export(world, "zarr chunks", threads)
        shutil.rmtree(f"{out}.receipts")
        done = command("verify", out, "--all", "--cluster", address)
        assert (done.code, "it is checked as a volume of another program" in done.out) == (0, True), done
    else:
        refused.append(("verify", out, "--all"))
    for arguments in refused:
        done = command(*arguments, "--cluster", address)
        assert done.code == 2
        assert done.error.startswith("Error: There are no records of an export beside")
        assert len(done.error.splitlines()) == 1
    with pytest.raises(FileNotFoundError, match="no records"):
        check(out, threads)


# ----------------------------------------------------------------------------------------------------- computed arrays


def odd_floats() -> NDArray[np.float32]:
    voxels = coordinate_volume(SHAPE, dtype=np.float32)
    voxels[::3] = np.nan
    voxels[1::3] = -0.0
    voxels[2::9] = np.inf
    return voxels


COMPUTED: dict[str, Any] = {
    "floats": odd_floats,
    "bool": lambda: coordinate_volume(SHAPE, dtype=np.uint8) > 100,
    "int64": lambda: random_labels(SHAPE, n=30).astype(np.int64),
    "channels": lambda: coordinate_volume((*SHAPE, 4), dtype=np.uint8),
    "named": lambda: xr.DataArray(
        da.from_array(random_labels(SHAPE), chunks=20), dims=("x", "y", "z"), name="segmentation"
    ),
    "dask": lambda: da.from_array(coordinate_volume(SHAPE, dtype=np.uint16), chunks=25) + 1,
}
NO_RESOLUTION = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20)}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zarr", "precomputed"])
@pytest.mark.parametrize("what", COMPUTED)
def test_computed_arrays_are_verified_and_repaired(
    tmp_path: Path, threads: Client, command: Command, what: str, kind: str
) -> None:
    address = threads.scheduler_info()["address"]
    data, out = COMPUTED[what](), f"{tmp_path}/out/em"
    options: dict[str, Any] = {"chunks": (32, 32, 16), "levels": 2} | (NO_RESOLUTION if kind == "precomputed" else {})
    options |= {"cluster": threads, "progress": False}
    WRITERS[kind](data, out, **options)
    report = check(out, threads)
    assert (report.ok, report.from_source) == (True, 0)
    before, times = content(out), finished(out)
    owners = sorted({owner(out, path) for path in flip(data_files(out))})
    done = command("verify", out, "--all", "--cluster", address)
    assert (done.code, f"{len(owners)} blocks DAMAGED" in done.error) == (1, True)
    done = command("export", "--plan", out, "--repair", "--cluster", address)
    assert done.code == 2
    assert "is the plan of a computed array" in done.error
    assert "repair=True" in done.error
    repaired = WRITERS[kind](data, out, repair=True, **options)
    assert repaired.blocks - repaired.before == len(owners)
    after = finished(out)
    assert [block for block in after if after[block] != times[block]] == owners
    assert check(out, threads).ok
    assert content(out) == before


@pytest.mark.long
@pytest.mark.parametrize("what", ["imagery", "masks", "labels"])
def test_slices_of_computed_arrays_are_verified_and_repaired(tmp_path: Path, threads: Client, what: str) -> None:
    values = smooth_image(SHAPE) if what == "imagery" else random_labels(SHAPE)
    data = xr.DataArray(da.from_array(values, chunks=20), dims=("x", "y", "z"), name="segmentation")
    out = f"{tmp_path}/out/em"
    options: dict[str, Any] = {"what": what, "tile": 64, "cluster": threads, "progress": False}
    to_png(data, out, **options)
    assert check(out, threads).ok
    before = content(out)
    owners = {owner(out, path) for path in delete(data_files(out))}
    assert set(check(out, threads).damaged) == owners
    repaired = to_png(data, out, repair=True, **options)
    assert repaired.blocks - repaired.before == len(owners)
    assert check(out, threads).ok
    assert content(out) == before


# ------------------------------------------------------------------------------------------------------------- buckets

IN_S3 = ["zarr pyramid", "zarr shards", "raw", "compressed_segmentation", "png"]


@pytest.mark.parametrize("form", IN_S3)
@pytest.mark.long
def test_exports_in_a_bucket_are_verified_and_repaired(
    world: World, threads: Client, command: Command, s3_server: Any, form: str
) -> None:
    address = threads.scheduler_info()["address"]
    bucket = "verify-" + re.sub(r"[ _]", "-", form)
    s3_server.create_bucket(bucket)
    kind, form_options, data = FORMS[form]
    out = f"s3://{bucket}/some/em"
    with s3_server.environment(), s3_server._closing_client() as client:

        def objects() -> dict[str, str]:
            entries = client.list_objects_v2(Bucket=bucket).get("Contents", [])
            return {
                entry["Key"]: entry["ETag"] for entry in entries if "receipts" not in entry["Key"] and entry["Size"]
            }

        WRITERS[kind](data(world), out, cluster=threads, progress=False, **form_options)
        done = command("verify", out, "--all", "--cluster", address)
        assert (done.code, done.error) == (0, "")
        before = objects()
        names = [name for name in sorted(before) if not name.endswith(METADATA)]
        client.delete_object(Bucket=bucket, Key=names[0])
        client.put_object(Bucket=bucket, Key=names[-1], Body=b"torn")
        done = command("verify", out, "--all", "--no-source", "--cluster", address)
        assert (done.code, "blocks DAMAGED" in done.error) == (1, True)
        done = command("export", "--plan", out, "--repair", "--cluster", address)
        assert (done.code, done.error) == (0, "")
        done = command("verify", out, "--all", "--cluster", address)
        assert (done.code, done.error) == (0, "")
        after = objects()
        assert after.keys() == before.keys()
        assert [name for name in names if after[name] != before[name]] == []
