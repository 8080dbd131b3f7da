"""A store in a bucket is made, added to, verified and read like one on a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.dynamic import SOME, crop, forget_roots
from support.made_stores import create

from imagery_dask import add_version, open_versions, remove_version, verify_versions
from imagery_dask.sources.graph.root_tables import forget_tables
from imagery_dask.testing.cave import CaveServer, World
from imagery_dask.testing.cave.http_base import Fault

if TYPE_CHECKING:
    from support.buckets import S3Server


def test_a_store_in_s3(server: CaveServer, world: World, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagery_dask.versions.tables.table_files.GROUP_ROWS", (16, 32))
    s3_server.create_bucket("versions")
    out, moments = "s3://versions/some/OUT", [float(np.ceil(world.times[name])) for name in ("merge_1", "split_2")]
    with s3_server.environment():
        server.faults = lambda endpoint, n: Fault(status=400) if endpoint == "roots_binary" and n > 1 else None
        with pytest.raises(Exception, match=r"roots|blocks"):
            create(server, out, moments[0])
        server.faults = None
        report = create(server, out, moments[0])
        assert report.stages["volume"].before == report.stages["volume"].blocks
        assert 0 < report.stages["roots"].before < report.stages["roots"].blocks
        forget_roots()
        added = add_version(out, timestamp=moments[1], progress=False)
        assert added.notes[0].startswith("delta from 2024-01-02")
        check = verify_versions(out, live=5)
        assert check.ok, check.problems
        forget_tables()
        store = open_versions(out)
        for moment in moments:
            got = store.at(timestamp=moment)["segmentation"].values
            np.testing.assert_array_equal(got, crop(world.roots_volume(moment), SOME))
        remove_version(out, timestamp=moments[0])
        assert open_versions(out).versions.index.tolist() == [added.version]
        with pytest.raises(FileExistsError, match="bounds was"):
            create(server, out, moments[1], ((0, 0, 0), (32, 32, 16)))
