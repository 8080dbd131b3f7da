"""Files that a loss of power has truncated, emptied or filled with zeros are corrupt, and never missing or zeros."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.http_server import FileServer
from support.settings import Configure
from support.volumes import random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient
from imagery_dask.errors import CorruptChunkError, SourceError

SHAPE = (64, 32, 16)  # 2 chunks
ENCODINGS = {
    "raw": "uint16", "jpeg": "uint8", "png": "uint8", "jxl": "uint8", "compressed_segmentation": "uint64",
    "compresso": "uint32", "crackle": "uint64",
}  # fmt: skip
DAMAGES = {
    "zero tail": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "zero end": lambda content: content[:-8] + bytes(8),
    "zeros": lambda content: bytes(len(content)),
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


@pytest.fixture(autouse=True)
def _short_pauses(configure: Configure) -> None:
    configure("requests.first_pause_s", 0.0)


def voxels_of(dtype: str) -> Any:
    return random_labels(SHAPE).astype(dtype) if np.dtype(dtype).itemsize > 1 else smooth_image(SHAPE)


def check(folder: Path, file_server: FileServer, name: str) -> None:
    for source in (str(folder), f"{file_server.url}/{folder.name}"):
        client = ImageryClient(image_source=source)
        client.image_cutout([[32, 0, 0], SHAPE]).compute(scheduler="synchronous")
        with pytest.raises(CorruptChunkError, match=name):
            client.image_cutout([[0, 0, 0], [32, 32, 16]]).compute(scheduler="synchronous")


@pytest.mark.parametrize(
    ("encoding", "compress"), [*((encoding, "gzip") for encoding in ENCODINGS), ("raw", "br"), ("crackle", "br")]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunks_are_named(
    tmp_path: Path, file_server: FileServer, encoding: str, damage: str, compress: str
) -> None:
    write_volume(tmp_path / "em", voxels_of(ENCODINGS[encoding]), encoding=encoding, compress=False)
    (chunk,) = (tmp_path / "em" / "8_8_40").glob("0-32_*")
    from imagery_dask.sources.files.compression import compress as compressed

    content = compressed(chunk.read_bytes(), compress)
    chunk.unlink()
    chunk.with_name(chunk.name + (".gz" if compress == "gzip" else ".br")).write_bytes(DAMAGES[damage](content))
    check(tmp_path / "em", file_server, "8_8_40/0-32_0-32_0-16")


@pytest.mark.parametrize("compress", ["gzip", "br", False])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_chunks_of_nothing_are_named(tmp_path: Path, file_server: FileServer, encoding: str, compress: Any) -> None:
    write_volume(tmp_path / "em", voxels_of(ENCODINGS[encoding]), encoding=encoding, compress=False)
    (chunk,) = (tmp_path / "em" / "8_8_40").glob("0-32_*")
    from cloudfiles import compression

    chunk.unlink()
    suffix = {"gzip": ".gz", "br": ".br"}.get(compress, "")
    chunk.with_name(chunk.name + suffix).write_bytes(compression.compress(b"", compress))
    check(tmp_path / "em", file_server, "8_8_40/0-32_0-32_0-16")


@pytest.mark.parametrize("raw", [False, True], ids=["gzip", "raw"])
@pytest.mark.parametrize("part", ["shard index", "minishard index", "chunk"])
@pytest.mark.parametrize("damage", ["zero tail", "zero end", "zeros"])
def test_damaged_parts_of_shards_are_named(
    tmp_path: Path, file_server: FileServer, part: str, damage: str, raw: bool
) -> None:
    sharding = {"preshift_bits": 0, "minishard_bits": 0, "shard_bits": 1, "data_encoding": "gzip"}
    write_volume(tmp_path / "em", voxels_of("uint16"), sharding=sharding, compress=False if raw else "gzip")
    shard = tmp_path / "em" / "8_8_40" / "0.shard"
    content = bytearray(shard.read_bytes())
    start, stop = (np.frombuffer(content[:16], "<u8").astype(int) + 16).tolist()
    begin, end = {"shard index": (0, 16), "minishard index": (start, stop), "chunk": (16, start)}[part]
    content[begin:end] = DAMAGES[damage](bytes(content[begin:end]))
    shard.write_bytes(bytes(content))
    check(tmp_path / "em", file_server, "8_8_40/0-32_0-32_0-16")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_a_pipe_in_place_of_a_chunk_is_an_error(tmp_path: Path) -> None:
    write_volume(tmp_path / "em", voxels_of("uint16"), compress=False)
    (chunk,) = (tmp_path / "em" / "8_8_40").glob("0-32_*")
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(SourceError, match=chunk.name):
        ImageryClient(image_source=str(tmp_path / "em")).image_cutout([[0, 0, 0], SHAPE]).compute()
