"""What every stored volume does, whatever its format: the contract of `sources.volumes.stored_volume`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.http_server import Fault, FileServer
from support.stored_volumes import FORMATS, chunk_file, write_stored
from support.volumes import coordinate_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.errors import AccessRefusedError, CorruptChunkError, MissingChunkError, SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources import collect_counts, open_volume
from imagery_dask.sources.handle import SourceHandle, stamp_of

SHAPE = (75, 70, 40)  # the last chunks of each axis are cut
OFFSET = (64, -33, 17)
STOP = tuple(a + n for a, n in zip(OFFSET, SHAPE, strict=True))
RESOLUTION = (8.0, 8.0, 40.0)
CHUNKS = 3 * 3 * 3
# Also of boxes that begin or end outside.
EDGES = [st.integers(-9, n + 8) for n in SHAPE]

formats = pytest.mark.parametrize("kind", FORMATS)
Serve = Callable[[str], tuple[FileServer, str]]


@pytest.fixture(scope="module")
def data() -> Any:
    return coordinate_volume(SHAPE, OFFSET)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, data: Any) -> Callable[[str], str]:
    """Write the volume in a format, once."""
    folder, known = tmp_path_factory.mktemp("stored"), {}

    def path(kind: str) -> str:
        if kind not in known:
            known[kind] = write_stored(kind, folder / kind, data, OFFSET)
        return known[kind]

    return path


@pytest.fixture
def serve(tmp_path: Path, data: Any, http_server_factory: Callable[..., FileServer]) -> Serve:
    """Write the volume below ``tmp_path / "em"`` and serve it over HTTP."""

    def start(kind: str) -> tuple[FileServer, str]:
        path = write_stored(kind, tmp_path / "em", data, OFFSET)
        server = http_server_factory(tmp_path)
        return server, f"{path.partition('://')[0]}://{server.url}/em"

    return start


def whole() -> VoxelGrid:
    return VoxelGrid(OFFSET, SHAPE, RESOLUTION)


@formats
def test_the_layer_is_what_was_written(kind: str, stored: Callable[[str], str]) -> None:
    layer = open_volume(stored(kind)).layer
    assert (layer.kind, layer.dtype, layer.channels) == ("segmentation", "uint64", 1)
    assert layer.mips[0].grid == whole()
    assert layer.mips[0].chunk_shape == (32, 32, 16)
    assert layer.mips[0].is_sharded == ("shard" in kind)


@formats
@given(
    corners=st.tuples(*(st.tuples(st.integers(-9, n + 8), st.integers(-9, n + 8)) for n in SHAPE)),
    c_order=st.booleans(),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_boxes_are_parts_of_the_whole(
    kind: str, stored: Callable[[str], str], data: Any, corners: Any, c_order: bool
) -> None:
    start = Vec3.of(min(pair) for pair in corners)
    stop = Vec3.of(max(pair) + 1 for pair in corners)
    box = VoxelGrid(start + OFFSET, stop - start, RESOLUTION)
    padded = np.pad(data, 10)[..., np.newaxis]
    expected = padded[tuple(slice(a + 10, b + 10) for a, b in zip(start, stop, strict=True))]
    volume = open_volume(stored(kind))
    read, counts = volume.read(0, box, "error", "C" if c_order else "F")
    np.testing.assert_array_equal(read, expected)
    assert read.flags.c_contiguous if c_order else read.flags.f_contiguous
    assert counts.missing == counts.not_stored == 0
    out = np.full(box.shape, 7, np.uint64)[..., np.newaxis]
    volume.read(0, box, "error", out=out)
    np.testing.assert_array_equal(out, expected)
    parts = [VoxelGrid(start + OFFSET, ((stop - start).x, (stop - start).y, 1), RESOLUTION), box]
    with collect_counts() as counts:
        first, second = volume.read_parts(0, parts, "error", counts)
    np.testing.assert_array_equal(first, expected[:, :, :1])
    np.testing.assert_array_equal(second, expected)


@formats
def test_each_chunk_is_requested_once(kind: str, serve: Serve, data: Any) -> None:
    server, path = serve(kind)
    handle = SourceHandle(path, open_volume(path).layer.mips[0])
    server.reset()
    with collect_counts() as counts:
        np.testing.assert_array_equal(handle.read(whole())[..., 0], data)
    files = {request.path for request in server.requests}
    assert counts.requests == len(server.requests)
    assert counts.chunks == CHUNKS
    if kind == "precomputed-sharded":  # an index (of minishards, too), and the chunks of a shard in a run
        assert len(server.requests) <= 5 * len(files)
    elif "shard" in kind:  # at once, because all of its chunks are wanted
        assert len(server.requests) == len(files)
    else:
        assert len(server.requests) == CHUNKS
    server.reset()
    with collect_counts():
        handle.read(VoxelGrid(OFFSET, (1, 1, 1), RESOLUTION))
    assert len(server.requests) == 1, "indices are kept"


@formats
def test_what_does_not_exist_is_missing_or_not_stored(kind: str, tmp_path: Path, data: Any) -> None:
    path = write_stored(kind, tmp_path / "em", data, OFFSET)
    file = chunk_file(kind, tmp_path / "em")
    file.unlink()
    volume = open_volume(path)
    if kind.startswith("precomputed"):
        read, counts = volume.read(0, whole(), "fill")
        assert counts.missing > 0
        assert counts.not_stored == 0
        with pytest.raises(MissingChunkError):
            volume.read(0, whole(), "error")
    else:
        read, counts = volume.read(0, whole(), "error")
        assert counts.not_stored > 0
        assert counts.missing == 0
    gone = read[..., 0] != data
    assert 0 < gone.sum() < data.size
    assert not read[..., 0][gone].any()


@pytest.mark.parametrize(
    ("kind", "damage"),
    # Zeros are valid voxels of raw chunks; other changes are seen by codecs with a checksum.
    [
        *((kind, "cut") for kind in FORMATS),
        *((kind, "zeros") for kind in FORMATS if kind != "precomputed"),
        ("zarr3-transposed", "changed"),
        ("n5", "changed"),
    ],
)
def test_damage_is_named_by_its_file(kind: str, damage: str, tmp_path: Path, data: Any) -> None:
    path = write_stored(kind, tmp_path / "em", data, OFFSET)
    file = chunk_file(kind, tmp_path / "em")
    content = file.read_bytes()
    half = len(content) // 2
    changed = content[:half] + bytes(255 - byte for byte in content[half : half + 40]) + content[half + 40 :]
    file.write_bytes({"cut": content[:half], "zeros": bytes(len(content)), "changed": changed}[damage])
    # The shards of precomputed name the chunk that they should have.
    name = "8_8_40/" if kind == "precomputed-sharded" else str(file.relative_to(tmp_path / "em"))
    with pytest.raises(CorruptChunkError, match=re.escape(name)):
        open_volume(path).read(0, whole(), "fill")


@formats
def test_faults_of_a_server_are_told_apart(kind: str, serve: Serve, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagery_dask.sources.requests.transport.pause_s", lambda *args: 0)
    server, path = serve(kind)
    target = "/" + str(chunk_file(kind, server.root / "em").relative_to(server.root))
    handle = SourceHandle(path, open_volume(path).layer.mips[0])
    for fault in (Fault(status=429), Fault(cut=10), Fault(reset=True), Fault(status=500)):
        handle._volume().forget_chunks()
        seen: list[int] = []

        def once(path: str, n: int, fault: Fault = fault, seen: list[int] = seen) -> Fault | None:
            del n
            if path == target and not seen:
                seen.append(1)
                return fault
            return None

        server.faults = once
        with collect_counts() as counts:
            np.testing.assert_array_equal(handle.read(whole())[..., 0], data)
        assert seen, f"{fault} was not met"
        assert counts.missing == counts.not_stored == 0
    server.faults = lambda path, n: Fault(status=403) if path == target else None
    with pytest.raises(AccessRefusedError, match="403"), collect_counts():
        handle.read(whole())


@formats
def test_chunks_that_may_be_refused_are_counted_apart(kind: str, serve: Serve, data: Any) -> None:
    """A bucket that answers 403 for files that do not exist, among them metadata of other formats."""
    server, path = serve(kind)
    server.absent = 403, b""
    chunk_file(kind, server.root / "em").unlink()
    volume = open_volume(path.replace("zarr2:", "zarr:").replace("zarr3:", "zarr:"))
    read, counts = volume.read(0, whole(), "fill")
    assert 0 < counts.refused_or_absent == counts.missing == len(counts.refused_or_absent_keys) < CHUNKS
    assert counts.not_stored == 0
    gone = read[..., 0] != data
    assert 0 < gone.sum() < data.size
    assert not read[..., 0][gone].any()
    with pytest.raises(MissingChunkError, match="is absent or refused"):
        volume.read(0, whole(), "error")


@pytest.mark.parametrize(("kind", "name"), [("zarr2", "zarr.json"), ("zarr2", ".zattrs"), ("n5", "s1/attributes.json")])
def test_metadata_that_is_refused_is_an_error_where_absent_files_are_404(kind: str, name: str, serve: Serve) -> None:
    server, path = serve(kind)
    server.faults = lambda asked, n: Fault(status=403) if asked == f"/em/{name}" else None
    with pytest.raises(AccessRefusedError, match=re.escape(name)):
        open_volume(path.replace("zarr2:", "zarr:"))


@formats
def test_new_metadata_is_noticed(kind: str, tmp_path: Path, data: Any) -> None:
    path = write_stored(kind, tmp_path / "em", data, OFFSET)
    volume = open_volume(path)
    handle, before = SourceHandle(path, volume.layer.mips[0]), stamp_of(path, [0])
    assert volume.is_current()
    assert stamp_of(path, [0], fresh=True) == before
    write_stored(kind, tmp_path / "em", data, (0, 0, 0))
    assert not volume.is_current()
    assert stamp_of(path, [0], fresh=True)["info"] != before["info"]
    with pytest.raises(SourceError, match="has changed"):
        handle.read(whole())


@formats
def test_new_chunks_are_noticed_in_spite_of_the_cache(kind: str, tmp_path: Path, data: Any) -> None:
    path = write_stored(kind, tmp_path / "em", data, OFFSET)
    lazy = ImageryClient(segmentation_source=path, imagery=False).segmentation_cutout([OFFSET, STOP])
    np.testing.assert_array_equal(lazy.compute(), data)
    write_stored(kind, tmp_path / "em", data + 1, OFFSET)
    np.testing.assert_array_equal(lazy.compute(), data + 1)


@formats
def test_exports_are_what_is_stored(kind: str, stored: Callable[[str], str], tmp_path: Path, data: Any) -> None:
    source = ImageryClient(segmentation_source=stored(kind), imagery=False)
    to_zarr(source.segmentation_cutout([OFFSET, STOP]), tmp_path / "out.zarr", levels=2, chunks=(32, 32, 16))
    again = ImageryClient(segmentation_source=str(tmp_path / "out.zarr"), imagery=False)
    np.testing.assert_array_equal(again.segmentation_cutout([OFFSET, STOP]).compute(), data)
    assert again.resolution.tolist() == list(RESOLUTION)


@formats
def test_an_export_counts_what_it_reads(kind: str, serve: Serve, tmp_path: Path) -> None:
    server, path = serve(kind)
    source = ImageryClient(segmentation_source=path, imagery=False)
    before = len(server.requests)
    report = to_zarr(source.segmentation_cutout([OFFSET, STOP]), tmp_path / "out.zarr", chunks=(32, 32, 16))
    assert report.counts.chunks == CHUNKS
    assert report.counts.missing == report.counts.not_stored == 0
    assert 0 < report.counts.requests <= len(server.requests) - before
