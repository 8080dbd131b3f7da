"""A box of voxels as it is stored, which a writer of the same encoding copies without decoding it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from imagery_dask.annotations import Array

__all__ = ["Block", "EncodedBlock", "voxels_of"]


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """A storage chunk that is a whole box.

    Parameters
    ----------
    content : bytes
        The chunk, without the compression of its transport.
    shape : tuple of int
        Voxels along x, y, z, and channels.
    dtype : str
        Data type of the voxels.
    decode : callable
        Returns the voxels (x, y, z, channel), for those who need them too.
    """

    content: bytes
    shape: tuple[int, ...]
    dtype: str
    decode: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


# Voxels, or a chunk that holds them.
Block = Array | EncodedBlock


def voxels_of(block: Block) -> Array:
    """Return the voxels of a block; of one channel, without its axis."""
    if not isinstance(block, EncodedBlock):
        return block
    voxels = block.decode()
    return voxels if voxels.shape[3] > 1 else voxels[..., 0]
