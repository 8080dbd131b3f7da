"""Patches of fixed shape for machine learning: where they lie, their voxels, and a manifest that reproduces them.

A patch is a box of voxels of a resolved cutout, and reading it is a pure function of that. Begin with `sampler`, which
chooses patches of a client's layers; `patches` has the chosen ones, their batches and their manifest. Only
`torch_patches` imports torch.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.sampling.patches import Patches
    from imagery_dask.sampling.sampler import Sampler
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"imagery_dask.sampling.patches": ["Patches"], "imagery_dask.sampling.sampler": ["Sampler"]}
    )

__all__ = ["Patches", "Sampler"]
