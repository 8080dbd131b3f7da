"""Conversion of a cutout of a flat segmentation to one of a dynamic segmentation."""

from __future__ import annotations

from dataclasses import replace

import dask.array as da

from imagery_dask.arrays.lazy import lazy_array
from imagery_dask.arrays.origins import source_of
from imagery_dask.model.chunkedgraph import ChunkedGraph, RootQuery
from imagery_dask.model.labels import LabelRule


def remapped(array: da.Array) -> da.Array:
    """Return the same cutout of a dynamic segmentation, without a request to its server."""
    source = source_of(array)
    assert source is not None
    graph = ChunkedGraph("https://graph.invalid", "t", (32, 32, 32), (0, 0, 0), (16.0, 16.0, 40.0), 5)
    return lazy_array(replace(source.cutout, labels=LabelRule(query=RootQuery(graph, 1_700_000_000))))
