"""Patches in PyTorch's DataLoader: each once an epoch, whatever the number of workers and processes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from support.volumes import coordinate_values, coordinate_volume, write_volume

from imagery_dask import ImageryClient
from imagery_dask.sampling import Patches, Sampler

torch = pytest.importorskip("torch", minversion="2.3")  # earlier versions have no uint64


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Patches:
    folder = tmp_path_factory.mktemp("volumes")
    write_volume(folder / "seg", coordinate_volume((64, 48, 16)), layer_type="segmentation")
    return Sampler(ImageryClient(segmentation_source=str(folder / "seg")), (8, 8, 4)).random(11, seed=1)


def loaded(dataset: Any, workers: int, **options: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about forks and the number of cores
        return list(torch.utils.data.DataLoader(dataset, num_workers=workers, **options))


@pytest.mark.parametrize("workers", [0, 3])
def test_each_patch_comes_once_with_its_voxels(patches: Patches, workers: int) -> None:
    batches = loaded(patches.torch_dataset(shuffle=7), workers, batch_size=2)
    numbers = [int(number) for batch in batches for number in batch["number"]]
    assert sorted(numbers) == list(range(11))
    for batch in batches:
        assert batch["segmentation"].dtype == torch.uint64
        for number, voxels in zip(batch["number"], batch["segmentation"], strict=True):
            low, high = patches.bounds[int(number)]
            expected = coordinate_values(*np.ix_(*(np.arange(a, b) for a, b in zip(low, high, strict=True))))
            np.testing.assert_array_equal(voxels.numpy(), expected)


def test_processes_and_workers_share_the_patches(patches: Patches) -> None:
    seen = []
    for rank in range(2):
        dataset = patches.torch_dataset(shuffle=1, rank=rank, world_size=2, transform=lambda patch: patch["number"])
        seen += loaded(dataset, 2, batch_size=None)
    assert sorted(map(int, seen)) == list(range(11))


def test_epochs_have_orders_of_their_own(patches: Patches) -> None:
    dataset = patches.torch_dataset(shuffle=1, transform=lambda patch: patch["number"])
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append([int(n) for n in loaded(dataset, 0, batch_size=None)])
    assert orders[0] == orders[2] != orders[1]
    in_order = loaded(patches.torch_dataset(transform=lambda patch: patch["number"]), 0, batch_size=None)
    assert [int(n) for n in in_order] == list(range(11))


def test_a_rank_beyond_the_processes_is_refused(patches: Patches) -> None:
    with pytest.raises(ValueError, match="rank must be a whole number from 0 to 1"):
        patches.torch_dataset(rank=2, world_size=2)
