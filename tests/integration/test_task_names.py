"""Task names of an export, which the dashboard shows: they name the work and form few groups."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.settings import Configure
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.cluster import connect

SHAPE = (128, 128, 64)
KEY = re.compile(r"(?P<group>[^-]+)-z\d+ y\d+ x\d+, block \d+, attempt 1, [0-9a-f]{32}")


@pytest.mark.long
def test_task_names_of_an_export_form_one_group_per_kind_of_work(tmp_path: Path, configure: Configure) -> None:
    configure("export.small_fused_bytes", 2**14)
    configure("export.fused_blocks_at_least", 2**10)
    client = ImageryClient(
        image_source=write_volume(tmp_path / "em", coordinate_volume(SHAPE, dtype=np.uint8), resolution=(8, 8, 40)),
        segmentation_source=write_volume(
            tmp_path / "ids", random_labels((64, 64, 64)), resolution=(16, 16, 40), layer_type="segmentation"
        ),
        resolution=(8, 8, 40),
    )

    def known(dask_scheduler: Any) -> tuple[list[str], list[str], list[str]]:
        scheduler = dask_scheduler
        return list(scheduler.tasks), list(scheduler.task_groups), list(scheduler.task_prefixes)

    keys: set[str] = set()
    groups: set[str] = set()
    prefixes: set[str] = set()

    with connect("local", workers=1) as cluster:

        def ask(_: Any) -> None:
            for collected, names in zip((keys, groups, prefixes), cluster.run_on_scheduler(known), strict=True):
                collected.update(names)

        report = to_zarr(
            client.dataset([[0, 0, 0], SHAPE]), tmp_path / "out.zarr", chunks=(16, 16, 16), levels=3, block_mib=0.01,
            cluster=cluster, progress=ask,
        )  # fmt: skip
    expected = {
        "read+write image", "read+resize+write segmentation", "downsample image level 2",
        "downsample segmentation level 1", "downsample segmentation level 2",
    }  # fmt: skip
    # Many blocks form a few groups; a task may do several blocks.
    assert report.blocks > 100
    assert groups == prefixes == expected
    assert {match["group"] for key in keys if (match := KEY.fullmatch(key))} == expected
    assert all(KEY.fullmatch(key) for key in keys)
