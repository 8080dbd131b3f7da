"""Random crops of a version that is opened as zarr, read by processes as in training; by PyTorch if it is installed."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.http_server import FileServer

from imagery_dask import open_versions
from imagery_dask.testing.cave import World
from imagery_dask.versions.zarr_view import VersionZarr

# PyTorch is no dependency of the tests: its packages for Linux are those for CUDA, gigabytes of them.
pytestmark = pytest.mark.long

Moments = dict[str, tuple[float, int | None]]

CROP = (9, 20, 25)  # z, y, x
CROPS = 24


@dataclass
class Crops:
    """Crops by number, from an array that each process opens: a dataset as PyTorch wants it."""

    view: VersionZarr

    @cached_property
    def array(self) -> Any:
        return zarr.open_array(self.view, path="0", mode="r")

    def __len__(self) -> int:
        return CROPS

    def start(self, number: int) -> tuple[int, ...]:
        random = np.random.default_rng(number)
        return tuple(int(random.integers(size - own + 1)) for size, own in zip(self.array.shape, CROP, strict=True))

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        begin = self.start(number)
        return number, np.asarray(self.array[tuple(slice(at, at + own) for at, own in zip(begin, CROP, strict=True))])


@pytest.fixture(params=["disk", "http"])
def crops(request: pytest.FixtureRequest, out: Path, http_server_factory: Callable[[Path], FileServer]) -> Crops:
    url = out if request.param == "disk" else f"{http_server_factory(out.parent).url}/{out.name}"
    crops = Crops(open_versions(url).zarr_store(3))
    crops[0]  # opened here, before processes start
    return crops


def assert_crops(crops: Crops, found: dict[int, np.ndarray], out: Path, world: World, moments: Moments) -> None:
    assert sorted(found) == list(range(CROPS))
    version = open_versions(out).at(3)["segmentation"]
    for number, voxels in found.items():
        begin = crops.start(number)
        box = tuple(slice(at, at + own) for at, own in zip(begin[::-1], CROP[::-1], strict=True))
        assert voxels.dtype == np.uint64
        np.testing.assert_array_equal(voxels.T, version[box])
    np.testing.assert_array_equal(version, world.roots_volume(moments["3"][0]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_crops_of_a_version(
    crops: Crops, method: str, out: Path, world: World, moments: Moments
) -> None:
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks of a process with threads
        with ProcessPoolExecutor(2, mp_context=context) as processes:
            found = dict(processes.map(crops.__getitem__, range(CROPS), chunksize=3, timeout=120))
    assert_crops(crops, found, out, world, moments)


@pytest.mark.parametrize(("method", "workers"), [(None, 0), ("fork", 2), ("spawn", 2)])
def test_pytorch_reads_crops_of_a_version(
    crops: Crops, method: str | None, workers: int, out: Path, world: World, moments: Moments
) -> None:
    torch = pytest.importorskip("torch", minversion="2.3")  # earlier versions have no uint64

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks, and of the number of cores
        loader = torch.utils.data.DataLoader(
            crops, batch_size=5, shuffle=True, num_workers=workers, multiprocessing_context=method
        )
        batches = list(loader)
    found = {int(n): one.numpy() for numbers, voxels in batches for n, one in zip(numbers, voxels, strict=True)}
    assert_crops(crops, found, out, world, moments)
