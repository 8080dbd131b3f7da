"""``versions diff``, ``versions materialize`` and ``view`` of a version store."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorstore
import zarr
from PIL import Image
from support.programs import PROGRAM, Done, environment
from support.settings import Configure

from imagery_dask import open_versions
from imagery_dask.testing.cave import World

Moments = dict[str, tuple[float, int | None]]
Command = Callable[..., Done]


def test_versions_are_compared(command: Command, tmp_path: Path, out: Path, world: World, moments: Moments) -> None:
    changed = world.roots_volume(moments["1"][0]) != world.roots_volume(moments["3"][0])
    picture, csv = tmp_path / "changed.png", tmp_path / "changed.csv"
    done = command("versions", "diff", out, "1", "3", "--picture", picture, "--csv", csv)
    assert done.code == 0, done.error
    assert re.search(rf"voxels that differ +{changed.sum():,} ", done.out)
    with Image.open(picture) as image:
        assert image.size[0] > 3 * 256
    table = open_versions(out).diff(1, 3).table
    rows = [line.split(",") for line in csv.read_text().splitlines()]
    assert rows[0] == ["root_a", "root_b", "supervoxels", "voxels"]
    assert [[int(value) for value in row] for row in rows[1:]] == table.to_numpy().tolist()
    assert str(table["root_a"].iloc[table["voxels"].argmax()]) in done.out


def test_a_difference_as_json_keeps_ids(command: Command, out: Path) -> None:
    done = command("versions", "diff", out, "2024-01-03T00:00:00Z", "4", "--json")
    found, table = json.loads(done.out), open_versions(out).diff("2024-01-03T00-00-00Z", 4)
    assert (found["from"], found["to"], found["voxels"]) == ("2024-01-03T00-00-00Z", "4", table.voxels)
    assert [int(row["root_b"]) for row in found["roots"]] == table.table["root_b"].tolist()
    assert [int(chunk) for chunk in found["chunks"]] == table.chunks.index.tolist()


def test_a_version_that_is_not_recorded(command: Command, out: Path, tmp_path: Path) -> None:
    for arguments in (("diff", out, "1", "9"), ("materialize", out, "--version", "9", tmp_path / "copy.zarr")):
        done = command("versions", *arguments)
        assert done.code == 2
        assert "no record of version 9. The nearest are version 4" in done.error
    done = command("versions", "materialize", out, tmp_path / "copy.zarr")
    assert "Give one of version and timestamp" in done.error


def test_a_copy_is_written_and_updated(
    command: Command, tmp_path: Path, out: Path, world: World, moments: Moments, configure: Configure
) -> None:
    for name in ("block_bytes", "small_block_bytes", "fused_bytes"):
        configure(f"export.{name}", 2**17)
    copy = tmp_path / "copy.zarr"
    done = command("versions", "materialize", out, "--version", 3, copy, "--levels", 2)
    assert done.code == 0, done.error
    assert "materialize" not in done.error
    done = command("versions", "materialize", out, "--version", 4, copy, "--levels", 2)
    assert done.code == 0, done.error
    blocks = re.search(r"(\d+) blocks differ between version 3 and version 4; the others are kept", done.out)
    assert blocks is not None
    assert f"{blocks[1]} were left to do" in done.out
    found = np.asarray(zarr.open_array(copy, path="0", mode="r")[:]).T
    np.testing.assert_array_equal(found, world.roots_volume(moments["4"][0]))
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{copy}/0/"}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result().T, found)
    again = command("versions", "materialize", out, "--timestamp", "2024-01-03T00:00:00Z", copy, "--levels", 2)
    assert "blocks differ between version 4 and 2024-01-03T00:00:00Z" in again.out
    other = command("versions", "materialize", out, "--version", 3, copy)
    assert (other.code, "written with other arguments" in other.error) == (2, True)


@pytest.mark.parametrize("image", [False, True])
def test_versions_are_shown_side_by_side(
    out: Path, with_image: Path, world: World, moments: Moments, image: bool
) -> None:
    pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")
    store = open_versions(with_image if image else out)
    with store.view(1, "3", browser=False) as view:
        state = view.viewer.state.to_json()
        names = [layer["name"] for layer in state["layers"]]
        assert names == [*(["image"] if image else []), "version 1", "version 3"]
        panels = [child["layers"] for child in state["layout"]["children"]]
        assert panels == [[*names[:-2], "version 1"], [*names[:-2], "version 3"]]
        for number, name in ((len(names) - 2, "1"), (len(names) - 1, "3")):
            spec = {"driver": "neuroglancer_precomputed", "kvstore": f"{view.data_url(number)}/", "scale_index": 0}
            found = tensorstore.open(spec).result().read().result()[..., 0]
            np.testing.assert_array_equal(found, world.roots_volume(moments[name][0]))
    with store.view(3, bounds=[world.voxel_offset, np.array(world.voxel_offset) + 20], browser=False) as view:
        assert view.viewer.state.to_json()["layout"] in ("4panel", {"type": "4panel"})
    with pytest.raises(ValueError, match="Say which versions of .* to show; it has 1, 2024"):
        store.view(browser=False)


def test_a_store_is_shown_from_the_command_line(command: Command, out: Path) -> None:
    pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")
    done = command("view", out, "--no-browser")
    assert (done.code, "Say which versions" in done.error) == (2, True)
    done = command("view", out.parent, "--version", 1, "--no-browser")
    assert (done.code, "--version may also be of a version store" in done.error) == (2, True)
    arguments = ["view", str(out), "--version", "1", "--version", "3", "--no-browser"]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            assert process.stdout is not None
            url = re.search(r"http://\S+", process.stdout.readline())
            assert url is not None
            assert requests.get(url[0], timeout=60).status_code == 200
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
