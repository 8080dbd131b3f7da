"""The info in the store of edited supervoxels is checked against that of the volume whose chunks they replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tensorstore

from imagery_dask.errors import InvalidInfoError, SourceError
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.layer import Layer
from imagery_dask.model.supervoxel_store import StoreLayer, SupervoxelStore
from imagery_dask.model.volume_info import check_info
from imagery_dask.sources.precomputed.edited_supervoxels import EditedSupervoxels
from imagery_dask.sources.volumes.chunk_grid import crossed

GRAPH = "graphene://http://127.0.0.1:1/segmentation/table/t"
SCALE: dict[str, Any] = {
    "key": "8.0_8.0_40.0",
    "size": [100, 64, 32],
    "voxel_offset": [5, 0, 7],
    "resolution": [8, 8, 40],
    "chunk_sizes": [[32, 32, 16]],
    "encoding": "compressed_segmentation",
    "compressed_segmentation_block_size": [8, 8, 8],
}
INFO = {"type": "segmentation", "data_type": "uint64", "num_channels": 1, "scales": [SCALE]}


def edited(folder: Path, content: bytes | None) -> EditedSupervoxels:
    """Open a store with an info beside a volume with `INFO`."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": folder.as_uri() + "/"}).result()
    store["another"] = b"file"
    if content is not None:
        store["info"] = content
    info = check_info(GRAPH, INFO)
    place = SupervoxelStore((StoreLayer(folder.as_uri() + "/"),))
    return EditedSupervoxels(place, Layer.from_info(GRAPH, info), info["scales"], "precomputed://file:///ws", [10**6])


def with_scale(**changes: Any) -> bytes:
    return json.dumps(INFO | {"scales": [SCALE | {"key": "8_8_40"} | changes]}).encode()


def test_chunks_have_the_names_of_the_store(tmp_path: Path) -> None:
    opened = edited(tmp_path, with_scale(resolution=[8.0, 8.0, 40.0]))
    level = Layer.from_info(GRAPH, check_info(GRAPH, INFO)).mips[0]
    last = list(crossed(level.grid, level, 1))[-1]
    assert opened.refusals == {}
    assert opened.at(None).key(0, last) == "8_8_40/101-105_32-64_23-39"


def test_chunks_of_shards_have_the_name_of_their_shard(tmp_path: Path) -> None:
    sharding = {"@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 1, "minishard_bits": 1,
                "shard_bits": 2}  # fmt: skip
    opened = edited(tmp_path, with_scale(sharding=sharding))
    level = Layer.from_info(GRAPH, check_info(GRAPH, INFO)).mips[0]
    names = {opened.at(None).key(0, chunk) for chunk in crossed(level.grid, level, 1)}
    assert names == {f"8_8_40/{number}.shard" for number in range(4)}
    assert Vec3(4, 2, 2).prod() == 16  # chunks, four in each shard


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": [101, 64, 32]}, r"size is \[101, 64, 32\], not \[100, 64, 32\]"),
        ({"voxel_offset": [0, 0, 0]}, "voxel_offset is"),
        ({"chunk_sizes": [[64, 32, 16]]}, "chunk_sizes is"),
        ({"encoding": "raw"}, "encoding is raw, not compressed_segmentation"),
        ({"compressed_segmentation_block_size": [8, 8, 4]}, r"block_size is \[8, 8, 4\]"),
        ({"resolution": [16, 16, 40]}, "no scale has this resolution"),
    ],
    ids=str,
)
def test_chunks_in_another_form_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInfoError, match=f"mip 0: supervoxels are split, .*{message}"):
        edited(tmp_path, with_scale(**changes))


def test_other_voxels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInfoError, match="voxels are 1 times uint32"):
        edited(tmp_path, json.dumps(INFO | {"data_type": "uint32"}).encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no info of a volume"),
        (b"{", "is invalid"),
        (b"[]", "not a JSON object"),
        (b"{}", "no usable 'type'"),
    ],
)
def test_a_store_without_a_volume_is_an_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        edited(tmp_path, content)
