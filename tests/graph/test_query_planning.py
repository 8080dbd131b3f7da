"""Cutouts read the same storage chunks and give the same voxels with dask's graphs and with its array expressions.

dask chooses the mode when it is imported (``array.query-planning``). Therefore this file is also a script that runs all
cases in one process for each mode; the tests compare the results with the stored voxels.
"""

from __future__ import annotations

import json
import math
import pickle
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume import CloudVolume
from support.programs import python
from support.volumes import write_volume

SHAPE = (128, 96, 64)
START = (-64, 32, 7)
CHUNK = (32, 32, 16)
BOUNDS = [list(START), [a + n for a, n in zip(START, SHAPE, strict=True)]]
FIRST_ID = 864691135000000001
MODES = {"graphs": "False", "expressions": "True"}
SLICES: dict[str, Any] = {
    "one plane": np.s_[:, :, 3],
    "a box across chunks": np.s_[30:34, 10:20, 15:17],
    "steps, also backwards": np.s_[::7, 90:2:-5, ::-1],
    "one voxel": np.s_[-1, 2, 40],
    "a new axis": np.s_[5:6, None, 40],
    "nothing": np.s_[7:7],
    "integers of numpy": np.s_[np.int64(-2), ..., np.uint8(1)],
}


def ids() -> np.ndarray:
    x, y, z = np.ix_(*(np.arange(n) for n in SHAPE))
    return np.asfortranarray(FIRST_ID + x + (y << 12) + (z << 24)).astype(np.uint64)


def chunks_of(index: Any) -> set[str]:
    """Return the file names of the storage chunks that a selection crosses."""
    cells = [axis[index].ravel() // size for axis, size in zip(np.indices(SHAPE), CHUNK, strict=True)]
    return {key_of(*cell) for cell in set(zip(*(axis.tolist() for axis in cells), strict=True))}


def key_of(*cell: int) -> str:
    starts = [a + i * n for a, i, n in zip(START, cell, CHUNK, strict=True)]
    return "8_8_40/" + "_".join(f"{a}-{a + n}" for a, n in zip(starts, CHUNK, strict=True))


# -------------------------------------------------------------------------------------------------- the script


def run_cases(source: str, folder: Path) -> dict[str, Any]:
    """Run all cases in the mode of this process; each result includes its reads."""
    import dask
    import dask.array as da
    from distributed import Client, LocalCluster

    from imagery_dask import ImageryClient, to_zarr
    from imagery_dask.arrays.origins import source_of
    from imagery_dask.config import config
    from imagery_dask.export.core.block_reads import ComputeBlock
    from imagery_dask.sources.requests.transport import Transport
    from imagery_dask.sources.volumes.chunk_cache import set_cache_bytes

    set_cache_bytes(0)  # the reads and the memory are those of each computation
    reads: Counter[str] = Counter()
    lock, get = threading.Lock(), Transport.get

    def counting(self: Transport, request: Any) -> Any:
        with lock:
            reads[request.key] += request.key != "info"  # an export reads it again when it ends
        return get(self, request)

    Transport.get = counting  # type: ignore[method-assign]
    results: dict[str, Any] = {"expressions": da.array_expr_enabled()}

    def record(name: str, compute: Callable[[], Any]) -> None:
        reads.clear()
        voxels = compute()
        results[name] = {"voxels": voxels, "reads": dict(+reads)}

    client = ImageryClient(image_source=source, segmentation_source=source)
    with config.set({"lazy.block_bytes": 2**18}):
        volume = client.segmentation_volume()
        cutout = client.segmentation_cutout(BOUNDS, mip=0, convert_to_int64=False)
        results["blocks"] = math.prod(cutout.numblocks)
        record("whole, threads", cutout.compute)
        record("whole, synchronous", lambda: cutout.compute(scheduler="synchronous"))
        with (
            LocalCluster(processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as local,
            Client(local, set_as_default=False) as cluster,
        ):
            record("whole, cluster", lambda: cutout.compute(scheduler=cluster))
        for name, index in SLICES.items():
            record(name, lambda index=index: np.asarray(volume.data[index].compute()))  # type: ignore[misc]
        record("xarray", lambda: volume.isel(x=slice(3, 9), z=20).compute().values)
        record("a function of voxels", lambda: (volume.data[:, :, 3] > FIRST_ID + 5).compute())
        record("a chain", lambda: np.asarray(volume.data[30:100, :, 3][4:30:5, 90:2:-5].compute()))
        plane = volume.data[:, :, 3]
        record("persisted", lambda: np.asarray(dask.persist(plane, plane > 0)[0].compute()))
        results["types"] = {type(array).__mro__.index(da.Array) for array in (cutout, volume.data, plane, plane > 0)}
        dataset = volume.isel(z=slice(3, 5)).to_dataset(name="ids")
        record("a dataset", lambda: dataset.assign(mask=dataset.ids > FIRST_ID + 5).compute().ids.values)
        record("a mask", lambda: np.asarray(client.split_segmentation_cutout(BOUNDS)[FIRST_ID][:, :, 0].compute()))
        record("ids", lambda: len(client.split_segmentation_cutout(BOUNDS)))
        finer = client.segmentation_cutout(np.multiply(BOUNDS, (2, 2, 1)), resolution=(4, 4, 40))
        record("resized", lambda: np.asarray(finer[:, :, 3].compute()))
        tracemalloc.start()
        cutout.compute(scheduler="synchronous")
        results["memory"] = tracemalloc.get_traced_memory()[1] / (cutout.size * cutout.dtype.itemsize)
        tracemalloc.stop()

        results["recognised"] = source_of(cutout) is not None
        record("export of a sum", lambda: _exported(to_zarr, cutout[:, :, 3:20] + np.uint64(1), folder / "sum.zarr"))
        ComputeBlock.__call__ = _no_graph  # type: ignore[method-assign]
        record("export", lambda: _exported(to_zarr, cutout, folder / "out.zarr"))
        record("export of xarray", lambda: _exported(to_zarr, volume, folder / "volume.zarr"))

    whole = ImageryClient(image_source=_huge(folder / "huge")).image_volume
    whole()
    started = time.process_time()
    array = whole().data
    results["opening_s"], results["huge_blocks"] = time.process_time() - started, math.prod(array.numblocks)
    results["huge_bytes"] = len(pickle.dumps(array))
    record("huge", lambda: array[32_000:32_100, 500, 32_000].compute().shape)
    return results


def _exported(to_zarr: Any, array: Any, url: Path) -> Any:
    import zarr

    assert to_zarr(array, url, resolution_nm=(8, 8, 40), progress=False).ok
    return np.asarray(zarr.open(url / "0")).T


def _no_graph(self: Any) -> Any:
    raise AssertionError("a cutout is exported without a graph")


def _huge(folder: Path) -> str:
    """Write only the info of a volume."""
    scale = {
        "key": "8_8_40", "size": [128_000] * 3, "resolution": [8, 8, 40], "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[64] * 3], "encoding": "raw",
    }  # fmt: skip
    folder.mkdir()
    info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale]}
    (folder / "info").write_text(json.dumps(info))
    return f"precomputed://file://{folder}"


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("planning") / "seg"
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", [8, 8, 40], list(START), list(SHAPE), chunk_size=list(CHUNK)
    )
    volume = CloudVolume(f"file://{folder}", info=info, progress=False)
    volume.commit_info()
    volume.commit_provenance()
    volume[volume.bounds.to_slices()] = ids()
    return f"precomputed://file://{folder}"


