"""The demo offers the local CAVE server under the name that users import."""

import imagery_dask.demo.cave
import imagery_dask.testing.cave


def test_all_names_of_the_server_are_offered() -> None:
    offered = imagery_dask.demo.cave.__all__
    assert offered == imagery_dask.testing.cave.__all__
    assert all(getattr(imagery_dask.demo.cave, name) is getattr(imagery_dask.testing.cave, name) for name in offered)
