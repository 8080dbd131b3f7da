"""Floors: decoding, downsampling and encoding of the same bytes in one plain loop on one core, from local files."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compressed_segmentation
import deflate
import numpy as np
import simplejpeg

from benchmarks.child import timed

XYZ = tuple[int, int, int]


def _info(source: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    folder = Path(source.removeprefix("file://"))
    info = json.loads((folder / "info").read_text())
    return folder / info["scales"][0]["key"], info, info["scales"][0]


def decoded(source: str) -> Iterator[tuple[tuple[slice, ...], Any]]:
    """Yield the chunks of a volume: their boxes from its corner (x, y, z), and their voxels."""
    folder, info, scale = _info(source)
    offset, size, chunk = (np.array(scale[key]) for key in ("voxel_offset", "size", "chunk_sizes"))
    for at in np.ndindex(*(-(-size // chunk[0]))[::-1]):
        start = at[::-1] * chunk[0]
        stop = np.minimum(start + chunk[0], size)
        name = "_".join(f"{a}-{b}" for a, b in zip(start + offset, stop + offset, strict=True))
        packed = folder / f"{name}.gz"
        content = _gunzipped(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
        yield tuple(map(slice, start, stop)), _decode(content, scale, tuple(stop - start), info["data_type"])


def _gunzipped(content: bytes) -> bytes:
    return bytes(deflate.gzip_decompress(content))


def _decode(content: bytes, scale: dict[str, Any], shape: XYZ, dtype: str) -> Any:
    if scale["encoding"] == "jpeg":
        return simplejpeg.decode_jpeg(content, colorspace="GRAY").reshape(shape[::-1]).T
    if scale["encoding"] == "raw":
        return np.frombuffer(content, dtype).reshape(shape, order="F")
    block = scale["compressed_segmentation_block_size"]
    return compressed_segmentation.decompress(content, (*shape, 1), dtype, block, order="F")[..., 0]


def cutout(source: str, kind: str, start: list[int], stop: list[int]) -> Any:
    """Decode all chunks into one array."""
    _, info, scale = _info(source)
    out = np.empty(scale["size"], info["data_type"], order="F")
    for box, voxels in decoded(source):
        out[box] = voxels
    return out


def zarr(
    source: str, kind: str, start: list[int], stop: list[int], out: str, chunk: int, shard: Any, levels: int
) -> None:
    """Decode slabs, downsample them, and write the encoded chunks of zarr arrays without shards."""
    import numcodecs
    import zarr as zarr_python
    from zarr.codecs import BloscCodec, ZstdCodec

    numcodecs.blosc.set_nthreads(1)
    _, info, scale = _info(source)
    labels, dtype = kind == "labels", np.dtype(info["data_type"])
    for level in range(levels):
        x, y, z = (-(-n // f) for n, f in zip(scale["size"], (2**level, 2**level, 1), strict=True))
        codec = ZstdCodec(level=1) if labels else BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=1)
        zarr_python.create_array(
            f"{out}/{level}", shape=(z, y, x), chunks=(chunk,) * 3, dtype=dtype, compressors=codec, fill_value=0
        )
    encoder = numcodecs.Zstd(1) if labels else numcodecs.Blosc("zstd", 1, 1, 2**18)
    for first, level, voxels in _slabs(source, labels, chunk, levels):
        for box in _boxes(voxels.shape, chunk):
            x, y, _ = (part.start // chunk for part in box)
            file = Path(out, str(level), "c", str(first // chunk), str(y), str(x))
            file.parent.mkdir(parents=True, exist_ok=True)
            block = voxels[box].T
            full = np.zeros((chunk,) * 3, dtype) if block.shape != (chunk,) * 3 else np.ascontiguousarray(block)
            full[tuple(map(slice, block.shape))] = block
            file.write_bytes(encoder.encode(full))


def precomputed(source: str, kind: str, start: list[int], stop: list[int], out: str, levels: int) -> None:
    """Decode slabs of labels, downsample them, and write the encoded chunks of a precomputed volume."""
    chunk = 64
    _, info, scale = _info(source)
    mips = []
    for level in range(levels):
        factor = (2**level, 2**level, 1)
        size, offset, nm = scale["size"], scale["voxel_offset"], scale["resolution"]
        mips.append(scale | {
            "key": f"mip{level}",
            "size": [-(-n // f) for n, f in zip(size, factor, strict=True)],
            "voxel_offset": [n // f for n, f in zip(offset, factor, strict=True)],
            "resolution": [n * f for n, f in zip(nm, factor, strict=True)],
        })  # fmt: skip
        Path(out, f"mip{level}").mkdir(parents=True)
    Path(out, "info").write_text(json.dumps(info | {"scales": mips}))
    for first, level, voxels in _slabs(source, True, chunk, levels):
        offset = mips[level]["voxel_offset"]
        for box in _boxes(voxels.shape, chunk):
            starts = [part.start + o for part, o in zip(box, offset, strict=True)]
            starts[2] += first
            name = "_".join(f"{a}-{a + n}" for a, n in zip(starts, voxels[box].shape, strict=True))
            block = np.asfortranarray(voxels[box])[..., np.newaxis]
            content = compressed_segmentation.compress(block, block_size=(8, 8, 8), order="F")
            Path(out, f"mip{level}", name).write_bytes(content)


def precomputed_mips(source: str, kind: str, start: list[int], stop: list[int], out: str, levels: int) -> Any:
    """Write a precomputed volume; times are those of its mips above level 0, which is written again and subtracted."""
    alone = timed(lambda: precomputed(source, kind, start, stop, f"{out}.level-0", 1))
    shutil.rmtree(f"{out}.level-0")
    times = timed(lambda: precomputed(source, kind, start, stop, out, levels))
    return {name: times[name] - alone[name] for name in times}


def _slabs(source: str, labels: bool, depth: int, levels: int) -> Iterator[tuple[int, int, Any]]:
    """Yield the first plane, the level and the voxels (x, y, z) of slabs; all slabs are decoded into one buffer."""
    import tinybrain

    _, info, scale = _info(source)
    x, y, z = scale["size"]
    slab = np.empty((x, y, depth), info["data_type"], order="F")
    downsample = tinybrain.downsample_segmentation if labels else tinybrain.downsample_with_averaging
    for (a, b, c), voxels in decoded(source):
        slab[a, b, c.start % depth : c.start % depth + voxels.shape[2]] = voxels
        if (a.stop, b.stop) == (x, y) and (c.stop == z or c.stop % depth == 0):
            first = (c.stop - 1) // depth * depth
            full = slab[..., : c.stop - first]
            coarser = downsample(full, (2, 2, 1), num_mips=levels - 1) if levels > 1 else []
            for level, level_voxels in enumerate((full, *coarser)):
                yield first, level, level_voxels


def _boxes(shape: tuple[int, ...], chunk: int) -> Iterator[tuple[slice, ...]]:
    starts = itertools.product(*(range(0, n, chunk) for n in shape))
    for at in starts:
        yield tuple(slice(a, min(a + chunk, n)) for a, n in zip(at, shape, strict=True))
