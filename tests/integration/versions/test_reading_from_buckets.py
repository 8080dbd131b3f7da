"""A store in a bucket is read, compared, and copied into the bucket; the copy follows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from support.settings import Configure

from imagery_dask import open_versions, verify_export
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.storage.atomic_files import Files
from imagery_dask.testing.cave import World

if TYPE_CHECKING:
    from support.buckets import S3Server

Moments = dict[str, tuple[float, int | None]]


def test_a_store_in_s3_is_read_and_followed(
    out: Path, world: World, moments: Moments, s3_server: S3Server, configure: Configure
) -> None:
    pytest.importorskip("obstore")
    for name in ("block_bytes", "small_block_bytes", "fused_bytes"):
        configure(f"export.{name}", 2**17)
    s3_server.create_bucket("read-versions")
    url, copy = "s3://read-versions/OUT", "s3://read-versions/copies/copy.zarr"
    with s3_server.environment():
        files = Files.at(url)
        for path in out.rglob("*"):
            if path.is_file():
                files.put(str(path.relative_to(out)), path.read_bytes())
        forget_tables()
        store = open_versions(url)
        assert store.versions.index.tolist() == open_versions(out).versions.index.tolist()
        expected = {name: world.roots_volume(moments[name][0]) for name in ("3", "4")}
        np.testing.assert_array_equal(store.at(3)["segmentation"], expected["3"])
        array = zarr.open_array(store.zarr_store(3), path="0", mode="r")
        np.testing.assert_array_equal(np.asarray(array[:]).T, expected["3"])
        assert store.diff(3, 4).voxels == (expected["3"] != expected["4"]).sum()
        root = int(store.roots(4)["voxels"].idxmax())
        assert store.where(root, 4).voxels == (expected["4"] == root).sum()
        store.materialize(3, copy, levels=2, progress=False)
        report = store.materialize(4, copy, levels=2, progress=False)
        assert 0 < report.blocks - report.before < report.blocks / 2
        assert verify_export(copy, sample=None).ok
        store.materialize(4, "s3://read-versions/fresh.zarr", levels=2, progress=False)
        names = [name for name in Files.at("s3://read-versions/fresh.zarr").names() if "/c/" in name]
        assert sorted(names) == sorted(name for name in Files.at(copy).names() if "/c/" in name)
        both = [Files.at(place) for place in (copy, "s3://read-versions/fresh.zarr")]
        assert all(both[0].get(name) == both[1].get(name) for name in names)
    forget_tables()
