"""Infos that cannot be read are refused with the path, the field, its value and a remedy; the others are completed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from imagery_dask.errors import InvalidInfoError, SourceError
from imagery_dask.model.layer import Layer
from imagery_dask.model.volume_info import check_info

PATH = "precomputed://https://host/segmentation/table/em"
SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 9, "hash": "murmurhash3_x86_128", "minishard_bits": 6,
    "shard_bits": 15, "minishard_index_encoding": "gzip", "data_encoding": "raw",
}  # fmt: skip
SCALE = {
    "key": "8_8_40", "size": [1000, 900, 70], "voxel_offset": [-5, 0, 12], "resolution": [8, 8, 40],
    "chunk_sizes": [[64, 64, 32]], "encoding": "raw",
}  # fmt: skip
INFO = {
    "@type": "neuroglancer_multiscale_volume", "type": "segmentation", "data_type": "uint64", "num_channels": 1,
    "scales": [SCALE, SCALE | {"key": "16_16_40", "sharding": SHARDING}],
    "mesh": "mesh", "skeletons": "skeletons", "segment_properties": "properties", "made by": {"any": "tool"},
}  # fmt: skip


def with_scale(**changes: Any) -> dict[str, Any]:
    return INFO | {"scales": [SCALE, SCALE | changes]}


def with_sharding(*without: str, **changes: Any) -> dict[str, Any]:
    sharding = {name: value for name, value in (SHARDING | changes).items() if name not in without}
    return with_scale(sharding=sharding)


def test_a_valid_info_stays_as_it_is() -> None:
    before = copy.deepcopy(INFO)
    assert check_info(PATH, INFO) == INFO == before


def test_names_may_be_in_any_case_and_defaults_are_filled_in() -> None:
    scale = {name: value for name, value in SCALE.items() if name != "voxel_offset"} | {"encoding": "RAW"}
    sharding = {name: value for name, value in SHARDING.items() if "encoding" not in name} | {"hash": "IDENTITY"}
    shouting = {"type": "IMAGE", "data_type": "UINT8", "num_channels": 1.0, "scales": [
        scale | {"size": [8.0, 8.0, 4.0], "sharding": sharding}, scale | {"voxel_offset": None, "encoding": "Jpeg"}
    ]}  # fmt: skip
    info = check_info(PATH, shouting)
    layer = Layer.from_info(PATH, info)
    assert (layer.kind, layer.dtype, layer.channels) == ("image", "uint8", 1)
    assert [mip.encoding for mip in layer.mips] == ["raw", "jpeg"]
    assert [mip.grid.start for mip in layer.mips] == [(0, 0, 0), (0, 0, 0)]
    assert info["scales"][0]["sharding"] == sharding | {
        "hash": "identity", "minishard_index_encoding": "raw", "data_encoding": "raw"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data_type", "encoding", "channels"),
    [
        ("uint8", "png", 4), ("uint16", "png", 2), ("uint8", "jpeg", 3), ("float32", "raw", 7), ("uint8", "jxl", 1),
        ("uint32", "compressed_segmentation", 2), ("uint64", "compresso", 1), ("uint16", "crackle", 1),
        ("float32", "fpzip", 3), ("float32", "kempressed", 1), ("float32", "zfpc", 1),
    ],
)  # fmt: skip
def test_encodings_hold_these_data_types(data_type: str, encoding: str, channels: int) -> None:
    info = with_scale(encoding=encoding) | {"type": "image", "data_type": data_type, "num_channels": channels}
    info["scales"] = info["scales"][1:]
    assert check_info(PATH, info) == info


WRONG = {
    "type": [INFO | {"type": value} for value in ("mesh", "", None, 5)],
    "data_type": [INFO | {"data_type": value} for value in ("float32", "float64", "uint128", "bool", "", None, 8)],
    "num_channels": [INFO | {"num_channels": value} for value in (0, -1, 1.5, "1", None, True, math.nan, 10**12, [1])],
    "scales": [INFO | {"scales": value} for value in ([], None, {}, "many")],
    "scales[1]": [INFO | {"scales": [SCALE, value]} for value in (None, 5, [], "8_8_40")],
    "scales[1].key": [with_scale(key=value) for value in ("", "/", "/etc", None, 8, "a\0b")],
    "scales[1].size": [
        with_scale(size=value)
        for value in ([0, 1, 1], [8, -8, 4], [8, 8], [8, 8, 4, 1], [8, 8, 2**41], [8, 8, 0.5], None, 8, "888",
                      [8, 8, math.inf], [8, 8, True], [8, 8, "4"], [8, 8, 10**400])
    ],
    "scales[1].voxel_offset": [
        with_scale(voxel_offset=value) for value in ([0, 0], [0, 0, 0.5], [0, 0, 2**60], [0, 0, math.nan], "000", 0)
    ],
    "scales[1].resolution": [
        with_scale(resolution=value)
        for value in ([0, 8, 40], [-8, 8, 40], [8, 8], [8, 8, math.nan], [8, 8, math.inf], [8, 8, "40"],
                      [8, 8, 10**400], None, 8)
    ],
    "scales[1].chunk_sizes": [
        with_scale(chunk_sizes=value)
        for value in ([], None, 64, [64, 64, 64], [[0, 64, 64]], [[64, -1, 64]], [[64, 64]], [[64, 64, 0.5]],
                      [[64, 64, 64], [0, 0, 0]], "64")
    ] + [with_scale(chunk_sizes=[[2**20, 2**20, 2**20]], size=[2**20, 2**20, 2**20])],
    "scales[1].encoding": [
        with_scale(encoding=value) for value in ("npz", "webp", "", None, 3, "jpeg", "png", "jxl", "fpzip", "zfpc")
    ],
    "scales[1].compressed_segmentation_block_size": [
        with_scale(compressed_segmentation_block_size=value)
        for value in ([8, 8, 0], [8, 8], 8, [8, 8, -8], [8, 8, 2**40])
    ],
    "scales[1].sharding": [with_scale(sharding=value) for value in (5, "raw", [SHARDING], True)],
    "scales[1].sharding.@type": [
        with_sharding("@type"), *(with_sharding(**{"@type": v}) for v in ("neuroglancer_uint64_sharded_v2", None, 1))
    ],
    "scales[1].sharding.note": [with_sharding(note="x")],
    "scales[1].sharding.hash": [with_sharding("hash"), with_sharding(hash="md5"), with_sharding(hash=None)],
    **{
        f"scales[1].sharding.{name}": [
            with_sharding(name), *(with_sharding(**{name: v}) for v in (-1, 65, 10**12, 1.5, "9", None, True, math.nan))
        ]
        for name in ("preshift_bits", "minishard_bits", "shard_bits")
    },
    "scales[1].sharding.shard_bits ": [with_sharding(preshift_bits=30, shard_bits=40)],
    **{
        f"scales[1].sharding.{name}": [with_sharding(**{name: v}) for v in ("br", "", 1)]
        for name in ("minishard_index_encoding", "data_encoding")
    },
}  # fmt: skip


@pytest.mark.parametrize(("field", "info"), [(field.strip(), info) for field, infos in WRONG.items() for info in infos])
def test_wrong_fields_are_named(field: str, info: dict[str, Any]) -> None:
    with pytest.raises(InvalidInfoError) as caught:
        check_info(PATH, info)
    text = str(caught.value)
    assert PATH in text
    assert f"{field} of its info is" in text or f"{field}[" in text or f"no usable '{field}'" in text
    assert text.endswith((".", "/volume.md"))
    assert len(text) < 600
    assert isinstance(caught.value, SourceError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("channels", "encoding"), [(2, "jpeg"), (4, "jpeg"), (5, "png"), (3, "jxl"), (2, "compresso")])
def test_encodings_hold_some_numbers_of_channels(channels: int, encoding: str) -> None:
    info = with_scale(encoding=encoding) | {"type": "image", "data_type": "uint8", "num_channels": channels}
    with pytest.raises(InvalidInfoError, match=rf"encoding of its info is '{encoding}'.*num_channels is {channels}"):
        check_info(PATH, info)


def test_placeholders_need_no_encoding() -> None:
    info = with_scale(key="PLACEHOLDER", encoding="none")
    assert Layer.from_info(PATH, check_info(PATH, info)).mips[1].is_placeholder


@pytest.mark.parametrize("info", [[], None, 5, "info", [INFO]])
def test_an_info_is_an_object(info: object) -> None:
    with pytest.raises(InvalidInfoError, match="not a JSON object.*Give the folder"):
        check_info(PATH, info)


@pytest.mark.parametrize(
    "kind",
    ["neuroglancer_skeletons", "neuroglancer_legacy_mesh", "neuroglancer_multilod_draco", "neuroglancer_annotations_v1",
     "neuroglancer_segment_properties", "", None, 1],
)  # fmt: skip
def test_infos_of_other_things_are_named(kind: object) -> None:
    with pytest.raises(InvalidInfoError, match=f"'@type': {kind!r}"):
        check_info(PATH, INFO | {"@type": kind})


@pytest.mark.parametrize("names", [("data_dir",), ("graph",), ("app",), ("data_dir", "graph", "app")])
@pytest.mark.parametrize(
    ("path", "address"),
    [
        (PATH, "graphene://https://host/segmentation/table/em"),
        ("precomputed://middleauth+https://host/segmentation/table/em", "graphene://https://host/segmentation/table/em"),
        ("precomputed://gs://bucket/em", "graphene://https://HOST/segmentation/table/TABLE"),
    ],
)  # fmt: skip
def test_a_graph_without_its_scheme_is_refused_with_the_right_spelling(
    names: tuple[str, ...], path: str, address: str
) -> None:
    info = INFO | dict.fromkeys(names, {})
    with pytest.raises(InvalidInfoError, match="dynamic segmentation") as caught:
        check_info(path, info)
    assert address in str(caught.value)
    assert check_info(path, info, is_graph=True) == info


@pytest.mark.parametrize("field", ["made by", "scales", "graph"])
def test_a_deeply_nested_info_is_refused(field: str) -> None:
    nested: Any = []
    for _ in range(900):
        nested = [nested]
    with pytest.raises(InvalidInfoError, match="nested more than 50 levels"):
        check_info(PATH, INFO | {field: nested})
