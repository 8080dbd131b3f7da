"""Exit codes and output of the command line, run in this process: 0 done, 1 some blocks failed, 2 bad input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from distributed import LocalCluster
from support.streams import without_dashboard

from imagery_dask.cli import main

ROOT = 864691135000000001
START = (-16, 8, 5)
SHAPE = (32, 32, 16)


def write(folder: Path, kind: str) -> str:
    x, y, z = np.ix_(*(np.arange(n) for n in SHAPE))
    ids = np.asfortranarray(ROOT + (x // 8) + 4 * (y // 8) + 0 * z).astype(np.uint64)
    data = ids if kind == "segmentation" else (1 + x + 32 * (y % 7) + 0 * z).astype(np.uint8)
    info = CloudVolume.create_new_info(
        1, kind, data.dtype.name, "raw", [8, 8, 40], list(START), list(SHAPE), chunk_size=[16, 16, 16]
    )
    volume = CloudVolume(f"file://{folder}", info=info, progress=False)
    volume.add_scale((2, 2, 1))
    volume.commit_info()
    volume.commit_provenance()
    for mip in (0, 1):
        level = CloudVolume(f"file://{folder}", mip=mip, progress=False)
        level[level.bounds.to_slices()] = np.asfortranarray(data[:: 2**mip, :: 2**mip])
    return f"file://{folder}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("cli")
    return {kind: write(root / kind, kind) for kind in ("image", "segmentation")}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Return the address of a cluster in this process."""
    with LocalCluster(processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as started:
        yield started.scheduler_address


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line and return exit code, stdout and stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "160")  # without a terminal, tables are folded to 80 columns
        monkeypatch.setattr(sys, "argv", ["imagery-dask", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, without_dashboard(captured.err)

    return call


BOUNDS = ("--bounds", -16, 8, 5, 16, 40, 21)


def test_help_and_version_are_code_0(run: Any) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("demo", "info", "export"))
    assert run("export", "zarr", "--help")[0] == 0
    assert run("--version")[0] == 0


def test_info_lists_the_layer_and_its_mips(run: Any, sources: dict[str, str]) -> None:
    code, out, _ = run("info", sources["segmentation"])
    assert code == 0
    flat = " ".join(out.split())
    for text in (
        "segmentation, uint64", "2 mips", "8x8x40", "16x16x40", "32x32x16", "16x16x16", "raw",
        "-16,8,5 16,40,21", "131 kB", "32.8 kB",
    ):  # fmt: skip
        assert text in flat, text


@pytest.mark.parametrize("root_ids", ["all", f"{ROOT},{ROOT + 5}"])
def test_a_finished_export_is_code_0_with_the_voxels_of_the_source(
    run: Any, sources: dict[str, str], cluster: str, tmp_path: Path, root_ids: str
) -> None:
    out = tmp_path / "out.zarr"
    code, text, error = run(
        "export", "zarr", out, "--image-source", sources["image"], "--segmentation-source", sources["segmentation"],
        *BOUNDS, "--chunks", "16,16,16", "--cluster", cluster, "--root-ids", root_ids,
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert "source chunks missing: 0" in text
    assert f"{2 * 32 * 32 * 16:,} voxels" in text
    x, y, z = np.ix_(*(np.arange(n) for n in SHAPE))
    ids = (ROOT + (x // 8) + 4 * (y // 8) + 0 * z).astype(np.uint64)
    if root_ids != "all":
        ids = np.where(np.isin(ids, np.array([ROOT, ROOT + 5], np.uint64)), ids, 0)
    np.testing.assert_array_equal(np.asarray(zarr.open(out / "labels/segmentation/0")).T, ids)
    image = (1 + x + 32 * (y % 7) + 0 * z).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(zarr.open(out / "0")).T, image)


def test_failed_blocks_are_code_1(run: Any, tmp_path: Path, cluster: str) -> None:
    source = write(tmp_path / "holes", "image")
    missing = tmp_path / "holes" / "8_8_40" / "0-16_24-40_5-21.gz"
    missing.unlink()
    common = ("--image-source", source, *BOUNDS, "--chunks", "16,16,16", "--cluster", cluster)
    code, text, error = run("export", "zarr", tmp_path / "strict.zarr", *common, "--missing", "error")
    assert code == 1
    assert "FAILED" in error
    assert "0-16_24-40_5-21" in error
    code, text, error = run("export", "zarr", tmp_path / "filled.zarr", *common)
    assert (code, error) == (0, "")
    assert "source chunks missing: 1" in text
    assert "0-16_24-40_5-21" in text
    filled = np.asarray(zarr.open(tmp_path / "filled.zarr" / "0")).T
    assert not filled[16:, 16:].any()
    assert filled[:16].all()
    assert filled[:, :16].all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bounds", 16, 8, 5, -16, 40, 21], ["bounds", "inverted or empty along x"]),
        (["--bounds", "nan", 8, 5, 16, 40, 21], ["bounds", "finite"]),
        (["--bounds", 1, 2, 3], ["--bounds", "6"]),
        ([*BOUNDS, "--resolution", 8, 0, 40], ["resolution", "positive"]),
        ([*BOUNDS, "--image-mip", 2], ["mip 2 does not exist", "mips 0 to 1"]),
        ([*BOUNDS, "--image-mip", "one"], ["--image-mip", "one"]),
        ([*BOUNDS, "--chunks", "16,0,16"], ["--chunks", "16,0,16", "at least 1"]),
        ([*BOUNDS, "--chunks", "16,16"], ["--chunks", "three whole numbers"]),
        ([*BOUNDS, "--root-ids", "some"], ["--root-ids", "some"]),
        ([*BOUNDS, "--root-ids", "@/nowhere/ids"], ["--root-ids", "/nowhere/ids"]),
        ([*BOUNDS, "--workers", 0], ["--workers", "0"]),
        ([*BOUNDS, "--cluster", "locl"], ["cluster", "'locl'"]),
        ([*BOUNDS, "--missing", "zero"], ["--missing", "zero"]),
        ([*BOUNDS, "--colour", "red"], ["--colour"]),
        ([], ["--bounds"]),
    ],
)
def test_bad_input_is_code_2_and_nothing_is_written(
    run: Any, sources: dict[str, str], tmp_path: Path, arguments: list[Any], words: list[str]
) -> None:
    out = tmp_path / "out.zarr"
    code, text, error = run("export", "zarr", out, "--image-source", sources["image"], *arguments)
    assert code == 2
    assert text == ""
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert not out.exists()


def test_negative_root_id_is_code_2(run: Any, sources: dict[str, str], tmp_path: Path) -> None:
    both = ("--image-source", sources["image"], "--segmentation-source", sources["segmentation"])
    code, _, error = run("export", "zarr", tmp_path / "out.zarr", *both, *BOUNDS, "--root-ids", f"-{ROOT}")
    assert code == 2
    assert "--root-ids" in error
    assert f"-{ROOT}" in error


def test_unusable_sources_are_code_2(run: Any, sources: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    for arguments, word in [
        ((), "Give what to export: --image-source, --segmentation-source, or both; a --datastack; or --versions."),
        (("--image-source", f"file://{tmp_path}/absent"), "no precomputed volume"),
        (("--segmentation-source", sources["image"]), "not a segmentation"),
        (("--image-source", "graphene://https://server/table"), "graphene"),
    ]:
        code, text, error = run("export", "zarr", out, *arguments, *BOUNDS)
        assert (code, text) == (2, "")
        assert word in error
    assert run("info", tmp_path / "absent")[0] == 2
    assert not out.exists()


def test_existing_files_and_stores_are_kept_without_overwrite(
    run: Any, sources: dict[str, str], cluster: str, tmp_path: Path
) -> None:
    other_folder = tmp_path / "thesis"
    other_folder.mkdir()
    (other_folder / "chapter1").write_text("text")
    common = ("--image-source", sources["image"], *BOUNDS, "--cluster", cluster)
    for options in ((), ("--overwrite",)):  # a folder that is no store is not removed, even with --overwrite
        code, _, error = run("export", "zarr", other_folder, *common, *options)
        assert code == 2
        assert str(other_folder) in error
        assert (other_folder / "chapter1").read_text() == "text"
    store = tmp_path / "store.zarr"
    assert run("export", "zarr", store, *common)[0] == 0
    code, text, _ = run("export", "zarr", store, *common)
    assert code == 0
    assert "were written before; 0 were left to do" in text
    other = (*common, "--codec", "gzip", "--root-ids", "all")
    code, _, error = run("export", "zarr", store, *other)
    assert code == 2
    assert "--overwrite" in error
    assert 'codec was "auto" and is "gzip".' in error
    assert run("export", "zarr", store, *other, "--overwrite")[0] == 0


def test_unknown_command_is_code_2(run: Any) -> None:
    assert run("exprot")[0] == 2
    assert run("export", "tiff", "out")[0] == 2


@pytest.mark.parametrize(
    "command",
    [
        "info",
        "export",
        "export zarr",
        "export precomputed",
        "plan",
        "plan zarr",
        "status",
        "verify",
        "view",
        "downsample",
    ],
)
def test_help_keeps_the_lines_of_examples(command: str, run: Any) -> None:
    code, shown, _ = run(*command.split(), "--help")
    assert code == 0
    assert "\\b" not in shown
    assert "\n    imagery-dask " in shown or "Examples" not in shown
