"""`Layer` and `Mip`: reading an info, and errors for incomplete infos."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from imagery_dask.errors import SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.model.layer import Layer

PATH = "precomputed://gs://bucket/layer"
INFO: dict[str, Any] = {
    "@type": "neuroglancer_multiscale_volume",
    "type": "segmentation",
    "data_type": "uint64",
    "num_channels": 1,
    "scales": [
        {
            "key": "8_8_40",
            "size": [1000, 900, 70],
            "voxel_offset": [-5, 0, 12],
            "resolution": [8, 8, 40],
            "chunk_sizes": [[64, 64, 32]],
            "encoding": "compressed_segmentation",
        },
        {
            "key": "16_16_40",
            "size": [500, 450, 70],
            "resolution": [16.0, 16.0, 40.0],
            "chunk_sizes": [[128, 128, 16]],
            "encoding": "raw",
            "sharding": {"@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 9},
        },
    ],
}


def info(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(INFO) | changes


def placeholders(*levels: int) -> dict[str, Any]:
    changed = info()
    for level in levels:
        changed["scales"][level]["key"] = f"Placeholder_{level}"
    return changed


def test_an_info_is_read() -> None:
    layer = Layer.from_info(PATH, INFO)
    assert (layer.path, layer.kind, layer.dtype, layer.channels) == (PATH, "segmentation", "uint64", 1)
    fine, coarse = layer.mips
    assert fine.grid == VoxelGrid((-5, 0, 12), (1000, 900, 70), (8, 8, 40))
    assert (fine.level, fine.key, fine.chunk_shape, fine.encoding) == (
        0, "8_8_40", (64, 64, 32), "compressed_segmentation",
    )  # fmt: skip
    assert not fine.is_sharded
    assert fine.chunk_count == 16 * 15 * 3
    assert (coarse.level, coarse.minishard_chunks, coarse.is_sharded) == (1, 512, True)
    assert coarse.grid.start == (0, 0, 0)  # the default of voxel_offset
    assert coarse.chunk_count == 4 * 4 * 5


def test_the_first_mip_is_the_first_with_data() -> None:
    assert Layer.from_info(PATH, INFO).first_mip == 0
    layer = Layer.from_info(PATH, placeholders(0))
    assert layer.first_mip == 1
    assert layer.mip(1).key == "16_16_40"
    assert layer.mips[0].is_placeholder


def test_a_layer_of_placeholders_only_is_an_error() -> None:
    with pytest.raises(SourceError, match="placeholder.*no data") as caught:
        _ = Layer.from_info(PATH, placeholders(0, 1)).first_mip
    assert PATH in str(caught.value)


def test_a_placeholder_mip_is_refused_with_the_first_mip_with_data() -> None:
    with pytest.raises(ValueError, match="mip 0 .*placeholder.*first mip with data is 1") as caught:
        Layer.from_info(PATH, placeholders(0)).mip(0)
    assert PATH in str(caught.value)


@pytest.mark.parametrize("level", [2, 99, -1])
def test_a_mip_that_does_not_exist_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=f"mip {level} does not exist.*mips 0 to 1") as caught:
        Layer.from_info(PATH, INFO).mip(level)
    assert PATH in str(caught.value)


@pytest.mark.parametrize("level", [True, False, np.True_, 1.0, "1", None, [1]])
def test_a_mip_that_is_not_an_integer_is_refused(level: Any) -> None:
    with pytest.raises(TypeError, match="mip must be a whole number") as caught:
        Layer.from_info(PATH, INFO).mip(level)
    assert repr(level) in str(caught.value)


def test_a_mip_may_be_a_numpy_integer() -> None:
    assert Layer.from_info(PATH, INFO).mip(np.int64(1)).level == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["scales", "type", "data_type", "num_channels"])
def test_an_info_without_a_field_is_an_error(name: str) -> None:
    incomplete = info()
    del incomplete[name]
    with pytest.raises(SourceError, match=f"no usable '{name}'") as caught:
        Layer.from_info(PATH, incomplete)
    assert PATH in str(caught.value)
    assert "Give the folder" in str(caught.value)


@pytest.mark.parametrize("name", ["key", "size", "resolution", "chunk_sizes", "encoding"])
def test_a_scale_without_a_field_is_an_error(name: str) -> None:
    incomplete = info()
    del incomplete["scales"][1][name]
    with pytest.raises(SourceError, match=name):
        Layer.from_info(PATH, incomplete)


@pytest.mark.parametrize(
    "wrong",
    [
        {"@type": "neuroglancer_legacy_mesh"},
        {"@type": "neuroglancer_annotations_v1", "dimensions": {}},
        info(scales=None),
        info(scales=[None]),
        info(num_channels="many"),
        info(scales=[INFO["scales"][0] | {"resolution": [8, 8]}]),
        info(scales=[INFO["scales"][0] | {"resolution": [0, 8, 40]}]),
        info(scales=[INFO["scales"][0] | {"size": [1, -2, 3]}]),
        info(scales=[INFO["scales"][0] | {"chunk_sizes": []}]),
    ],
)
def test_an_info_that_is_not_of_a_volume_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="not an image or segmentation volume"):
        Layer.from_info(PATH, wrong)


def test_layers_of_equal_infos_are_equal() -> None:
    assert Layer.from_info(PATH, INFO) == Layer.from_info(PATH, info())
    assert hash(Layer.from_info(PATH, INFO).mips[0]) == hash(Layer.from_info(PATH, info()).mips[0])
