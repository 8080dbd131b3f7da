"""Data that programs read, each made once, by a child.

Volumes are EM-like and come from the generator of the demo. A data set is a folder that a server can serve, with
`data.json`: the arguments that programs get (`given`), and numbers from which limits of counts are computed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

OFFSET = (4096, 2048, 512)
RESOLUTION_NM = (8, 8, 40)
SIZES = {"image": (1024, 1024), "labels": (512, 512)}
SMALL_SIDE = 128
Made = dict[str, Any]


def folder_of(name: str, cache: Path, small: bool) -> Path:
    """Return the folder of a data set; another version of this module has others."""
    version = hashlib.sha1(Path(__file__).read_bytes()).hexdigest()[:8]
    return cache / f"data-{'small' if small else 'full'}-{version}" / name


def make(name: str, folder: str, small: bool) -> None:
    """Make a data set, and then its `data.json`."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    facts = SETS[name](place, small)
    (place / "data.json").write_text(json.dumps(facts))


def volume(
    folder: Path,
    small: bool,
    encoding: str = "raw",
    depth: int = 128,
    chunk: tuple[int, int, int] = (64, 64, 64),
    compress: bool = False,
    sharded: bool = False,
) -> Made:
    """Write a precomputed volume; without `compress`, chunks are not gzipped."""
    import numpy as np
    from cloudvolume import CloudVolume

    from imagery_dask.testing.volume import synthesize

    kind = "labels" if encoding == "compressed_segmentation" else "image"
    side = SMALL_SIDE if small else SIZES[kind][0]
    shape = (side, side, 64 if small else depth)
    image, ids = synthesize((side, side, 64) if kind == "image" else (2 * side, 2 * side, 64))
    voxels = np.asfortranarray(np.tile(image if kind == "image" else ids, (1, 1, shape[2] // 64)))
    layer = "image" if kind == "image" else "segmentation"
    info = CloudVolume.create_new_info(
        1, layer, str(voxels.dtype), encoding, RESOLUTION_NM, OFFSET, shape, chunk_size=chunk
    )
    if sharded:
        _write_shards(folder, info, voxels, compress)
    else:
        target = CloudVolume(f"file://{folder.resolve()}", info=info, progress=False, compress=compress)
        target[:] = voxels
        target.commit_info()
    files = [file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.parent != folder]
    stop = [a + b for a, b in zip(OFFSET, shape, strict=True)]
    chunks = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    return {
        "given": {"kind": kind, "start": OFFSET, "stop": stop},
        "chunks": chunks, "files": len(files), "stored": sum(files),
    }  # fmt: skip


def _write_shards(folder: Path, info: Made, voxels: Any, compress: bool) -> None:
    """Write shards of 2**6 chunks by tensorstore."""
    import tensorstore

    encoding = "gzip" if compress else "raw"
    scale = info["scales"][0]
    bits = max(
        0,
        math.ceil(
            math.log2(math.prod(-(-n // c) for n, c in zip(scale["size"], scale["chunk_sizes"][0], strict=True)))
        ),
    )
    scale["sharding"] = {
        "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 3, "hash": "identity", "minishard_bits": 3,
        "shard_bits": max(0, bits - 6), "minishard_index_encoding": "gzip", "data_encoding": encoding,
    }  # fmt: skip
    for key in ("mesh", "skeletons"):
        info.pop(key, None)
    (folder / "info").write_text(json.dumps(info))
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{folder}/"}, "scale_index": 0}
    store = tensorstore.open(spec).result()
    with tensorstore.Transaction() as transaction:
        store.with_transaction(transaction)[..., 0] = voxels


def store(folder: Path, small: bool, kind: str, sharded: bool = False) -> Made:
    """Write an image of OME-Zarr (zarr v3) in chunks of 64 x 64 x 64: blosc for imagery, zstd for ids."""
    import numpy as np
    import zarr
    from zarr.codecs import BloscCodec, ZstdCodec

    from imagery_dask.testing.volume import synthesize

    side, depth = SMALL_SIDE if small else SIZES[kind][0], 64 if small else 128
    image, ids = synthesize((side, side, 64) if kind == "image" else (2 * side, 2 * side, 64))
    voxels = np.ascontiguousarray(np.tile(image if kind == "image" else ids, (1, 1, depth // 64)).T)
    group = zarr.open_group(folder, mode="w")
    array = group.create_array(
        "0", shape=voxels.shape, dtype=voxels.dtype, chunks=(64, 64, 64), shards=(64, 256, 256) if sharded else None,
        compressors=BloscCodec(cname="zstd", clevel=1) if kind == "image" else ZstdCodec(level=1),
    )  # fmt: skip
    array[...] = voxels
    scale, centre = RESOLUTION_NM[::-1], [(at + 0.5) * nm for at, nm in zip(OFFSET, RESOLUTION_NM, strict=True)][::-1]
    steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": centre}]
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    files = [file.stat().st_size for file in folder.glob("*/c/**/*") if file.is_file()]
    stop = [a + b for a, b in zip(OFFSET, voxels.shape[::-1], strict=True)]
    return {
        "given": {"kind": kind, "start": OFFSET, "stop": stop},
        "chunks": math.prod(-(-n // 64) for n in voxels.shape), "files": len(files), "stored": sum(files),
    }  # fmt: skip


def browsing(folder: Path, small: bool) -> Made:
    """Write the demo's image: jpeg in chunks of 64 x 64 x 16."""
    from imagery_dask.testing.volume import write_demo_volumes

    shape = (256, 256, 64) if small else (768, 768, 64)
    write_demo_volumes(folder.with_suffix(".demo"), shape)
    folder.with_suffix(".demo").joinpath("image").rename(folder)  # which is empty
    start = json.loads((folder / "info").read_text())["scales"][0]["voxel_offset"]
    side = 128 if small else 512
    return {"given": {"start": start, "side": side}, "across": side // 64}


def petabyte(folder: Path, small: bool) -> Made:
    """Write the info of a volume of a petabyte, and the chunks of a small region of it."""
    import numpy as np
    from cloudvolume import CloudVolume

    size = (131072, 131072, 65536)
    info = CloudVolume.create_new_info(1, "image", "uint8", "raw", (4, 4, 40), (0, 0, 0), size, chunk_size=(64, 64, 64))
    target = CloudVolume(f"file://{folder.resolve()}", info=info, progress=False, compress=False)
    target[0:1024, 0:1024, 0:64] = np.random.default_rng(0).integers(1, 255, (1024, 1024, 64), dtype=np.uint8)
    target.commit_info()
    return {"given": {"kind": "image", "start": [100, 200, 5], "stop": [612, 712, 6]}, "chunks": 81}


def receipts(folder: Path, small: bool, blocks: int = 1_000_000, processes: int = 2) -> Made:
    """Write a complete export of blocks of single chunks, without its chunks."""
    from benchmarks.programs import runs

    blocks = runs.finished_export(folder, 1000 if small else blocks, processes)
    return {"given": {"export": str(folder.resolve() / "out.zarr"), "blocks": blocks}}


def small_export(folder: Path, small: bool) -> Made:
    """Write a demo volume and a finished export of a corner of it, for commands that look at exports."""
    from imagery_dask import ImageryClient, to_zarr

    start = browsing(folder, small)["given"]["start"]
    export = str(folder.resolve().with_suffix(".zarr"))  # not in its source
    client = ImageryClient(image_source=f"precomputed://file://{folder.resolve()}")
    cutout = client.image_cutout([start, [n + 32 for n in start]])
    to_zarr(cutout, export, progress=False, resolution_nm=RESOLUTION_NM)
    stop = [a + b for a, b in zip(start, (256, 256, 32), strict=True)]
    return {"given": {"kind": "image", "start": start, "stop": stop, "export": export}}


def page(folder: Path, small: bool, count: int, gap: float = 0) -> Made:
    """Write a page of grey values, and one of ids: cells around random points, a fifth of them of large objects."""
    import numpy as np
    from scipy.spatial import cKDTree

    size = 256 if small else 1024 if count == 100 else 4096
    rng = np.random.default_rng(count)
    ids = 864691135000000000 + rng.permutation(count).astype(np.uint64)
    ids[: count // 5] = ids[rng.integers(0, max(1, count // 50), count // 5)]
    points = np.stack(np.mgrid[: size // 4, : size // 4], axis=-1).reshape(-1, 2) * 4 + 2
    distance, nearest = cKDTree(rng.random((count, 2)) * size).query(points, k=2)
    labels = np.where(distance[:, 1] - distance[:, 0] < gap, np.uint64(0), ids[nearest[:, 0]])
    labels = labels.reshape(size // 4, size // 4).repeat(4, axis=0).repeat(4, axis=1)
    np.savez(folder / "page.npz", labels=labels, image=rng.integers(0, 256, (size, size), dtype=np.uint8))
    return {"given": {"page": str(folder.resolve() / "page.npz")}}


def microscopy(folder: Path, small: bool) -> Made:
    """Write arrays for codecs: real electron microscopy where it is beside the checkout, else the generator's."""
    import numpy as np

    from imagery_dask.testing.volume import synthesize

    real = Path(__file__).parents[2] / "shared" / "data" / "fib25.npz"
    if real.is_file() and not small:
        with np.load(real) as file:
            image, supervoxels = (np.ascontiguousarray(file[name].T) for name in ("image", "supervoxel"))
            table = file["supervoxel_to_body"]
        table = table[np.argsort(table[:, 0])]
        bodies = table[np.searchsorted(table[:, 0], supervoxels).clip(max=len(table) - 1), 1]
        ids = np.where(supervoxels == 0, 0, bodies + np.uint64(2**60)).astype(np.uint64)
    else:
        image, ids = (
            np.ascontiguousarray(array.T) for array in synthesize((128, 128, 64) if small else (512, 512, 64))
        )
    random = np.random.default_rng(0)
    arrays = {
        "uint8": image,
        "uint16": image.astype(np.uint16) * 16 + random.integers(0, 16, image.shape, dtype=np.uint16),
        "float32": image.astype(np.float32) / 255 + random.normal(0, 1e-3, image.shape).astype(np.float32),
        "ids": ids,
        "uint32": np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.uint32),
        "mask": (ids == np.unique(ids)[-1]).astype(np.uint8),
    }
    np.savez(folder / "arrays.npz", **arrays)
    return {"given": {"arrays": str(folder.resolve() / "arrays.npz")}}


def roots(folder: Path, small: bool) -> Made:
    """Write the supervoxels of a dynamic segmentation for the local CAVE server."""
    from benchmarks import cave_server

    return cave_server.write(folder, cave_server.boxes(small))


def versions(folder: Path, small: bool, many: bool = False) -> Made:
    """Write a version store, and what its rows compare it with."""
    from benchmarks import version_stores

    return (version_stores.write_many if many else version_stores.write_edited)(folder, small)


def nothing(folder: Path, small: bool) -> Made:
    """Write nothing."""
    return {"given": {}}


SETS: dict[str, Callable[[Path, bool], Made]] = {
    "image-jpeg": partial(volume, encoding="jpeg"),
    "image-raw": volume,
    "image-gzip": partial(volume, compress=True),
    "image-thin": partial(volume, chunk=(64, 64, 16)),
    "image-large": partial(volume, depth=256, chunk=(128, 128, 128)),
    "image-sharded": partial(volume, sharded=True),
    "labels": partial(volume, encoding="compressed_segmentation"),
    "labels-gzip": partial(volume, encoding="compressed_segmentation", compress=True),
    "labels-sharded": partial(volume, encoding="compressed_segmentation", compress=True, sharded=True),
    "image-raw-deep": partial(volume, depth=256),
    "image-jpeg-deep": partial(volume, encoding="jpeg", depth=256),
    "labels-deep": partial(volume, encoding="compressed_segmentation", depth=256),
    "image-far": partial(volume, depth=2048),
    "image-cpu": partial(volume, depth=1024),
    "zarr-image": partial(store, kind="image"),
    "zarr-labels": partial(store, kind="labels"),
    "zarr-image-sharded": partial(store, kind="image", sharded=True),
    "zarr-labels-sharded": partial(store, kind="labels", sharded=True),
    "browsing": browsing,
    "petabyte": petabyte,
    "receipts": receipts,
    "receipts-many": partial(receipts, blocks=216**3, processes=1000),
    "small": small_export,
    "page-1000": partial(page, count=1000),
    "page-5000": partial(page, count=5000),
    "page-5000-gaps": partial(page, count=5000, gap=8),
    "page-50000": partial(page, count=50_000),
    "page-100": partial(page, count=100, gap=8),
    "microscopy": microscopy,
    "roots": roots,
    "versions": versions,
    "versions-many": partial(versions, many=True),
    "nothing": nothing,
}
