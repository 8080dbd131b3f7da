"""URLs with a scheme that cannot be read or written are refused; none becomes a local folder such as ``s4:``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr
from imagery_dask.sources.volumes.addresses import check_scheme

DATA = da.zeros((4, 4, 4), dtype=np.uint8)
PLACE: dict[str, Any] = {"resolution_nm": (8, 8, 8), "translation_nm": (4, 4, 4), "progress": False}
WRITERS: dict[str, Callable[[str], object]] = {
    "to_zarr": lambda url: to_zarr(DATA, url, **PLACE),
    "to_precomputed": lambda url: to_precomputed(DATA, url, **PLACE),
    "to_png": lambda url: to_png(DATA, url, progress=False),
    "a report": lambda url: to_zarr(DATA, "memory://here", report=f"{url}.html", **PLACE),
}
SOURCES = ("image_source", "segmentation_source")


@pytest.mark.parametrize("call", [*WRITERS, *SOURCES])
@pytest.mark.parametrize(
    "url", ["s4://bucket/em", "GS://bucket/em", "azure://bucket/em", "ftp://host/em", "s3:/bucket/em", "file:/data/em"]
)
def test_unknown_schemes_are_refused(url: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{url}.*is not understood: (give a folder, or a URL|write {url[:2]}.*://)"):
        WRITERS[call](url) if call in WRITERS else ImageryClient(**{call: url})  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("writer", ["to_zarr", "to_precomputed", "to_png"])
def test_nothing_is_written_over_http(writer: str) -> None:
    with pytest.raises(ValueError, match=r"https://host/em.*give a folder, or a URL that begins with s3://, gs://"):
        WRITERS[writer]("https://host/em")


@pytest.mark.parametrize("source", ["gs://", "s3://", "https://", "precomputed://gs://", "file://"])
def test_a_source_names_something(source: str) -> None:
    with pytest.raises(ValueError, match="names no bucket, server or folder"):
        ImageryClient(image_source=source)


def test_aliases_and_folders_with_colons_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("s3:/em")
    for url in ("matrix://bucket/em", "a/b://c", "s3:/em", "8:16", "c:em", "s3://https://host/bucket/em"):
        check_scheme(url, ("s3", "gs"))
