"""``--config``: files that hold the arguments of exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.http_server import FileServer
from support.programs import Done
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask.cli.cmd_plan import plan
from imagery_dask.export.core.run_states import plan_in
from imagery_dask.export.registry import run_at

SHAPE = (64, 48, 32)
Command = Callable[..., Done]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sources")
    write_volume(folder / "em", coordinate_volume(SHAPE, dtype=np.uint8), compress=False)
    write_volume(folder / "seg", random_labels(SHAPE, n=9), layer_type="segmentation", compress=False)
    return ["--image-source", str(folder / "em"), "--segmentation-source", str(folder / "seg")]


def fields(out: Path) -> Any:
    return plan_in(run_at(str(out))).fingerprint_fields


def level(out: Path, path: str = "0") -> Any:
    return zarr.open_array(str(out), path=path, mode="r")[:].T


def records(folder: Path) -> Path:
    """Return the only records folder in a folder."""
    (found,) = (path for path in folder.iterdir() if path.name.endswith(".receipts"))
    return found


IDS = [int(n) for n in np.unique(random_labels(SHAPE, n=9))[1:3]]
WAYS = {
    "zarr": ["--chunks", "16,16,16", "--levels", "2", "--shards", "none", "--root-ids", ",".join(map(str, IDS))],
    "precomputed": ["--segmentation-encoding", "raw", "--levels", "source", "--image-kind", "image"],
    "png": ["--what", "overlay", "--slice-axis", "y", "--max-missing", "50%"],
}


@pytest.mark.parametrize("form", WAYS)
def test_an_export_is_run_again_by_its_config(
    form: str, command: Command, sources: list[str], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [option for option in WAYS[form] if form != "precomputed" or option not in ("--levels", "source")]
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    options += ["--bounds", "0", "0", "0", "40", "40", "20", "--cluster", address]
    code, _, error = command("export", form, "out", *sources, *options)  # relative, and in a folder of its own
    assert (code, error) == (0, "")
    config = records(tmp_path / "a") / "config.yaml"
    before = fields(tmp_path / "a" / "out")
    text = config.read_text()
    copy = tmp_path / "config.yaml"
    copy.write_text(text.replace(f"{tmp_path}/a/out", f"{tmp_path}/b/out"))
    assert copy.read_text() != text
    monkeypatch.chdir(tmp_path)
    code, text, error = command("export", "--config", copy)
    assert (code, error) == (0, "")
    assert fields(tmp_path / "b" / "out") == before
    again = (records(tmp_path / "b") / "config.yaml").read_text()
    assert again == copy.read_text()
    code, text, _ = command("export", "--config", copy)
    assert "were written before; 0 were left to do" in text


def test_the_command_line_wins(command: Command, sources: list[str], address: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    content = {
        "export": "zarr", "out": str(tmp_path / "file.zarr"), "image_source": sources[1], "cluster": "tcp://nowhere:1",
        "bounds": [[0, 0, 0], [32, 32, 16]], "chunks": [16, 16, 16], "overwrite": False,
    }  # fmt: skip
    config.write_text(json.dumps(content))
    code, _, error = command("export", "--config", config, "--cluster", address)
    assert (code, error) == (0, "")
    assert zarr.open_array(str(tmp_path / "file.zarr"), path="0", mode="r").chunks == (16, 16, 16)
    out = tmp_path / "line.zarr"
    code, _, error = command("export", "zarr", out, "--config", config, "--cluster", address, "--chunks", "8,16,32")
    assert (code, error) == (0, "")
    assert zarr.open_array(str(out), path="0", mode="r").chunks == (16, 16, 8)
    np.testing.assert_array_equal(level(out), coordinate_volume(SHAPE, dtype=np.uint8)[:32, :32, :16])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("export: zarr\nout: a\nlvels: 2\n", "line 3: unknown option 'lvels' (did you mean 'levels'?)"),
        ("export: tif\nout: a\n", "'export' must be one of zarr, precomputed, png; got 'tif'"),
        ("out: a\n", "'export' must be one of zarr, precomputed, png; got None"),
        ("export: zarr\nout: a\noverwrite: 1\n", "line 3: overwrite must be true or false; got 1"),
        ("export: zarr\nout: a\nlevels: true\n", "line 3: levels must be a value; got True"),
        ("export: zarr\nout: a\nbounds: [1, 2]\n", "Invalid value for '--bounds': Takes 6 values but 2 were given"),
        ("export: zarr\nout: a\nlevels: many\n", "Invalid value for '--levels'"),
        ("export: zarr\nout: a\nregions: {a: [0, 0, 0, 9, 9, 0]}\n", "the file of options, 'a': bounds are inverted"),
        ("export: zarr\nout: a\nbounds: 0 0 0 9 9 9\nregions: r.csv\n", "exclude each other"),
        ("export: zarr\nout: a\nimage-source: em\n", "Missing option '--bounds' or '--regions'"),
        ("- zarr\n", "line 1: the file is not a mapping"),
        ("export: zarr\nexport: png\n", "duplicate key 'export'"),
    ],
)
def test_bad_files_are_refused_by_name(content: str, message: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    code, _, error = command("export", "--config", tmp_path / "config.yaml")
    assert code == 2
    assert message in error


def test_a_file_of_another_format_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("export: png\n")
    code, _, error = command("export", "zarr", "out", "--config", tmp_path / "config.yaml")
    assert (code, "options of 'png', and this is an export to zarr" in error) == (2, True)


def test_secrets_are_left_out(command: Command, sources: list[str], address: str, tmp_path: Path) -> None:
    with FileServer(Path(sources[1]).parent) as server:
        source = f"{server.url}/em?token=hush".replace("http://", "precomputed://http://")
        out = tmp_path / "out.zarr"
        code, _, error = command("export", "zarr", out, "--image-source", source, "--bounds", 0, 0, 0, 16, 16, 16,
                             "--cluster", address)  # fmt: skip
    assert (code, error) == (0, "")
    text = (tmp_path / "out.zarr.receipts" / "config.yaml").read_text()
    assert "hush" not in text
    assert f"{server.url}/em" in text


def test_plan_takes_the_config_of_an_export(tmp_path: Path) -> None:
    content = "image-source: em\nbounds: 0 0 0 32 32 16\ncluster: a.yaml\nretire-before: 5m\n"
    (tmp_path / "config.yaml").write_text(content)
    context = plan.commands["zarr"].make_context("zarr", ["out", "--config", str(tmp_path / "config.yaml")])
    assert (context.params["image_source"], context.params["bounds"]) == ("em", (0, 0, 0, 32, 32, 16))
