"""Patches of a dynamic segmentation show one moment, in their sampler and in a manifest that is read later."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from support.dynamic import client_of, forget_roots

from imagery_dask.sampling import Patches, Sampler
from imagery_dask.testing.cave import CaveServer, World


def test_a_manifest_keeps_the_moment(server: CaveServer, world: World, tmp_path: Path) -> None:
    client = client_of(server, timestamp=world.times["split_1"])
    later = client_of(server, timestamp=max(world.times.values()))
    patches = Sampler(client, (24, 20, 8)).random(6, seed=2)
    patches.save(tmp_path / "patches.json")
    manifest = json.loads((tmp_path / "patches.json").read_text())
    assert manifest["volumes"]["segmentation"]["timestamp_unix_s"] == math.ceil(world.times["split_1"])
    forget_roots()
    differs = False
    for patch, box in zip(Patches.load(tmp_path / "patches.json"), patches.bounds, strict=True):
        cut = {"resolution": patches.resolution_nm, "scale_to_bounds": False}
        np.testing.assert_array_equal(patch["segmentation"], client.dataset(box, **cut)["segmentation"].values)
        differs |= bool((patch["segmentation"] != later.dataset(box, **cut)["segmentation"].values).any())
    assert differs


def test_patches_around_root_ids(server: CaveServer, world: World) -> None:
    client = client_of(server, timestamp=world.times["split_1"])
    sampler = Sampler(client, (8, 8, 4))
    ids = sorted(int(n) for n in np.unique(sampler.grid()[0]["segmentation"]) if n)[:3]
    patches = sampler.around_objects(ids, 2, seed=1)
    assert len(patches) == 2 * len(ids)
    for patch in patches:
        assert (patch["segmentation"] == patch["root_id"]).any()
