"""Patches as a dataset of PyTorch; only this module imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from imagery_dask.sampling.patches import Patches
from imagery_dask.validate import whole_number

__all__ = ["TorchPatches"]


class TorchPatches(IterableDataset[Any]):
    """Dataset that yields each patch once an epoch, whatever the number of workers and processes.

    Parameters
    ----------
    patches : Patches
        The patches.
    shuffle : int or None
        Seed of the order; None keeps the order of the manifest.
    transform : callable or None
        Called with each patch; returns what is yielded.
    rank, world_size : int
        This process of distributed training, and the number of processes.

    Notes
    -----
    The order of an epoch is divided among processes and workers: worker w of n takes the patches w, w + n, w + 2 n and
    so on. torch converts ids to ``torch.uint64``, which has few operations: a `transform` can make masks, boundaries
    or small labels of them in numpy.
    """

    def __init__(
        self, patches: Patches, shuffle: int | None, transform: Callable[[Any], Any] | None, rank: int, world_size: int
    ) -> None:
        super().__init__()
        self.patches, self.shuffle, self.transform = patches, shuffle, transform
        self.world_size = whole_number("world_size", world_size)
        self.rank = whole_number("rank", rank, 0, self.world_size - 1)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; call it before each pass over a ``DataLoader`` without persistent workers."""
        self.epoch = whole_number("epoch", epoch, 0)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        order = self.patches.order(None if self.shuffle is None else (self.shuffle, self.epoch))
        for index in order[self.rank * workers + worker :: self.world_size * workers]:
            patch = self.patches[int(index)]
            yield patch if self.transform is None else self.transform(patch)
