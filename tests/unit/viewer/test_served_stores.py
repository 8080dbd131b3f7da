"""OME-Zarr stores are found, placed and passed on file by file; nothing outside of them is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.volumes import random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient, to_precomputed, to_zarr
from imagery_dask.errors import SourceNotFoundError
from imagery_dask.viewer.served_stores import found_in, stores_in

SHAPE, OFFSET, NM = (40, 30, 20), (-20, 32, 8), (8, 8, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    options: Any = {"voxel_offset": OFFSET, "resolution": NM}
    client = ImageryClient(
        image_source=write_volume(folder / "em", smooth_image(SHAPE), **options),
        segmentation_source=write_volume(folder / "seg", random_labels(SHAPE), layer_type="segmentation", **options),
    )
    data = client.dataset([OFFSET, [a + n for a, n in zip(OFFSET, SHAPE, strict=True)]])
    to_zarr(data, folder / "both.zarr", levels=2, shards=(32, 32, 16), chunks=(16, 16, 16), progress=False)
    to_zarr(data.segmentation, folder / "ids.zarr", ome_version="0.4", progress=False)
    to_precomputed(data, folder / "out", progress=False)
    return folder


def test_images_and_labels_are_found_with_their_places(folder: Path) -> None:
    image, labels = stores_in(folder / "both.zarr")
    assert [(one.name, one.kind, one.zarr_format) for one in (image, labels)] == [
        ("image", "image", 3), ("segmentation", "segmentation", 3),
    ]  # fmt: skip
    for one in (image, labels):
        assert (one.grid.start, one.grid.shape, one.grid.resolution_nm) == (OFFSET, SHAPE, NM)
        assert one.coarsest_nm == (16, 16, 40)
        assert one.source("http://host/0") == "http://host/0/|zarr3:"
    (ids,) = stores_in(f"{folder}/ids.zarr/")
    assert (ids.kind, ids.zarr_format, ids.grid.start) == ("segmentation", 2, OFFSET)


def test_what_is_found_at_a_place(folder: Path) -> None:
    assert found_in(folder / "em") == ([], [f"precomputed://file://{folder}/em"])
    assert found_in(folder / "out") == (
        [],
        [f"precomputed://file://{folder}/out/{name}" for name in ("image", "segmentation")],
    )
    stores, volumes = found_in(f"{folder}/both.zarr")
    assert (len(stores), volumes) == (2, [])
    with pytest.raises(SourceNotFoundError, match="is no precomputed volume, and no export"):
        found_in(folder)


def test_files_and_parts_of_files(folder: Path) -> None:
    image, _ = stores_in(folder / "both.zarr")
    shard = (folder / "both.zarr" / "0" / "c" / "0" / "0" / "0").read_bytes()
    whole, end, middle = (image.get("0/c/0/0/0", *part) for part in ((), (-9,), (3, 12)))
    assert None not in (whole, end, middle)
    assert (whole.content, whole.total) == (shard, None)
    assert (end.content, end.first, end.total) == (shard[-9:], len(shard) - 9, len(shard))
    assert (middle.content, middle.first) == (shard[3:12], 3)
    assert image.get("0/c/0/0/0", 3, 10**9).content == shard[3:]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "path", ["none", "0", "", "../em/info", "0/../../em/info", "/etc/hostname", "0//zarr.json", "..\\em"]
)
def test_nothing_else_is_given(folder: Path, path: str) -> None:
    image, _ = stores_in(folder / "both.zarr")
    assert image.get(path) is None


def test_other_units_and_axes(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "um.zarr", zarr_format=3)
    group.create_array("s0", shape=(2, 5, 6, 7), chunks=(1, 5, 6, 7), dtype=np.uint16)
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "zyx")]
    transforms = [
        {"type": "scale", "scale": [1, 0.04, 0.008, 0.004]},
        {"type": "translation", "translation": [0, 0.06, 0, 0.002]},
    ]  # fmt: skip
    datasets = [{"path": "s0", "coordinateTransformations": transforms}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    (image,) = stores_in(tmp_path / "um.zarr")
    assert (image.kind, image.grid.start, image.grid.shape) == ("image", (0, 0, 1), (7, 6, 5))
    np.testing.assert_allclose(image.grid.resolution_nm, (4, 8, 40))


@pytest.mark.parametrize(
    "content", [{}, {"ome": {"multiscales": []}}, {"ome": {"multiscales": [{"axes": [{"name": "y"}]}]}}]
)
def test_zarr_that_is_no_image_is_refused(tmp_path: Path, content: Any) -> None:
    group = {"zarr_format": 3, "node_type": "group", "attributes": content}
    (tmp_path / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(ValueError, match=r"is zarr, but no OME-Zarr image.*client\.view\(layers="):
        stores_in(tmp_path)
