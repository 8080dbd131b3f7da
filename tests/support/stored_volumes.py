"""One volume in every format that can be read, written by CloudVolume, zarr-python and tensorstore."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorstore
import zarr
from numpy.typing import NDArray

from support.volumes import write_volume

__all__ = ["FORMATS", "chunk_file", "write_stored"]

RESOLUTION = (8, 8, 40)
CHUNK = (32, 32, 16)
FORMATS = (
    "precomputed", "precomputed-sharded", "zarr2", "zarr2-nested", "zarr2-fortran", "zarr3", "zarr3-transposed",
    "zarr3-shards", "zarr3-shards-start", "n5",
)  # fmt: skip


def write_stored(
    kind: str,
    folder: Path,
    data: NDArray[Any],
    offset: Sequence[int],
    resolution: Sequence[float] = RESOLUTION,
    halved: NDArray[Any] | None = None,
) -> str:
    """Write voxels (x, y, z), or (x, y, z, channel) of zarr, in chunks of 32 x 32 x 16; return the path of the volume.

    Parameters
    ----------
    kind : str
        One of `FORMATS`.
    halved : numpy.ndarray, optional
        Voxels of a second level, whose voxels are twice as large along x and y.
    """
    if kind.startswith("precomputed"):
        options: dict[str, Any] = {"sharding": True} if "sharded" in kind else {"compress": False}
        if halved is not None:
            options |= {"mips": 2, "levels": [halved]}
        return write_volume(
            folder, data, voxel_offset=offset, resolution=resolution, chunk_size=CHUNK,
            layer_type="segmentation" if data.dtype.itemsize > 2 else "image", **options,
        )  # fmt: skip
    if kind == "n5":
        return _write_n5(folder, _levels(data, offset, resolution, halved))
    channels = data.ndim == 4
    chunk = (*([1] if channels else []), *reversed(CHUNK))
    group = zarr.open_group(folder, mode="w", zarr_format=2 if kind.startswith("zarr2") else 3)
    options = {"chunks": chunk, "compressors": "auto"}
    if kind == "zarr2-nested":
        options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    if kind == "zarr2-fortran":
        options["order"] = "F"
    if kind == "zarr3-transposed":
        options["filters"] = [zarr.codecs.TransposeCodec(order=tuple(reversed(range(len(chunk)))))]
        options["compressors"] = [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]
    if "shards" in kind:
        shape = tuple(2 * size if n >= channels else size for n, size in enumerate(chunk))
        options["shards"] = {"shape": shape, "index_location": "start" if "start" in kind else "end"}
    ahead = [1.0] if channels else []
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    multiscale: dict[str, Any] = {
        "axes": ([{"name": "c", "type": "channel"}] if channels else []) + axes, "datasets": []
    }  # fmt: skip
    for number, (voxels, size, centre) in enumerate(_levels(data, offset, resolution, halved)):
        array = group.create_array(f"s{number}", shape=voxels.T.shape, dtype=data.dtype, fill_value=0, **options)
        array[...] = voxels.T
        transforms = [
            {"type": "scale", "scale": [*ahead, *map(float, reversed(size))]},
            {"type": "translation", "translation": [*(0.0 for _ in ahead), *reversed(centre)]},
        ]
        multiscale["datasets"].append({"path": f"s{number}", "coordinateTransformations": transforms})
    if kind.startswith("zarr2"):
        group.attrs["multiscales"] = [multiscale | {"version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    return f"{kind[:5]}://file://{folder}"


Level = tuple[NDArray[Any], Sequence[float], Sequence[float]]


def _levels(
    data: NDArray[Any], offset: Sequence[int], resolution: Sequence[float], halved: NDArray[Any] | None
) -> list[Level]:
    """Return the voxels of each level, their size, and the centre of the first one."""
    corner = [at * size for at, size in zip(offset, resolution, strict=True)]
    sizes = [resolution, [n * by for n, by in zip(resolution, (2, 2, 1), strict=True)]]
    levels = [data] if halved is None else [data, halved]
    return [
        (voxels, size, [at + n / 2 for at, n in zip(corner, size, strict=True)])
        for voxels, size in zip(levels, sizes, strict=False)
    ]


def _write_n5(folder: Path, levels: Sequence[Level]) -> str:
    """Write datasets as N5 does, with COSEM's metadata."""
    for number, (data, size, centre) in enumerate(levels):
        name = f"s{number}"
        spec = {
            "driver": "n5", "kvstore": {"driver": "file", "path": f"{folder}/{name}/"}, "create": True,
            "delete_existing": True,
            "metadata": {
                "dimensions": data.shape, "blockSize": CHUNK, "dataType": data.dtype.name,
                "compression": {"type": "gzip", "level": 6},
            },
        }  # fmt: skip
        tensorstore.open(spec).result().write(data).result()
        attributes = json.loads((folder / name / "attributes.json").read_text())
        attributes["transform"] = {
            "axes": ["z", "y", "x"], "units": ["nm"] * 3, "scale": [*reversed(size)], "translate": [*reversed(centre)]
        }  # fmt: skip
        (folder / name / "attributes.json").write_text(json.dumps(attributes))
    (folder / "attributes.json").write_text(json.dumps({"n5": "2.0.0"}))
    return f"n5://file://{folder}"


def chunk_file(kind: str, folder: Path) -> Path:
    """Return the largest file with voxels: a chunk or a shard."""
    names = ("info", "provenance", "zarr.json", ".zarray", ".zgroup", ".zattrs", "attributes.json")
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in names]
    assert files, f"{kind} wrote no chunks"
    return max(sorted(files), key=lambda file: file.stat().st_size)
