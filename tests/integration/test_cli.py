"""Exit codes and exported voxels of the command line, with real clusters and servers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from distributed import Client
from integration.stores import labels, placement, stored, written
from numpy.typing import NDArray
from support.http_server import Fault, FileServer
from support.streams import without_dashboard
from support.volumes import coordinate_volume, delete_chunks, downsample, random_labels, write_volume

from imagery_dask.cli import main

SHAPE = (96, 80, 40)
OFFSET = (-32, -48, 16)
BOUNDS = ("--bounds", -20, -36, 20, 50, 14, 50)
PART = np.s_[12:82, 12:62, 4:34]


@dataclass(frozen=True)
class World:
    """Volumes on disk and their voxels at 8 nm; the segmentation is stored at 16 nm."""

    folder: Path
    image: NDArray[np.uint8]
    ids: NDArray[np.uint64]

    @property
    def both(self) -> tuple[str, ...]:
        return (
            "--image-source", f"precomputed://file://{self.folder}/image",
            "--segmentation-source", f"precomputed://file://{self.folder}/ids",
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    image = coordinate_volume(SHAPE, OFFSET, np.uint8)
    ids = downsample(random_labels(SHAPE, n=30), 1)
    write_volume(folder / "image", image, voxel_offset=OFFSET, encoding="png", mips=2)
    write_volume(
        folder / "ids", ids, voxel_offset=(-16, -24, 16), resolution=(16, 16, 40), layer_type="segmentation",
        encoding="compressed_segmentation", sharding=True,
    )  # fmt: skip
    return World(folder, image, ids.repeat(2, axis=0).repeat(2, axis=1))


Run = Callable[..., tuple[int, str, str]]


def script(*arguments: Any) -> tuple[int, str, str]:
    """Run the installed script in a new process; return exit code, stdout and stderr."""
    command = [str(Path(sys.executable).parent / "imagery-dask"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, without_dashboard(done.stderr)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, which saves the seconds of imports in a new interpreter."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["imagery-dask", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, without_dashboard(captured.err)

    return call


# ------------------------------------------------------------------------------------------------------ new processes


@pytest.mark.long
def test_the_script_exports_on_worker_processes(tmp_path: Path, world: World) -> None:
    out = tmp_path / "out.zarr"
    code, text, error = script("export", "zarr", out, *world.both, *BOUNDS, "--chunks", "32,16,8", "--workers", 1)
    assert (code, error) == (0, "")
    voxels = 2 * 70 * 50 * 30
    assert f"{out}: 2 of 2 blocks, {voxels:,} voxels" in text
    assert "MB/s" in text
    assert "source chunks missing: 0" in text
    np.testing.assert_array_equal(written(out), world.image[PART], strict=True)
    np.testing.assert_array_equal(labels(out), world.ids[PART], strict=True)
    assert stored(out).chunks == stored(out, "labels/segmentation").chunks == (8, 16, 32)
    expected_placement = ([8.0, 8.0, 40.0], [-19.5 * 8, -35.5 * 8, 20.5 * 40])
    assert placement(out) == placement(out, "labels/segmentation") == expected_placement


def test_the_script_refuses_bad_input(tmp_path: Path, world: World) -> None:
    out = tmp_path / "out.zarr"
    code, text, error = script("export", "zarr", out, "--image-source", f"file://{tmp_path}/nothing", *BOUNDS)
    assert (code, text) == (2, "")
    assert error.startswith("Error: There is no precomputed volume at")
    assert f"{tmp_path}/nothing" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


# -------------------------------------------------------------------------------------------------------------- output


def test_info_lists_the_mips_of_a_volume(run: Run, world: World) -> None:
    code, text, _ = run("info", world.both[1])
    assert code == 0
    assert "image, uint8, 2 mips" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["0"] == ["0", "8x8x40", "96x80x40", "32x32x16", "png", "no", "-32,-48,16", "64,32,56", "307", "kB"]
    assert rows["1"] == ["1", "16x16x40", "48x40x40", "32x32x16", "png", "no", "-16,-24,16", "32,16,56", "76.8", "kB"]
    code, text, _ = run("info", f"{world.folder}/ids")
    assert code == 0
    assert "segmentation, uint64, 1 mips" in text
    row = "0 16x16x40 48x40x40 32x32x16 compressed_segmentation yes -16,-24,16 32,16,56 614 kB"
    assert row.split() in [line.split() for line in text.splitlines()]


# -------------------------------------------------------------------------------------------------- options and voxels


@pytest.mark.parametrize("form", ["all", "none", "list", "file"])
def test_root_ids_are_read_in_every_form(run: Run, tmp_path: Path, world: World, processes: Client, form: str) -> None:
    ids = [int(i) for i in np.unique(world.ids[PART]) if i][1:7:2]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, ids)))
    argument = {"list": ",".join(map(str, ids)), "file": f"@{tmp_path}/ids.txt"}.get(form, form)
    out = tmp_path / "out.zarr"
    code, _, error = run(
        "export", "zarr", out, *world.both, *BOUNDS, "--root-ids", argument,
        "--cluster", processes.scheduler_info()["address"],
    )  # fmt: skip
    assert (code, error) == (0, "")
    expected = world.ids[PART]
    if form in ("list", "file"):
        expected = np.where(np.isin(expected, np.array(ids, np.uint64)), expected, 0)
        assert np.unique(expected).tolist() == [0, *ids]
    np.testing.assert_array_equal(labels(out), expected, strict=True)


def test_bounds_are_in_voxels_of_resolution_and_mips_are_exported(
    run: Run, tmp_path: Path, world: World, processes: Client
) -> None:
    """The bounds are in voxels of 4 nm; both layers are read, and written, at 16 nm."""
    out = tmp_path / "out.zarr"
    code, _, error = run(
        "export", "zarr", out, *world.both, "--bounds", -40, -72, 20, 100, 28, 50, "--resolution", 4, 4, 40,
        "--image-mip", 1, "--segmentation-mip", 0, "--cluster", processes.scheduler_info()["address"],
    )  # fmt: skip
    assert (code, error) == (0, "")
    part = np.s_[6:41, 6:31, 4:34]
    np.testing.assert_array_equal(written(out), downsample(world.image, 1)[part], strict=True)
    np.testing.assert_array_equal(labels(out), downsample(world.ids, 1)[part], strict=True)
    assert placement(out) == ([16.0, 16.0, 40.0], [-9.5 * 16, -17.5 * 16, 20.5 * 40])


def test_an_export_runs_on_the_cluster_of_a_file(run: Run, tmp_path: Path, world: World) -> None:
    file = tmp_path / "cluster.yaml"
    arguments = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": "127.0.0.1:0"}
    file.write_text(yaml.safe_dump({"cluster": "distributed.LocalCluster", "arguments": arguments}))
    out = tmp_path / "out.zarr"
    code, _, error = run("export", "zarr", out, *world.both, *BOUNDS, "--cluster", file)
    assert (code, error) == (0, "")
    np.testing.assert_array_equal(written(out), world.image[PART], strict=True)


def test_missing_chunks_are_named(run: Run, tmp_path: Path, world: World, processes: Client) -> None:
    path = write_volume(tmp_path / "em", world.image, voxel_offset=OFFSET)
    (gone,) = delete_chunks(path, 0, lambda start: start == (0, -16, 32))
    out = tmp_path / "out.zarr"
    code, text, error = run(
        "export", "zarr", out, "--image-source", path, *BOUNDS, "--cluster", processes.scheduler_info()["address"]
    )
    assert (code, error) == (0, "")
    assert "source chunks missing: 1" in text
    assert "8_8_40/0-32_-16-16_32-48" in text
    expected = world.image.copy()
    expected[gone] = 0
    np.testing.assert_array_equal(written(out), expected[PART], strict=True)


def test_failed_blocks_are_named(run: Run, tmp_path: Path, world: World, processes: Client) -> None:
    path = write_volume(tmp_path / "em", world.image, voxel_offset=OFFSET, chunk_size=(96, 80, 16))
    delete_chunks(path, 0, lambda start: start[2] == 32)
    address = processes.scheduler_info()["address"]
    arguments = ("--image-source", path, *BOUNDS, "--chunks", "128,128,16", "--cluster", address)
    code, text, error = run("export", "zarr", tmp_path / "strict.zarr", *arguments, "--missing", "error")
    assert code == 1
    assert "0 of 1 blocks" in text
    assert "FAILED" in error
    assert "8_8_40/-32-64_-48-32_32-48" in error
    assert "Traceback" not in error


# ------------------------------------------------------------------------------------------------------------ refusals


def test_refused_access_ends_with_2_before_and_1_during_an_export(
    run: Run, tmp_path: Path, world: World, processes: Client, http_server_factory: Callable[..., FileServer]
) -> None:
    """A refused info file is invalid input; a refused chunk ends an export that has begun."""
    out = tmp_path / "out.zarr"
    server = http_server_factory(world.folder, faults=lambda path, n: Fault(403))
    source = f"precomputed://{server.url}/image"
    code, text, error = run("export", "zarr", out, "--image-source", source, *BOUNDS)
    assert (code, text) == (2, "")
    assert f"Access was refused to {source}/info" in error
    assert not out.exists()
    server.faults = lambda path, n: Fault(403) if "8_8_40" in path else None
    code, text, error = run(
        "export", "zarr", out, "--image-source", source, *BOUNDS, "--cluster", processes.scheduler_info()["address"]
    )
    assert (code, text) == (1, "")
    assert f"Error: Access was refused to {source}/8_8_40/" in error
    assert "Traceback" not in error


def test_an_existing_output_is_replaced_on_request_only(
    run: Run, tmp_path: Path, world: World, processes: Client
) -> None:
    out = tmp_path / "out.zarr"
    arguments = ("export", "zarr", out, *world.both, "--cluster", processes.scheduler_info()["address"])
    assert run(*arguments, *BOUNDS)[0] == 0
    smaller = ("--bounds", -20, -36, 20, 12, -4, 36)
    code, text, error = run(*arguments, *smaller)
    assert (code, text) == (2, "")
    assert "--overwrite" in error
    np.testing.assert_array_equal(written(out), world.image[PART])
    assert run(*arguments, *smaller, "--overwrite")[0] == 0
    np.testing.assert_array_equal(written(out), world.image[12:44, 12:44, 4:20], strict=True)


# ------------------------------------------------------------------------------------------------------- invalid input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--root-ids", "5"), "--root-ids, --sparse and --segmentation-mip need a segmentation"),
        (("--segmentation-mip", "1"), "--root-ids, --sparse and --segmentation-mip need a segmentation"),
        (("--bounds", 9000, 0, 0, 9064, 64, 9), "--bounds lie outside the image"),
        (("--bounds", 1e30, 0, 0, 2e30, 10, 10), "bounds must be below 2**53"),
        (("--bounds", 0, 0, 0, 1e12, 10, 10), "1,000,000,000,000 voxels long along x; the volume has 96"),
        (("--server", "http://127.0.0.1:9"), "--server needs --datastack"),
        (("--version", "3"), "--version needs --datastack"),
        (("--as-segmentation",), "--as-segmentation is about --segmentation-source"),
    ],
)
def test_invalid_options_are_named(
    run: Run, tmp_path: Path, world: World, arguments: tuple[Any, ...], message: str
) -> None:
    out = tmp_path / "out.zarr"
    code, text, error = run("export", "zarr", out, *world.both[:2], *BOUNDS, *arguments)
    assert (code, text) == (2, "")
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize("command", [("export", "zarr"), ("plan", "precomputed"), ("export", "png")])
def test_without_a_source_the_flags_are_named(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    code, text, error = run(*command, tmp_path / "out", *BOUNDS)
    assert (code, text) == (2, "")
    assert "--image-source, --segmentation-source, or both; a --datastack; or --versions" in error
    assert "image_source" not in error


@pytest.mark.parametrize(
    ("layer", "options", "missing"),
    [
        ("image", ("--what", "masks"), "--what masks needs --segmentation-source"),
        ("image", ("--what", "labels"), "--what labels needs --segmentation-source"),
        ("image", ("--what", "overlay"), "--what overlay needs --segmentation-source"),
        ("segmentation", ("--what", "imagery"), "--what imagery needs --image-source"),
        ("segmentation", ("--what", "overlay", "--image-mip", "0"), "--image-mip needs imagery; give --image-source"),
        ("segmentation", ("--what", "masks", "--root-ids", "7,-5"), "from 0 to 2**64 - 1; got '-5'"),
        ("segmentation", ("--what", "masks", "--root-ids", 2**64), "got '18446744073709551616'"),
    ],
)
def test_what_an_option_needs_is_named(
    run: Run, tmp_path: Path, world: World, layer: str, options: tuple[Any, ...], missing: str
) -> None:
    source = world.both[:2] if layer == "image" else world.both[2:4]
    assert str(source[0]).startswith(f"--{layer}")
    code, text, error = run("export", "png", tmp_path / "o", *source, *BOUNDS, *options)
    assert (code, text) == (2, "")
    assert missing in error


def test_invalid_files_of_ids_are_refused(run: Run, tmp_path: Path, world: World) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bytes").write_bytes(bytes(range(128, 256)))
    for name, message in (
        ("empty", "contains no ids"),
        ("bytes", "is not a text file of ids"),
        ("nothing", "Cannot read"),
    ):
        code, _, error = run(
            "export", "zarr", tmp_path / "o.zarr", *world.both, *BOUNDS, "--root-ids", f"@{tmp_path}/{name}"
        )
        assert code == 2
        assert message in error


@pytest.mark.parametrize(
    ("name", "where"), [("export", ()), ("export", ("--workers", "1")), ("plan", ("--workers", "1"))]
)
@pytest.mark.long
def test_an_interrupt_ends_a_command_in_one_line(
    tmp_path: Path, world: World, file_server: FileServer, name: str, where: tuple[str, ...]
) -> None:
    """Ctrl-C sends SIGINT to every process of a terminal, here to the process group."""
    write_volume(tmp_path / "em", world.image, voxel_offset=OFFSET)
    file_server.latency_s = 1.0
    out = tmp_path / "out.zarr"
    command = [str(Path(sys.executable).parent / "imagery-dask"), name, "zarr", str(out), "--image-source",
               f"precomputed://{file_server.url}/em", *map(str, BOUNDS), *where]  # fmt: skip
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(lambda: file_server.count("/em/8_8_40/") > 0)
        os.killpg(started.pid, signal.SIGINT)
        text, error = started.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert (started.returncode, text) == (130, "")
    resume = f" Run the same command again to resume {out}; --overwrite starts over." if name == "export" else ""
    assert without_dashboard(error).lstrip("\n") == f"Interrupted.{resume}\n"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        time.sleep(0.05)
