"""Patches of volumes whose voxels encode their place: where they lie, their voxels, and their manifest."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.http_server import FileServer
from support.volumes import coordinate_values, coordinate_volume, write_volume

from imagery_dask import ImageryClient
from imagery_dask.sampling import Patches, Sampler

SHAPE, OFFSET = (96, 64, 32), (1000, -40, 7)
PATCH = (16, 12, 8)
# Objects: the left half is 0 but for a stick of one id, the right half is one object.
STICK, RIGHT = 2**60 + 1, 2**63 + 5


def ids() -> Any:
    labels = np.zeros(SHAPE, np.uint64)
    labels[48:] = RIGHT
    labels[4:8, 8:56, 8:12] = STICK
    return labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    image = coordinate_volume(SHAPE, OFFSET, dtype=np.uint8)
    write_volume(folder / "em", image, voxel_offset=OFFSET)
    write_volume(folder / "seg", coordinate_volume(SHAPE, OFFSET), voxel_offset=OFFSET, layer_type="segmentation")
    write_volume(folder / "objects", ids(), voxel_offset=OFFSET, layer_type="segmentation", mips=3)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> ImageryClient:
    return ImageryClient(image_source=str(folder / "em"), segmentation_source=str(folder / "seg"))


@pytest.fixture(scope="module")
def objects(folder: Path) -> ImageryClient:
    return ImageryClient(segmentation_source=str(folder / "objects"))


def bounds(low: tuple[int, int, int], high: tuple[int, int, int]) -> list[list[int]]:
    """Return the bounds of voxels counted from the start of the volume."""
    return [[n + o for n, o in zip(corner, OFFSET, strict=True)] for corner in (low, high)]


def check(patch: dict[str, Any], box: Any) -> None:
    """Check every voxel of a patch."""
    axes = np.ix_(*(np.arange(low, high) for low, high in zip(*box, strict=True)))
    assert patch["segmentation"].dtype == np.uint64
    np.testing.assert_array_equal(patch["segmentation"], coordinate_values(*axes))
    np.testing.assert_array_equal(patch["image"], coordinate_values(*axes, dtype=np.uint8))


def test_random_patches_are_right_to_the_voxel_and_follow_the_seed(client: ImageryClient) -> None:
    sampler = Sampler(client, PATCH)
    patches = sampler.random(12, seed=3)
    for patch, box in zip(patches, patches.bounds, strict=True):
        check(patch, box)
    np.testing.assert_array_equal(patches.starts, sampler.random(12, seed=3).starts)
    assert (patches.starts != sampler.random(12, seed=4).starts).any()


def test_every_position_is_drawn(client: ImageryClient) -> None:
    region = bounds((0, 0, 0), (18, 13, 8))
    drawn = {tuple(start) for start in Sampler(client, PATCH, region).random(200).starts}
    assert drawn == {(OFFSET[0] + x, OFFSET[1] + y, OFFSET[2]) for x in range(3) for y in range(2)}


def test_a_manifest_reproduces_patches_elsewhere_in_another_order(client: ImageryClient, tmp_path: Path) -> None:
    patches = Sampler(client, PATCH, split={"train": 0.7, "test": 0.3}).random({"train": 5, "test": 3}, seed=1)
    patches.save(tmp_path / "patches.json")
    program = """
import sys, json, hashlib
from imagery_dask.sampling import Patches
patches = Patches.load(sys.argv[1])
digests = {}
for i in reversed(range(len(patches))):
    patch = patches[i]
    digests[patch["number"]] = [patches.splits[i], hashlib.sha256(
        patch["image"].tobytes() + patch["segmentation"].tobytes()).hexdigest()]
print(json.dumps(digests))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "patches.json")], capture_output=True, check=True
    )

    here = {
        str(i): [split, hashlib.sha256(patch["image"].tobytes() + patch["segmentation"].tobytes()).hexdigest()]
        for i, (split, patch) in enumerate(zip(patches.splits, patches, strict=True))
    }
    assert json.loads(ran.stdout) == here


