"""Exports with compact ids: the table gives every id back, whatever the blocks, interruptions and parts."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from cloudvolume import CloudVolume
from support.programs import python
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

from imagery_dask import ImageryClient, root_ids_of, to_precomputed, to_zarr, verify_export
from imagery_dask.cluster import connect, resources_of
from imagery_dask.errors import BlockFailedError
from imagery_dask.export.core.plans import ExportPlan
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.execution.execute import execute
from imagery_dask.export.multiscale import compact_ids
from imagery_dask.export.registry import export_of
from imagery_dask.export.reports.status import status_of
from imagery_dask.export.zarr.to_zarr import ZarrExport
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.records.parts import Part

SHAPE, CHUNKS = (96, 64, 32), (16, 16, 16)
LABELS = "labels/segmentation"


def ids() -> Any:
    return random_labels(SHAPE, n=50, block=3, above_2_63=True)


@pytest.fixture
def data(tmp_path: Path) -> xr.Dataset:
    write_volume(tmp_path / "em", coordinate_volume(SHAPE, dtype=np.uint8))
    write_volume(tmp_path / "seg", ids(), layer_type="segmentation", compress=False)
    client = ImageryClient(image_source=str(tmp_path / "em"), segmentation_source=str(tmp_path / "seg"))
    return client.dataset([(0, 0, 0), SHAPE])


def written(data: Any, out: Path, **options: Any) -> Any:
    return to_zarr(data, out, **{"chunks": CHUNKS, "block_mib": 0.1, "relabel": "uint32", "progress": False} | options)


def level(out: Path, index: int = 0, path: str = LABELS) -> Any:
    """Return a level of a zarr store as x, y, z."""
    return zarr.open_array(str(out), path=f"{path}/{index}".lstrip("/"), mode="r")[:].T


def test_all_levels_are_those_of_an_export_of_ids(data: xr.Dataset, tmp_path: Path) -> None:
    written(data, tmp_path / "compact.zarr", levels=3)
    written(data, tmp_path / "ids.zarr", levels=3, relabel=None)
    table = root_ids_of(tmp_path / "compact.zarr")
    np.testing.assert_array_equal(table, np.unique(np.append(ids(), np.uint64(0))))
    for index in range(3):
        compact = level(tmp_path / "compact.zarr", index)
        assert compact.dtype == np.uint32
        np.testing.assert_array_equal(
            root_ids_of(tmp_path / "compact.zarr", compact), level(tmp_path / "ids.zarr", index)
        )
    np.testing.assert_array_equal(level(tmp_path / "compact.zarr", 0, ""), coordinate_volume(SHAPE, dtype=np.uint8))
    assert verify_export(tmp_path / "compact.zarr", sample=None, progress=False).ok


def test_numbers_do_not_depend_on_blocks(data: xr.Dataset, tmp_path: Path) -> None:
    outs = [tmp_path / "small.zarr", tmp_path / "large.zarr"]
    for out, block_mib in zip(outs, (0.05, 4), strict=True):
        written(data, out, block_mib=block_mib)
    np.testing.assert_array_equal(level(outs[0]), level(outs[1]))
    first, second = ((out / LABELS / "root_ids.npy").read_bytes() for out in outs)
    assert first == second


@pytest.mark.parametrize("encoding", ["compressed_segmentation", "raw"])
def test_precomputed_volumes(data: xr.Dataset, tmp_path: Path, encoding: str) -> None:
    out = tmp_path / "out"
    to_precomputed(data, out, encoding={"segmentation": encoding}, levels=2, relabel="uint32", progress=False)
    volume = CloudVolume(f"file://{out}/segmentation", progress=False)
    assert volume.dtype == "uint32"
    np.testing.assert_array_equal(root_ids_of(out, volume[:][..., 0]), ids())
    np.testing.assert_array_equal(root_ids_of(out / "segmentation"), root_ids_of(f"precomputed://{out}"))
    assert verify_export(out, sample=None, progress=False).ok
    to_precomputed(data, out, levels=1, relabel="uint32", overwrite=True, progress=False)
    assert verify_export(out, sample=None, progress=False).ok


def test_levels_of_the_source(tmp_path: Path) -> None:
    write_volume(tmp_path / "seg", ids(), layer_type="segmentation", mips=2)
    client = ImageryClient(segmentation_source=str(tmp_path / "seg"))
    data = client.dataset([(3, 5, 0), (90, 60, 32)])
    written(data, tmp_path / "out.zarr", levels="source")
    whole = client.segmentation_volume(mip=1)
    coarse = root_ids_of(tmp_path / "out.zarr", level(tmp_path / "out.zarr", 1, ""))
    np.testing.assert_array_equal(coarse, whole.values[1:45, 2:30])


@pytest.mark.parametrize("make", [np.asarray, lambda voxels: da.from_array(voxels, chunks=40) + 0])
@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_arrays_that_are_no_cutouts(tmp_path: Path, make: Callable[[Any], Any], dtype: Any) -> None:
    voxels = random_labels((40, 30, 20), n=9).astype(dtype)
    array = make(voxels).astype(dtype)
    written(array, tmp_path / "out.zarr", levels=2)
    np.testing.assert_array_equal(root_ids_of(tmp_path / "out.zarr", level(tmp_path / "out.zarr", 0, "")), voxels)
    if isinstance(array, np.ndarray):
        np.testing.assert_array_equal(array, random_labels((40, 30, 20), n=9).astype(dtype))


KILLED = """
import os, signal, sys
from imagery_dask import ImageryClient, to_zarr
from imagery_dask.export.multiscale import compact_ids
compact_ids._table = lambda found: os.kill(os.getpid(), signal.SIGKILL)
client = ImageryClient(image_source=sys.argv[1] + "/em", segmentation_source=sys.argv[1] + "/seg")
data = client.dataset([(0, 0, 0), (96, 64, 32)])
to_zarr(data, sys.argv[1] + "/out.zarr", chunks=(16, 16, 16), block_mib=0.1, relabel="uint32", progress=False)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_an_export_that_ends_in_the_first_pass_starts_again(
    data: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    if killed:
        assert python("-c", KILLED, tmp_path).code == -signal.SIGKILL
    else:
        with monkeypatch.context() as patched:
            patched.setattr(compact_ids, "_table", interrupted)
            with pytest.raises(KeyboardInterrupt):
                written(data, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    written(data, tmp_path / "out.zarr")
    np.testing.assert_array_equal(root_ids_of(tmp_path / "out.zarr", level(tmp_path / "out.zarr")), ids())
    assert not list((tmp_path / "out.zarr.receipts").glob("*/ids-*"))


def test_a_resumed_export_keeps_its_numbers(data: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(report: Any) -> None:
        if report.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(data, tmp_path / "out.zarr", progress=killed)
    monkeypatch.setattr(compact_ids, "find_ids", None)  # not called
    report = written(data, tmp_path / "out.zarr")
    assert report.before >= 7
    np.testing.assert_array_equal(root_ids_of(tmp_path / "out.zarr", level(tmp_path / "out.zarr")), ids())
    assert any("root_ids_of" in note for note in report.notes)


def test_a_lost_or_damaged_table_is_noticed_and_restored(data: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    written(data, out)
    table = out / LABELS / "root_ids.npy"
    whole = table.read_bytes()
    table.unlink()
    assert verify_export(out, sample=None, progress=False).metadata == [f"{LABELS}/root_ids.npy"]
    with pytest.raises(FileNotFoundError, match="has no table root_ids.npy"):
        root_ids_of(out)
    written(data, out)
    assert table.read_bytes() == whole
    table.write_bytes(whole[:-8] + bytes(8))
    assert verify_export(out, sample=None, progress=False).metadata == [f"{LABELS}/root_ids.npy"]
    written(data, out, repair=True)
    assert table.read_bytes() == whole
    assert verify_export(out, sample=None, progress=False).ok


def test_parts_share_one_table(data: xr.Dataset, tmp_path: Path) -> None:
    export = ZarrExport(data, tmp_path / "out.zarr", ZarrOptions(chunks=CHUNKS, levels=2, relabel="uint32"))
    with connect() as client:
        plan = export.plan(resources_of(client), 2**17)
    notes = []
    for number in (2, 1):
        export = export_of(ExportPlan.from_json(json.loads(json.dumps(plan.to_json()))))
        report = execute(export, RunOptions(plan=plan, part=Part.read(f"{number}/2"), progress=False))
        notes.append(report.notes[-1])
    assert ["all others" in note for note in notes] == [False, True]
    written(data, tmp_path / "whole.zarr", levels=2)
    for index in range(2):
        np.testing.assert_array_equal(level(tmp_path / "out.zarr", index), level(tmp_path / "whole.zarr", index))
    assert [status.state for status in status_of(str(tmp_path / "out.zarr"))] == ["complete"]


def test_a_plan_samples_blocks_with_ids_of_their_own(data: xr.Dataset, tmp_path: Path) -> None:
    client = ImageryClient(segmentation_source=str(tmp_path / "seg"))
    planned = client.plan_export(
        [(0, 0, 0), SHAPE], tmp_path / "out.zarr", relabel="uint32", chunks=CHUNKS, block_mib=0.1, samples=2
    )
    assert planned.plan.options["relabel"] == "uint32"
    assert not (tmp_path / "out.zarr").exists()


def test_an_id_that_the_first_pass_has_not_found_is_an_error(data: xr.Dataset, tmp_path: Path) -> None:
    def change(report: Any) -> None:
        if report.done == 1:
            write_volume(tmp_path / "seg", ids() + np.uint64(7), layer_type="segmentation", compress=False)

    with pytest.raises(BlockFailedError, match="was not there when the ids were found"):
        written(data["segmentation"], tmp_path / "out.zarr", progress=change)


def test_missing_chunks_are_zeros_in_both_passes(data: xr.Dataset, tmp_path: Path) -> None:
    delete_chunks(f"precomputed://file://{tmp_path}/seg", 0, lambda start: start == (0, 0, 0))
    report = written(data, tmp_path / "out.zarr")
    expected = ids()
    expected[:32, :32, :16] = 0
    np.testing.assert_array_equal(root_ids_of(tmp_path / "out.zarr", level(tmp_path / "out.zarr")), expected)
    assert report.counts.missing == 1


def test_too_many_ids_are_refused(data: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact_ids, "MOST_IDS", 50)
    with pytest.raises(ValueError, match="There are 51 ids, and uint32 has numbers for 50"):
        written(data, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8, 8), np.uint8), r"there is image \(uint8\)"),
        (np.zeros((8, 8, 8), bool), r"there is image \(bool\)"),
        (np.zeros((8, 8, 8), np.float32), r"there is image \(float32\)"),
    ],
)
def test_voxels_that_are_no_ids_are_refused(array: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        written(array, tmp_path / "out.zarr")


def test_negative_ids_and_other_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BlockFailedError, match="Id -3 is negative"):
        written(np.full((8, 8, 8), -3, np.int64), tmp_path / "out.zarr")
    with pytest.raises(ValueError, match="relabel must be 'uint32' or None; got 'uint16'"):
        written(np.zeros((8, 8, 8), np.uint64), tmp_path / "out.zarr", relabel="uint16")


def test_ids_are_given_back_in_the_form_of_the_numbers(data: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    written(data, out)
    table, numbers = root_ids_of(out), level(out)
    lazy = root_ids_of(out, da.from_array(numbers, chunks=20))
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), ids())
    labelled = root_ids_of(out, xr.DataArray(numbers, dims=("x", "y", "z"), attrs={"a": 1}))
    assert (labelled.dims, labelled.attrs) == (("x", "y", "z"), {"a": 1})
    assert root_ids_of(out, [[0, 1]]).tolist() == [[0, int(table[1])]]
    with pytest.raises(ValueError, match="51 is not a compact id of this export, which has 0 to 50"):
        root_ids_of(out, [51])
    with pytest.raises(TypeError, match="integers; got float64"):
        root_ids_of(out, [1.0])
    shutil.rmtree(f"{out}.receipts")
    np.testing.assert_array_equal(root_ids_of(out), table)
