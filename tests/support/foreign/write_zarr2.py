"""Stores of zarr-python 2: groups of v2, and N5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from own_reading import OwnReadings, ids, run

SHAPE = (19, 45, 37)  # z, y, x
CHUNKS = (7, 15, 13)
CODECS = {
    "raw": None, "gzip": numcodecs.GZip(2), "zlib": numcodecs.Zlib(2), "bz2": numcodecs.BZ2(1),
    "lz4": numcodecs.LZ4(), "zstd": numcodecs.Zstd(2), "xz": numcodecs.LZMA(preset=1),
    "lzma": numcodecs.LZMA(format=2, preset=1), "blosc-zstd": numcodecs.Blosc("zstd"),
    "blosc-lz4": numcodecs.Blosc("lz4", shuffle=numcodecs.Blosc.BITSHUFFLE),
}  # fmt: skip
N5_DTYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8")
FILTERS: dict[str, tuple[str, list[Any]]] = {
    "delta": ("<u8", [numcodecs.Delta("<u8")]),
    "delta-narrow": ("<i4", [numcodecs.Delta("<i4", astype="<i2")]),
    "delta-shuffle": ("<u8", [numcodecs.Delta("<u8"), numcodecs.Shuffle(8)]),
    "shuffle": ("<u8", [numcodecs.Shuffle(8)]),
    "fixedscaleoffset": ("<f4", [numcodecs.FixedScaleOffset(100, 10, "<f4", "<u2")]),
    "astype": ("<u8", [numcodecs.AsType("<u4", "<u8")]),
    "packbits": ("|b1", [numcodecs.PackBits()]),
    "quantize": ("<f8", [numcodecs.Quantize(2, "<f8")]),
    "bitround": ("<f4", [numcodecs.BitRound(8)]),
}
# Of 64-bit integers, which numcodecs computes in floats.
IDS_IN_FLOATS = {
    "fixedscaleoffset": [numcodecs.FixedScaleOffset(2**60, 1, "<u8", "<u4")],
    "astype": [numcodecs.AsType("<f8", "<u8")],
}


def write(folder: Path, readings: OwnReadings) -> None:
    """Write arrays of v2 and N5, a multiscale group of each, and arrays of ids that were stored as floats."""
    for number, (name, codec) in enumerate(CODECS.items()):
        for kind in ("v2", "n5", "n5fs"):
            store: Any = zarr.DirectoryStore(folder / f"{kind}-{name}")
            if kind != "v2":
                of_n5 = zarr.N5Store if kind == "n5" else zarr.N5FSStore
                store = of_n5(str(folder / f"{kind}-{name}"))
            dtype = "<u8" if kind == "n5" else f"<{N5_DTYPES[number % len(N5_DTYPES)]}"
            _array(readings, folder / f"{kind}-{name}", store, dtype, compressor=codec)
    for separator in "./":
        for order in "CF":
            path = folder / f"order-{ord(separator)}-{order}"
            store = zarr.DirectoryStore(path, dimension_separator=separator)
            _array(readings, path, store, ">u8", order=order, fill_value=7)
    for name, (dtype, filters) in FILTERS.items():
        path = folder / f"filter-{name}"
        _array(readings, path, zarr.DirectoryStore(path), dtype, filters=filters, order="F")
    for name, filters in IDS_IN_FLOATS.items():
        zarr.open(
            str(folder / f"floats-{name}"), "w", shape=SHAPE, chunks=CHUNKS, dtype="<u8", filters=filters
        )[...] = ids(SHAPE, np.uint64)  # fmt: skip
    _multiscale(readings, folder / "levels.zarr")
    _n5_levels(readings, folder / "levels.n5")


def _array(readings: OwnReadings, path: Path, store: Any, dtype: str, **options: Any) -> None:
    voxels = _voxels(np.dtype(dtype))
    array = zarr.create(SHAPE, chunks=CHUNKS, dtype=dtype, store=store, overwrite=True, **options)
    array[7:] = voxels[7:]  # so that chunks are not stored
    again = zarr.open(store, mode="r")[...]
    if "filters" not in options:
        np.testing.assert_array_equal(again[7:], voxels[7:])
    readings.keep(path.name, path, again, "zyx")


def _voxels(dtype: np.dtype[Any]) -> Any:
    if dtype.itemsize == 8 and dtype.kind in "iu":
        return ids(SHAPE, dtype.newbyteorder("="))
    values = np.random.default_rng(3).integers(0, 2 if dtype.kind == "b" else 120, SHAPE)
    return values.astype(dtype)


def _multiscale(readings: OwnReadings, path: Path) -> None:
    group = zarr.open_group(zarr.NestedDirectoryStore(path), "w")
    voxels = ids((20, 44, 36), np.uint64)
    datasets = []
    for level, step in enumerate((1, 2)):
        part = voxels[:, ::step, ::step]
        group.create_dataset(f"s{level}", data=part, chunks=CHUNKS)
        scale = [0.03, 0.004 * step, 0.004 * step]
        first = [0.03 * 10, 0.004 * 20, 0.004 * 40]  # at every level: the corner of the volume
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": first}]
        datasets.append({"path": f"s{level}", "coordinateTransformations": transforms})
        start = (40 // step, 20 // step, 10)
        told: dict[str, Any] = {"resolution_nm": (4 * step, 4 * step, 30), "start": start, "kind": "segmentation"}
        readings.keep(f"levels {level}", path, group[f"s{level}"][...], "zyx", mip=level, **told)
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


def _n5_levels(readings: OwnReadings, path: Path) -> None:
    group = zarr.open_group(zarr.N5Store(str(path)), "w")
    group.attrs["pixelResolution"] = {"dimensions": [0.004, 0.004, 0.03], "unit": "um"}
    voxels = ids((20, 44, 36), np.uint64)
    for level, step in enumerate((1, 2)):
        array = group.create_dataset(f"s{level}", data=voxels[:, ::step, ::step], chunks=CHUNKS)
        array.attrs["downsamplingFactors"] = [step, step, 1]
        told: dict[str, Any] = {"resolution_nm": (4 * step, 4 * step, 30), "kind": "segmentation"}
        readings.keep(f"levels {level}", path, array[...], "zyx", mip=level, **told)


def read(store: Path, readings: OwnReadings) -> None:
    """Read the levels of a group of v2."""
    group = zarr.open_group(str(store), "r")
    for level, dataset in enumerate(group.attrs["multiscales"][0]["datasets"]):
        array = group[dataset["path"]]
        axes = "".join(axis["name"] for axis in group.attrs["multiscales"][0]["axes"])
        readings.keep(f"level {level}", store, array[...], axes, mip=level)


if __name__ == "__main__":
    run(write, read)