def test_a_manifest_says_what_is_in_it_and_can_be_read_elsewhere(
    client: ImageryClient, folder: Path, tmp_path: Path
) -> None:
    patches = Sampler(client, PATCH, regions={"a": bounds((0, 0, 0), (40, 40, 20))}).random(3, seed=9)
    patches.save(tmp_path / "patches.json")
    manifest = json.loads((tmp_path / "patches.json").read_text())
    assert manifest["volumes"]["image"]["mip"] == 0
    assert manifest["volumes"]["segmentation"]["source"].endswith("/seg")
    assert manifest["chosen"] | {"by": "random", "seed": 9} == manifest["chosen"]
    one = manifest["patches"][2]
    assert [one["start"], one["stop"]] == patches.bounds[2].tolist()
    assert (one["region"], one["split"]) == ("a", "")
    (folder / "seg").rename(folder / "moved")
    try:
        moved = Patches.load(tmp_path / "patches.json", segmentation_source=str(folder / "moved"))
        check(moved[1], patches.bounds[1])
    finally:
        (folder / "moved").rename(folder / "seg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a manifest"),
        ('{"format": "imagery_dask.patches", "version": 2}', "version 2"),
        ('{"format": "imagery_dask.patches", "version": 1}', "damaged: 'volumes'"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "patches.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Patches.load(tmp_path / "patches.json")


shares = st.lists(st.integers(2, 5), min_size=2, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(shares=shares, seed=st.integers(0, 1000), axis=st.sampled_from([None, "x", "y"]))
def test_no_patch_crosses_the_border_of_a_split(client: ImageryClient, shares: list[int], seed: int, axis: Any) -> None:
    split = {f"s{n}": share / sum(shares) for n, share in enumerate(shares)}
    sampler = Sampler(client, (8, 8, 8), split=split, split_axis=axis)
    owner = np.full(SHAPE, -1)
    for patches in (sampler.random(20, seed=seed), sampler.grid()):
        for name, (low, high) in zip(patches.splits, patches.bounds - np.asarray(OFFSET), strict=True):
            voxels = owner[tuple(map(slice, low, high))]
            assert set(np.unique(voxels)) <= {-1, int(name[1:])}
            voxels[:] = int(name[1:])


def test_splits_may_be_boxes(client: ImageryClient) -> None:
    split = {"train": bounds((0, 0, 0), (48, 64, 32)), "test": [bounds((48, 0, 0), (96, 32, 32))]}
    patches = Sampler(client, PATCH, split=split).grid()
    assert patches.counts() == {"train": 3 * 5 * 4, "test": 3 * 2 * 4}
    assert patches.split("test").bounds[:, :, 0].min() == OFFSET[0] + 48


def test_several_regions(client: ImageryClient) -> None:
    regions = {"a": bounds((0, 0, 0), (16, 12, 8)), "b": bounds((48, 24, 8), (64, 36, 16))}
    patches = Sampler(client, PATCH, regions).grid()
    assert patches.regions == ["a", "b"]
    assert (patches.starts - OFFSET).tolist() == [[0, 0, 0], [48, 24, 8]]


def test_a_grid_has_every_patch_once(client: ImageryClient) -> None:
    seen = np.zeros(SHAPE, int)
    for low, high in Sampler(client, PATCH).grid().bounds - np.asarray(OFFSET):
        seen[tuple(map(slice, low, high))] += 1
    assert (seen[:, :60] == 1).all()
    assert (seen[:, 60:] == 0).all()
    assert len(Sampler(client, PATCH).grid((8, 12, 8))) == 11 * 5 * 4


def test_foreground_shares_hold_and_tries_are_counted(objects: ImageryClient) -> None:
    patches = Sampler(objects, PATCH).random(10, seed=2, foreground=(0.3, 0.9))
    shares = [np.count_nonzero(patch["segmentation"]) / 16 / 12 / 8 for patch in patches]
    assert all(0.3 <= share <= 0.9 for share in shares)
    assert 10 < patches.tried <= 500
    few = Sampler(objects, PATCH).random(10, seed=2, foreground=(0.3, 0.9), tries=patches.tried - 1)
    assert (len(few), few.tried) == (9, patches.tried - 1)
    with pytest.raises(ValueError, match="None of 5 patches has foreground"):
        Sampler(objects, PATCH, bounds((10, 0, 0), (48, 64, 32))).random(10, foreground=0.9, tries=5)


def test_foreground_is_judged_at_a_coarse_mip_first(
    folder: Path, http_server_factory: Callable[..., FileServer]
) -> None:
    server = http_server_factory(folder)
    client = ImageryClient(segmentation_source=f"{server.url}/objects")
    empty = bounds((10, 0, 0), (47, 64, 32))
    server.reset()
    with pytest.raises(ValueError, match="None of 40 patches"):
        Sampler(client, (32, 32, 8), empty).random(1, foreground=0.5, tries=40)
    assert server.count(lambda request: "/8_8_40/" in request.path) == 0
    # There are 2 chunks, which 16 threads may all read before the cache has them.
    assert 0 < server.count(lambda request: "/32_32_40/" in request.path) <= 32


def test_patches_around_objects_hold_them(objects: ImageryClient) -> None:
    patches = Sampler(objects, PATCH).around_objects([RIGHT, STICK], 6, seed=5)
    assert patches.root_ids is not None
    assert patches.root_ids.dtype == np.uint64
    assert patches.root_ids.tolist() == [STICK] * 6 + [RIGHT] * 6
    for patch in patches:
        assert (patch["segmentation"] == patch["root_id"]).any()
    with pytest.raises(ValueError, match="Object 7 has no voxel"):
        Sampler(objects, PATCH).around_objects([7])


def test_voxels_of_objects_are_equally_likely(objects: ImageryClient) -> None:
    stick = ids() == STICK
    patches = Sampler(objects, (1, 1, 1)).around_objects([STICK], int(stick.sum()))
    drawn = np.zeros(SHAPE, bool)
    drawn[tuple((patches.starts - OFFSET).T)] = True
    np.testing.assert_array_equal(drawn, stick)
    starts = [Sampler(objects, (1, 1, 1)).around_objects([STICK], 1, seed=seed).starts[0, 1] for seed in range(40)]
    assert len(set(starts)) > 15


def test_patches_around_points_have_the_rows_of_the_table(client: ImageryClient, tmp_path: Path) -> None:
    points = [(20, 20, 10), (1, 1, 1), (60, 30, 20)]
    xyz = np.array(points) + OFFSET
    table = pd.DataFrame({"pt_position": list(xyz), "kind": ["a", "b", "c"]})
    of_nm = pd.DataFrame(xyz * (8, 8, 40), columns=["c_x", "c_y", "c_z"])
    sampler = Sampler(client, PATCH)
    for patches in (
        sampler.around_points(xyz), sampler.around_points(table),
        sampler.around_points(of_nm, position="c", resolution=(1, 1, 1)),
    ):  # fmt: skip
        assert (patches.rows is not None, patches.left_out) == (True, 1)
        assert [int(patch["row"]) for patch in patches] == [0, 2]
        centre = patches[0]["segmentation"][8, 6, 4]
        assert centre == coordinate_values(*xyz[0])
    patches.save(tmp_path / "p.json")
    assert Patches.load(tmp_path / "p.json").rows.tolist() == [0, 2]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="has no columns of positions"):
        sampler.around_points(table.drop(columns="pt_position"))


def test_batches_have_every_patch_once(client: ImageryClient) -> None:
    patches = Sampler(client, PATCH).random(7, seed=1)
    batches = list(patches.batches(3, shuffle=[1, 0]))
    assert [batch["image"].shape for batch in batches] == [(3, *PATCH), (3, *PATCH), (1, *PATCH)]
    assert sorted(n for batch in batches for n in batch["number"]) == list(range(7))
    for batch in batches:
        for index, number in enumerate(batch["number"]):
            check({name: batch[name][index] for name in ("image", "segmentation")}, patches.bounds[number])
    assert len(list(patches.batches(3, drop_last=True))) == 2
    again = np.concatenate([batch["number"] for batch in patches.batches(3, shuffle=[1, 0])])
    np.testing.assert_array_equal(again, np.concatenate([batch["number"] for batch in batches]))


def test_a_coarser_layer_is_resampled_to_the_patches_voxels(folder: Path) -> None:
    client = ImageryClient(image_source=str(folder / "em"), segmentation_source=str(folder / "objects"))
    patches = Sampler(client, PATCH, segmentation_mip=1).random(3, seed=1)
    for patch, (low, high) in zip(patches, patches.bounds, strict=True):
        expected = client.segmentation_cutout([low, high], mip=1, scale_to_bounds=True, convert_to_int64=False)
        np.testing.assert_array_equal(patch["segmentation"], np.asarray(expected))
        assert patch["image"].shape == PATCH


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (16, 16)}, "shape must be three whole numbers"),
        ({"shape": (200, 8, 8)}, "does not fit: region 'all' has"),
        ({"regions": {"a": bounds((-1, 0, 0), (50, 50, 20))}}, r"regions\['a'\] is voxels .* zeros"),
        ({"regions": {"a": [[0, 0, 0]]}}, r"regions\['a'\]: bounds must be two corners"),
        ({"regions": {}}, "regions is empty"),
        ({"split": {"a": 0.8, "b": 0.4}}, "add up to at most 1"),
        ({"split": {"a": 0.95, "b": 0.05}}, "for split 'b'"),
        ({"split": {"a": bounds((0, 0, 0), (50, 50, 20)), "b": bounds((40, 0, 0), (90, 50, 20))}}, "share the voxels"),
        ({"split": {"a": bounds((0, 0, 0), (50, 50, 20)), "b": 0.2}}, r"split\['b'\] is 0.2"),
        ({"split_axis": "w"}, "split_axis must be 0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(client: ImageryClient, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(client, **{"shape": PATCH} | arguments)


def test_overlapping_regions_are_refused_only_with_splits(client: ImageryClient) -> None:
    regions = {"a": bounds((0, 0, 0), (64, 40, 20)), "b": bounds((20, 0, 0), (84, 40, 20))}
    assert len(Sampler(client, PATCH, regions).boxes) == 2
    with pytest.raises(ValueError, match="region 'a'.*region 'b'"):
        Sampler(client, PATCH, regions, split={"train": 0.5, "test": 0.5}, split_axis="x")
