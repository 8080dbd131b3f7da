"""Verifying a dynamic segmentation checks the supervoxels that its server names."""

from __future__ import annotations

from imagery_dask import ImageryClient, verify_volume


def test_supervoxels_of_a_dynamic_segmentation_are_checked(client: ImageryClient) -> None:
    path = client.segmentation_source
    assert path is not None
    assert path.startswith("graphene://")
    report = verify_volume(path, progress=False)
    assert report.ok
    assert all(level.read == level.chunks > 0 for level in report.levels if not level.skipped)
