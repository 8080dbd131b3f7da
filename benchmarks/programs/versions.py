"""Versions of a store, from its tables; and the same voxels from a server, or where root ids are stored."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cave_server import AFTER, BEFORE, BETWEEN
from benchmarks.child import timed
from imagery_dask import ImageryClient, add_version, open_versions, remove_version, to_zarr
from imagery_dask.sources import collect_counts

XYZ = list[int]
DEEP = 37  # where the plane is, of which neither graph chunks nor stored chunks begin
KEPT = 8  # planes that are read after the first


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _plane(start: XYZ, stop: XYZ) -> list[XYZ]:
    return [[*start[:2], start[2] + DEEP], [*stop[:2], start[2] + DEEP + 1]]


def plane(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str) -> Any:
    """Read a plane of a version."""
    # With the sign that root ids of a client have by default.
    store = open_versions(f"{folder}/store")
    data = store.at(timestamp=_at(BEFORE), bounds=_plane(start, stop), convert_to_int64=True)
    return data.segmentation.data.compute()


def stored_plane(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str) -> Any:
    """Read the plane from a copy of the version."""
    client = ImageryClient(segmentation_source=f"zarr3://file://{folder}/copy.zarr", imagery=False)
    return client.segmentation_cutout(_plane(start, stop)).compute()[..., None]


def kept_planes(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str) -> Any:
    """Read a plane of a version again, and its neighbours, from kept chunks."""
    data = open_versions(f"{folder}/store").at(timestamp=_at(BEFORE), bounds=[start, stop], convert_to_int64=True)
    return _kept(data.segmentation.data, stop[0] - start[0])


def stored_kept_planes(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str) -> Any:
    """Read the planes from a copy of the version."""
    client = ImageryClient(segmentation_source=f"zarr3://file://{folder}/copy.zarr", imagery=False)
    return _kept(client.segmentation_cutout([start, stop]), stop[0] - start[0])


def _kept(ids: Any, side: int) -> dict[str, Any]:
    planes = ids[: side // 2]  # whose chunks are half of those that a process keeps
    planes[:, :, DEEP].compute()
    # Both sides of the first plane, in the same chunks.
    times = timed(lambda: [planes[:, :, DEEP - at].compute() for at in range(-KEPT // 2, KEPT // 2)])
    return times | {"value": planes[:, :, DEEP + 1].compute()}


def live_plane(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str) -> Any:
    """Look up the plane at the server."""
    client = ImageryClient(segmentation_source=source, imagery=False, auth_token=token)
    return client.segmentation_cutout(_plane(start, stop), timestamp=BEFORE).compute()[..., None]


def added(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str) -> dict[str, Any]:
    """Add the version after the edits to a store that has the one before."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        store = Path(temporary, "store")
        shutil.copytree(Path(folder, "store"), store)
        remove_version(store, timestamp=AFTER)
        facts = json.loads((store / "versions.json").read_text())
        facts["graph"]["server"] = source.removeprefix("graphene://").partition("/segmentation")[0]
        (store / "versions.json").write_text(json.dumps(facts))
        ImageryClient(segmentation_source=source, imagery=False, auth_token=token)  # which takes the token
        times = timed(lambda: add_version(store, timestamp=AFTER, progress=False))
        data = open_versions(store).at(timestamp=_at(AFTER), bounds=_plane(start, stop))
        size = max((store / "roots").glob("*.parquet")).stat().st_size
        copy = sum(file.stat().st_size for file in Path(folder, "copy.zarr").rglob("*") if file.is_file())
        counts = {"bytes of the table": size, "bytes of a copy": copy}
        return times | {"value": data.segmentation.data.compute(), "counts": counts}


def exported(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str) -> dict[str, Any]:
    """Export the segmentation after the edits from the server."""
    client = ImageryClient(segmentation_source=source, imagery=False, auth_token=token, timestamp=AFTER)
    data = client.dataset([start, stop])
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        times = timed(lambda: to_zarr(data, f"{temporary}/out.zarr", levels=1, progress=False))
        return times | {"value": client.dataset(_plane(start, stop)).segmentation.data.compute()}


def followed(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str, out: str) -> dict[str, Any]:
    """Let a copy of the version before an object was split become that after it."""
    for item in Path(folder).glob("copy.zarr*"):  # with its records
        target = out + item.name.removeprefix("copy.zarr")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(item, target)
    return _materialized(folder, out)


def anew(source: str, folder: str, start: XYZ, stop: XYZ, block: XYZ, token: str, out: str) -> dict[str, Any]:
    """Write the version after the object was split."""
    return _materialized(folder, out)


def _materialized(folder: str, out: str) -> dict[str, Any]:
    reports: list[Any] = []
    store = open_versions(f"{folder}/store")
    times = timed(lambda: reports.append(store.materialize(_at(BETWEEN), out, progress=False)))
    return times | {"figures": {"blocks written": reports[0].done - reports[0].before}}


def block_of_many(source: str, folder: str, start: XYZ, stop: XYZ, version: int) -> dict[str, Any]:
    """Open a store, and read a block of a version, and its neighbour."""
    times = [time.perf_counter()]
    store = open_versions(f"{folder}/store")
    times.append(time.perf_counter())
    with collect_counts() as counts:
        voxels = store.at(version=version, bounds=[start, stop]).segmentation.data.compute()
        times.append(time.perf_counter())
        beside = [[*start[:2], stop[2]], [*stop[:2], 2 * stop[2] - start[2]]]
        store.at(version=version, bounds=beside).segmentation.data.compute()
        times.append(time.perf_counter())
    names = ("ms to open", "ms of a block", "ms of its neighbour")
    took = zip(names, times[:-1], times[1:], strict=True)
    return {
        "value": voxels.astype("int64"),
        "counts": {"lookups": counts.root_requests},
        "figures": {name: 1e3 * (after - before) for name, before, after in took},
    }


def stored_block(source: str, folder: str, start: XYZ, stop: XYZ, version: int) -> Any:
    """Read the block from a volume of root ids."""
    client = ImageryClient(segmentation_source=f"zarr3://file://{folder}/roots.zarr", imagery=False)
    return client.segmentation_cutout([start, stop]).compute()
