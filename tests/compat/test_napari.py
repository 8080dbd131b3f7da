"""napari opens a version as a zarr store: the layers hold, show and name the ids that the version has."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import support.foreign
from support.foreign.stores import CACHE
from support.version_stores import make_store

from benchmarks.environments import python_of
from imagery_dask import open_versions
from imagery_dask.testing.cave import make_world

# napari has an environment of its own, of 700 MB.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SCRIPT = Path(support.foreign.__file__).with_name("open_in_napari.py")


@pytest.mark.parametrize("image", [False, True], ids=["segmentation", "beside imagery"])
def test_a_version_is_opened_by_napari(tmp_path: Path, image: bool) -> None:
    world = make_world(tmp_path / "world")
    moment = math.ceil(world.versions[3].timestamp)
    out, folder = make_store(tmp_path / "OUT", world, {"3": (moment, 3)}, image=image), tmp_path / "read"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python_of("napari", CACHE, create=True), SCRIPT, out, "3", folder], capture_output=True, text=True,
        timeout=300, check=False, env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    store, expected = open_versions(out), world.roots_volume(moment)
    for level in range(3):
        own = store.at(3, level=level)["segmentation"].to_numpy()
        np.testing.assert_array_equal(np.load(folder / f"level-{level}.npy").T, own)
    np.testing.assert_array_equal(np.load(folder / "level-0.npy").T, expected)
    np.testing.assert_array_equal(np.load(folder / "shown.npy").T, expected[:, :, ::5])
    named = np.load(folder / "named.npy")
    z, y, x = named[:, :3].astype(np.int64).T
    np.testing.assert_array_equal(named[:, 3], expected[x, y, z])
    assert named[:, 3].max() > 2**53
    if image:
        np.testing.assert_array_equal(np.load(folder / "image.npy").T, store.at(3)["image"].to_numpy())