@pytest.fixture(scope="module", params=[pytest.param("graphs", marks=pytest.mark.long), "expressions"])
def results(request: pytest.FixtureRequest, source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of a process in one mode."""
    folder = tmp_path_factory.mktemp("mode")
    done = python(__file__, source, folder, env={"DASK_ARRAY__QUERY_PLANNING": MODES[request.param]})
    assert done.code == 0, done.error
    loaded: dict[str, Any] = pickle.loads((folder / "results").read_bytes())
    assert loaded["expressions"] == (request.param == "expressions")
    return loaded


ALL = np.s_[:, :, :]


def check(result: dict[str, Any], voxels: Any, index: Any) -> None:
    """Assert that a result equals stored voxels, and that each chunk of the selection was read once and no other."""
    np.testing.assert_array_equal(result["voxels"], voxels)
    assert result["reads"] == dict.fromkeys(chunks_of(index), 1)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "cluster"])
def test_a_whole_cutout_is_read_once_into_one_array(results: dict[str, Any], scheduler: str) -> None:
    assert results["blocks"] > 8
    result = results[f"whole, {scheduler}"]
    check(result, ids(), ALL)
    assert result["voxels"].dtype == np.uint64
    assert result["voxels"].flags.f_contiguous
    assert results["memory"] < 1.5


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_reads_the_chunks_that_it_crosses(results: dict[str, Any], name: str) -> None:
    check(results[name], ids()[SLICES[name]], SLICES[name])


def test_slices_of_xarray_and_functions_of_slices_are_pushed_into_the_reader(results: dict[str, Any]) -> None:
    check(results["xarray"], ids()[3:9, :, 20], np.s_[3:9, :, 20])
    check(results["a function of voxels"], ids()[:, :, 3] > FIRST_ID + 5, np.s_[:, :, 3])
    check(results["a mask"], ids()[:, :, 0] == FIRST_ID, np.s_[:, :, 0])
    check(results["resized"], ids()[:, :, 3].repeat(2, axis=0).repeat(2, axis=1).astype(np.int64), np.s_[:, :, 3])
    check(results["ids"], math.prod(SHAPE), ALL)


WITHOUT_PUSHDOWN = """
import sys
sys.modules["imagery_dask.arrays.expressions"] = None  # as if dask had other names
import json
import numpy as np
from imagery_dask import ImageryClient

array = ImageryClient(segmentation_source=sys.argv[1]).segmentation_cutout(json.loads(sys.argv[2]))
slices = {"plane": array[:, :, 3], "box": array[30:34, 10:20, 15:17], "steps": array[::7, 90:2:-5, ::-1]}
np.savez(sys.argv[3], **{name: np.asarray(part.compute()) for name, part in slices.items()})
"""


@pytest.mark.long
def test_slices_are_right_without_private_names_of_dask(source: str, tmp_path: Path) -> None:
    path = tmp_path / "slices.npz"
    done = python("-c", WITHOUT_PUSHDOWN, source, json.dumps(BOUNDS), path, env={"DASK_ARRAY__QUERY_PLANNING": "True"})
    assert done.code == 0, done.error
    slices = np.load(path)
    np.testing.assert_array_equal(slices["plane"], ids()[:, :, 3])
    np.testing.assert_array_equal(slices["box"], ids()[30:34, 10:20, 15:17])
    np.testing.assert_array_equal(slices["steps"], ids()[::7, 90:2:-5, ::-1])


def test_arrays_are_of_the_type_of_all_that_is_made_of_them(results: dict[str, Any]) -> None:
    assert results["types"] == {0}
    np.testing.assert_array_equal(results["a dataset"]["voxels"], ids()[:, :, 3:5])
    # In a graph, dask reads blocks whole if a result is also the input of another; no block has other planes.
    planes = np.s_[:, :, 3:5] if results["expressions"] else np.s_[:, :, :32]
    assert set(results["a dataset"]["reads"]) == chunks_of(planes)


def test_chains_of_slices_and_persisted_slices_are_right(results: dict[str, Any]) -> None:
    chain = ids()[30:100, :, 3][4:30:5, 90:2:-5]
    np.testing.assert_array_equal(results["a chain"]["voxels"], chain)
    np.testing.assert_array_equal(results["persisted"]["voxels"], ids()[:, :, 3])


def test_exports_recognise_cutouts(results: dict[str, Any]) -> None:
    assert results["recognised"]
    check(results["export"], ids(), ALL)
    check(results["export of xarray"], ids(), ALL)


def test_arrays_made_of_cutouts_are_exported(results: dict[str, Any]) -> None:
    check(results["export of a sum"], ids()[:, :, 3:20] + np.uint64(1), np.s_[:, :, 3:20])


def test_a_layer_of_a_hundred_million_blocks_is_symbolic(results: dict[str, Any]) -> None:
    assert results["huge_blocks"] > 10**7
    assert results["opening_s"] < 0.2
    assert results["huge_bytes"] < 100_000
    assert results["huge"]["voxels"] == (100,)
    assert len(results["huge"]["reads"]) == 2


EAGER = """
import sys
from imagery_dask import ImageryClient
client = ImageryClient(segmentation_source=sys.argv[1], lazy=False)
voxels = client.segmentation_cutout([(0, 0, 0), (9, 8, 7)], mip=0, convert_to_int64=False)
print(type(voxels).__name__, voxels.dtype, voxels.shape, int(voxels.sum()))
"""


def test_eager_clients_return_arrays_with_expressions(tmp_path: Path) -> None:
    voxels = np.asfortranarray(np.arange(504, dtype=np.uint64).reshape(9, 8, 7))
    path = write_volume(tmp_path / "ids", voxels, layer_type="segmentation")
    result = python("-c", EAGER, path, env={"DASK_ARRAY__QUERY_PLANNING": "True"})
    assert result.out.strip() == f"ndarray uint64 (9, 8, 7) {voxels.sum()}", result.error


if __name__ == "__main__":
    output = Path(sys.argv[2])
    (output / "results").write_bytes(pickle.dumps(run_cases(sys.argv[1], output)))
