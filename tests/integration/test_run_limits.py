"""Limits of a run (missing chunks, requests in flight), its ledger, and the check that an export is the same one."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from integration.stores import labels, written
from support.dynamic import TOKEN, bounds, resolution, roots_at, served
from support.http_server import FileServer
from support.programs import Done
from support.settings import Configure
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.errors import TooManyMissingError
from imagery_dask.export.core.provenance import KEY
from imagery_dask.export.registry import read_plan, run_at
from imagery_dask.sources.requests.counts import KEYS_KEPT
from imagery_dask.testing.cave import World, make_world

SHAPE = (128, 96, 64)
OFFSET = (-32, 48, 16)
CHUNK = (32, 32, 16)
BOUNDS = [[-20, 55, 20], [96, 144, 80]]
CLI_BOUNDS = ("--bounds", -20, 55, 20, 96, 144, 80)

Command = Callable[..., Done]


@pytest.fixture(autouse=True)
def _blocks_of_a_chunk(configure: Configure) -> None:
    configure("export.block_bytes", 2**13)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_volume(tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)


def is_gone(start: Any) -> bool:
    """Return True for the storage chunks that are deleted, about half of them."""
    return int(np.dot((start - np.array(OFFSET)) // CHUNK, (3, 5, 7))) % 4 < 2


# -------------------------------------------------------------------------------------------------------------- missing


@pytest.mark.parametrize("limit", [3, pytest.param("2%", marks=pytest.mark.long)])
def test_too_many_missing_chunks_end_a_run(
    tmp_path: Path, source: str, threads: Client, command: Command, configure: Configure, limit: Any
) -> None:
    # Bound the size of batches, which otherwise depends on the speed of the machine for such short blocks.
    configure("run.batch_blocks", 4)
    delete_chunks(source, 0, is_gone)
    out = tmp_path / "out.zarr"
    arguments = ("export", "zarr", out, "--image-source", source, *CLI_BOUNDS, "--chunks", "16,16,8",
                 "--block-mib", "0.001", "--cluster", threads.scheduler_info()["address"])  # fmt: skip
    done = command(*arguments, "--max-missing", limit)
    assert done.code == 1
    plan, receipts = read_plan(out), final_receipts(out)
    most = limit if isinstance(limit, int) else 0.02 * (plan.source_chunks or 0)
    assert re.fullmatch(
        r"Error: [\d,]+ storage chunks of the source do not exist, and max_missing \(--max-missing\) allows "
        rf"{most:,.0f}; the first: \S*8_8_40/\S+\. Finished blocks are kept; to resume, allow more\.\n",
        done.error,
    ), done.error
    named = re.search(r"8_8_40/(-?\d+)-\d+_(-?\d+)-\d+_(-?\d+)-\d+\. Finished", done.error)
    assert named
    assert is_gone(tuple(int(value) for value in named.groups()))
    # The run ends early, except for the window of blocks that was in progress.
    assert most < receipts["missing"].sum()
    assert len(receipts) < plan.blocks // 2
    # The same limit ends the next call before it does anything.
    again = command(*arguments, "--max-missing", limit)
    assert (again.code, "allow more" in again.error, "the first: " in again.error) == (1, True, True)
    assert len(run_at(str(out)).records.receipts()) == len(receipts)
    # A larger limit resumes the export, whose counts include the chunks missed before.
    done = command(*arguments, "--max-missing", "100%")
    assert (done.code, done.error) == (0, "")
    assert f"{len(receipts):,} blocks were written before" in done.out
    total = int(run_at(str(out)).records.receipts()["missing"].sum())
    assert f"source chunks missing: {total} (filled with 0)" in done.out
    whole = to_zarr(
        ImageryClient(image_source=source).image_cutout(BOUNDS), tmp_path / "whole.zarr", chunks=(16, 16, 8),
        block_mib=0.001, cluster=threads, progress=False,
    )  # fmt: skip
    assert whole.counts.missing == total
    np.testing.assert_array_equal(written(out), written(tmp_path / "whole.zarr"))
    one, other = ((tmp_path / f"{name}.zarr.receipts" / "ledger.jsonl").read_bytes() for name in ("out", "whole"))
    assert one == other
    attributes = [dict(zarr.open_group(tmp_path / f"{name}.zarr", mode="r").attrs[KEY]) for name in ("out", "whole")]  # type: ignore[call-overload]
    for recorded in attributes:
        assert recorded["source_chunks_missing"] == total
    assert attributes[0]["source_chunks_missing_first"] == attributes[1]["source_chunks_missing_first"]


def final_receipts(out: Path) -> Any:
    """Return the receipts once the blocks in progress are done."""
    before = run_at(str(out)).records.receipts()
    while True:
        time.sleep(1.5)
        receipts = run_at(str(out)).records.receipts()
        if len(receipts) == len(before):
            return receipts
        before = receipts


def test_max_missing_chunks_may_be_missing(tmp_path: Path, source: str, threads: Client) -> None:
    delete_chunks(source, 0, lambda start: start == OFFSET)
    array = ImageryClient(image_source=source).image_cutout(BOUNDS)
    options: dict[str, Any] = {"chunks": (64, 64, 32), "cluster": threads, "progress": False}
    report = to_zarr(array, tmp_path / "a.zarr", max_missing=1, **options)
    assert (report.ok, report.counts.missing) == (True, 1)
    for limit in (0, 0.0, 0.001):
        with pytest.raises(TooManyMissingError, match="allows 0; the first"):
            to_zarr(array, tmp_path / f"{limit}.zarr", max_missing=limit, **options)
    for wrong in (-1, 1.5, True, "1%"):
        with pytest.raises(ValueError, match="max_missing is a fraction"):
            to_zarr(array, tmp_path / "b.zarr", max_missing=wrong, **options)  # type: ignore[arg-type]


def test_a_fraction_of_an_unknown_number_of_chunks_is_refused(tmp_path: Path, source: str, threads: Client) -> None:
    array = ImageryClient(image_source=source).image_cutout(BOUNDS) + 1
    with pytest.raises(ValueError, match="because an array is computed; give a whole number"):
        to_zarr(array, tmp_path / "out.zarr", max_missing=0.1, cluster=threads, progress=False)
    assert not (tmp_path / "out.zarr").exists()
    assert not (tmp_path / "out.zarr.receipts").exists()
    to_zarr(array, tmp_path / "out.zarr", max_missing=1, cluster=threads, progress=False)


def test_a_missing_chunk_fails_its_blocks_and_is_named(
    tmp_path: Path, source: str, threads: Client, command: Command
) -> None:
    delete_chunks(source, 0, lambda start: start == (0, 80, 32))
    done = command(
        "export", "zarr", tmp_path / "out.zarr", "--image-source", source, *CLI_BOUNDS, "--chunks", "32,32,16",
        "--block-mib", "0.01", "--missing", "error", "--cluster", threads.scheduler_info()["address"],
    )  # fmt: skip
    assert done.code == 1
    plan = read_plan(tmp_path / "out.zarr")
    failing = {
        number for number in range(plan.blocks)
        if (0, 80, 32) in chunks_of([(part.start, part.stop) for part in plan.region(number)])
    }  # fmt: skip
    assert f"{len(failing)} blocks FAILED" in done.error
    assert done.error.count("8_8_40/0-32_80-112_32-48") == len(failing)
    records = run_at(str(tmp_path / "out.zarr")).records
    assert {line["block"] for line in records.lines("failed")} == failing
    assert set(records.receipts()["block"].tolist()) == set(range(plan.blocks)) - failing
    assert f"{plan.blocks - len(failing)} of {plan.blocks} blocks" in done.out


def chunks_of(region: Any) -> list[tuple[int, ...]]:
    """Return the first voxels of the storage chunks that a region of the cutout crosses."""
    axes = []
    for (first, stop), begin, offset, size, length in zip(region, BOUNDS[0], OFFSET, CHUNK, SHAPE, strict=True):
        voxels = range(max(begin + first, offset), min(begin + stop, offset + length))
        axes.append(sorted({(voxel - offset) // size * size + offset for voxel in voxels}))
    return list(product(*axes))


# --------------------------------------------------------------------------------------------------------- the ledger


@pytest.mark.parametrize("writer", [to_zarr, to_precomputed, to_png], ids=lambda function: function.__name__)
def test_the_ledger_lists_missing_chunks(tmp_path: Path, source: str, threads: Client, writer: Any) -> None:
    delete_chunks(source, 0, is_gone)
    array = ImageryClient(image_source=source).image_cutout(BOUNDS)
    out = tmp_path / "out" / "em"
    options: dict[str, Any] = {"tile": 40} if writer is to_png else {"chunks": (16, 16, 8), "block_mib": 0.01}
    report = writer(array, out, cluster=threads, progress=False, **options)
    plan = read_plan(out)
    expected = []
    for number in range(plan.blocks):
        region = [(part.start, part.stop) for part in plan.region(number)]
        keys = sorted(
            "8_8_40/" + "_".join(f"{first}-{first + size}" for first, size in zip(start, CHUNK, strict=True))
            for start in chunks_of(region)
            if is_gone(start)
        )
        expected += [(number, "missing chunk", key) for key in keys]
    (ledger,) = (tmp_path / "out").rglob("ledger.jsonl")
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(row["block"], row["kind"], row["key"]) for row in rows] == expected
    assert len(expected) == report.counts.missing > 20
    assert Counter(row["block"] for row in rows) == Counter(
        {int(row["block"]): int(row["missing"]) for row in run_at(str(out)).records.receipts() if row["missing"]}
    )
    if writer is to_precomputed:
        (step,) = json.loads((out / "provenance").read_text())["processing"]
        assert step["method"][KEY]["source_chunks_missing"] == len(expected)
        assert step["method"][KEY]["source_chunks_missing_first"] == first_keys(expected)


def first_keys(rows: Any) -> list[str]:
    return list(dict.fromkeys(key for _, _, key in rows))[:10]


def test_the_ledger_lists_supervoxels_without_a_root(tmp_path: Path, threads: Client, configure: Configure) -> None:
    configure("export.block_bytes", 2**17)
    world = make_world(tmp_path / "world", (128, 128, 32))
    with served(world) as server:
        client = ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)
        moment = world.times["created"] - 1
        array = client.segmentation_cutout(
            bounds(world, ((3, 5, 1), (60, 50, 29))), mip=0, resolution=resolution(world), timestamp=moment
        )
        report = to_zarr(array, tmp_path / "out.zarr", chunks=(32, 32, 16), cluster=threads, progress=False)
    plan = read_plan(tmp_path / "out.zarr")
    assert plan.blocks > 4
    assert plan.parts[0][1].blocks.inner is None
    voxels = world.supervoxels[3:60, 5:50, 1:29]
    rows = [json.loads(line) for line in (tmp_path / "out.zarr.receipts" / "ledger.jsonl").read_text().splitlines()]
    row_of = {row["block"]: row for row in rows}
    total = 0
    for number in range(plan.blocks):
        ids = set(np.unique(voxels[plan.region(number)]).tolist()) - {0}
        total += len(ids)
        assert row_of[number]["kind"] == "zero roots"
        assert row_of[number]["supervoxels"] == len(ids)
        assert {int(value) for value in row_of[number]["first"]} <= ids
        assert len(row_of[number]["first"]) == min(KEYS_KEPT, len(ids))
    assert len(rows) == plan.blocks
    assert report.counts.zero_roots == total
    group: Any = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert group.attrs[KEY]["supervoxels_without_root"] == total
    assert not written(tmp_path / "out.zarr").any()


# ----------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("limit", [None, 2])
def test_requests_in_flight_are_limited_over_a_cluster(
    tmp_path: Path, source: str, processes: Client, command: Command,
    http_server_factory: Callable[..., FileServer], limit: int | None,
) -> None:  # fmt: skip
    server = http_server_factory(tmp_path, latency_s=0.02)
    out = tmp_path / "out.zarr"
    done = command(
        "export", "zarr", out, "--image-source", f"precomputed://{server.url}/em", *CLI_BOUNDS, "--chunks", "32,32,16",
        "--cluster", processes.scheduler_info()["address"], *(() if limit is None else ("--max-requests", limit)),
    )  # fmt: skip
    assert (done.code, done.error) == (0, "")
    assert server.count("8_8_40/") == read_plan(out).source_chunks
    if limit is None:
        assert server.max_in_flight > 3
    else:
        assert 1 <= server.max_in_flight <= limit
    part = np.s_[12:128, 7:96, 4:64]
    np.testing.assert_array_equal(written(out), coordinate_volume(SHAPE, OFFSET, np.uint8)[part])
    assert command("export", "zarr", out, *CLI_BOUNDS, "--max-requests", 0).code == 2


# ---------------------------------------------------------------------------------------------- arguments that differ


def test_an_argument_that_differs_is_named(tmp_path: Path, source: str, threads: Client, command: Command) -> None:
    ids = random_labels(SHAPE, n=30)
    both = ("--image-source", write_volume(tmp_path / "mips", coordinate_volume(SHAPE, OFFSET, np.uint8),
                                           voxel_offset=OFFSET, mips=2),
            "--segmentation-source", write_volume(tmp_path / "ids", ids, voxel_offset=OFFSET,
                                                  layer_type="segmentation", mips=2))  # fmt: skip
    listed = [int(value) for value in np.unique(ids)[1:4]]
    out = tmp_path / "out.zarr"
    cluster = ("--cluster", threads.scheduler_info()["address"])
    arguments = ("export", "zarr", out, *both, *CLI_BOUNDS, *cluster)
    assert command(*arguments).code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for options, message in (
        (("--bounds", -20, 55, 20, 96, 144, 79), "image bounds (voxels) was [116, 89, 60] and is [116, 89, 59]"),
        (("--bounds", -19, 55, 20, 97, 144, 80), "bounds (first voxel) was [-20, 55, 20] and is [-19, 55, 20]"),
        (("--image-mip", 1, "--segmentation-mip", 1), "image mip.level was 0 and is 1"),
        (("--root-ids", ",".join(map(str, listed))), f'root_ids was not given and is ["{listed[0]}"'),
        (("--missing", "error"), 'missing was "fill" and is "error"'),
        (("--codec", "gzip"), 'codec was "auto" and is "gzip"'),
        (("--levels", "2"), "levels was 1 and is 2"),
        (("--chunks", "32,32,16"), "chunk was"),
        (("--image-source", source), "image source was"),
    ):
        done = command(*arguments, *options)
        assert done.code == 2
        *warnings, error = done.error.splitlines()
        assert message in error, (options, done.error)
        assert "--overwrite" in error
        assert all("outside" in warning for warning in warnings), warnings
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "world", (128, 128, 32))


def test_a_timestamp_that_differs_is_named(tmp_path: Path, world: World, threads: Client) -> None:
    with served(world) as server:
        client = ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)
        out = tmp_path / "out.zarr"
        first, second = (world.times[edit] for edit in ("split_1", "split_2"))
        to_zarr(client.segmentation_volume(timestamp=first), out, cluster=threads, progress=False)
        with pytest.raises(FileExistsError, match=rf"segmentation timestamp was {int(np.ceil(first))} and is"):
            to_zarr(client.segmentation_volume(timestamp=second), out, cluster=threads, progress=False)
        roots = roots_at(world, first)[:2]
        with pytest.raises(FileExistsError, match="segmentation root_ids was not given and is"):
            to_zarr(client.segmentation_volume(timestamp=first, root_ids=roots), out, cluster=threads, progress=False)


def test_resuming_keeps_the_timestamp_of_the_export(
    tmp_path: Path, world: World, threads: Client, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default timestamp is the time of the call, which differs between calls."""
    monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    with served(world) as server:
        start = np.array(world.voxel_offset)
        out = tmp_path / "out.zarr"
        arguments = ("export", "zarr", out, "--segmentation-source", server.segmentation_source, "--bounds", *start,
                     *(start + (64, 64, 32)), "--resolution", *world.resolution, "--chunks", "16,16,16",
                     "--block-mib", "0.02", "--cluster", threads.scheduler_info()["address"])  # fmt: skip
        stopped = command(*arguments, "--max-missing", 0)
        assert stopped.code == 0
        moment = read_plan(out).fingerprint_fields["segmentation timestamp"]
        # Remove receipts, so that some blocks must be done again later.
        records = run_at(str(out)).records
        for name in list(records.files.names(f"{records.run}/receipts-")):
            content = records.files.get(name) or b""
            records.files.put(name, content[: len(content) // 92 // 2 * 92])
        done_before = len(records.receipts())
        assert 0 < done_before < read_plan(out).blocks
        now = time.time
        monkeypatch.setattr("time.time", lambda: now() + 100)
        done = command(*arguments)
        assert (done.code, done.error) == (0, "")
        assert f"{done_before} blocks were written before" in done.out
        assert read_plan(out).fingerprint_fields["segmentation timestamp"] == moment
        np.testing.assert_array_equal(labels(out), world.roots_volume(moment))
        other = command(*arguments, "--timestamp", "2024-01-03T00:00:00Z")
        assert (other.code, "segmentation timestamp was" in other.error) == (2, True)
        again = command(*arguments, "--overwrite")
        assert again.code == 0
        assert read_plan(out).fingerprint_fields["segmentation timestamp"] > moment
