"""Refusal to compute, or to build the graph of, more of a cutout than `max_bytes`.

A petabyte layer opens as quickly as a small one, and a forgotten crop would have dask make tens of millions of tasks
before it reads anything. Slices and elementwise operations of such an array cost nothing and are allowed; steps that
make all of its tasks are not: naming its blocks, which is how dask computes or persists any array, reducing it, and
changing a great number of its blocks, as operations of arrays with different blocks do.

dask has no hook for these steps: `install` wraps its functions. Arrays that are not made of cutouts pass unchanged, and
so do exports, which compute block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from importlib import import_module
from typing import Any, TypeVar, cast

import dask
import dask.array as da
from dask.array import reductions

from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.origins import sources_in
from imagery_dask.config import config
from imagery_dask.errors import TooLargeError
from imagery_dask.humanize import human_bytes, size_or_zero
from imagery_dask.sources import open_volume

__all__ = ["check_blocks", "check_bytes", "check_read", "install", "max_bytes", "no_limit", "set_max_bytes"]

SHARE_OF_MEMORY = 0.25
# More blocks than this are not listed one by one: their graph would take minutes and gigabytes.
MOST_BLOCKS = 2**18
Function = TypeVar("Function", bound=Callable[..., Any])
_is_limited: ContextVar[bool] = ContextVar("is_limited", default=True)


def max_bytes() -> int:
    """Return the largest number of bytes that is computed at once; 0 is no limit."""
    given = config.get("max_bytes")
    if given is not None:
        return size_or_zero("IMAGERY_DASK_MAX_BYTES (max_bytes of the configuration)", given)
    return int(SHARE_OF_MEMORY * _memory())


def set_max_bytes(most: int | str) -> None:
    """Set the limit of this process, bytes or text such as ``8GB``; 0 is no limit."""
    config.set({"max_bytes": size_or_zero("max_bytes", most)})


@contextmanager
def no_limit() -> Iterator[None]:
    """Let this thread compute any size: blocks of an export have their own limits."""
    token = _is_limited.set(False)
    try:
        yield
    finally:
        _is_limited.reset(token)


def check_read(array: da.Array) -> None:
    """Raise if the voxels that an array is made of, were it read whole, are more than `max_bytes`.

    The size is that of stored voxels: a comparison or a mean of an 8-bit image makes 8 bytes of each.
    """
    if sources := sources_in(array):
        check_bytes(array.size * max(source.dtype.itemsize for source in sources), sources)


def check_blocks(array: da.Array) -> None:
    """Raise if an array is too large to be read at once, and has too many blocks to be read one after another."""
    if math.prod(array.numblocks) > MOST_BLOCKS:
        check_read(array)


def check_bytes(nbytes: float, sources: Sequence[CutoutArray]) -> None:
    """Raise if a number of bytes, of what is made of some cutouts, is more than `max_bytes`.

    Raises
    ------
    TooLargeError
        The message has the size, and what to do instead.
    """
    most = max_bytes() if _is_limited.get() else 0
    if not most or not nbytes > most or not sources:  # sizes that dask does not know are NaN
        return
    source = max(sources, key=lambda source: source.cutout.target.size)
    cutout = source.cutout
    kind = "image" if cutout.labels is None else "segmentation"
    is_default = " (a quarter of this machine's memory)" if config.get("max_bytes") is None else ""
    raise TooLargeError(
        f"This would take {human_bytes(nbytes)} of the {kind} {cutout.path!r} (mip {cutout.mip.level}) at once, and "
        f"max_bytes is {human_bytes(most)}{is_default}. Crop it{_coarser(source, nbytes, most)}, write it block by "
        "block with imagery_dask.to_zarr, or raise the limit: ImageryClient(max_bytes=...), IMAGERY_DASK_MAX_BYTES; "
        "0 is no limit."
    )


def _coarser(source: CutoutArray, nbytes: float, most: int) -> str:
    """Name the first coarser mip at which a result is small enough, or else the coarsest."""
    cutout = source.cutout
    choices = []
    for mip in open_volume(cutout.path).layer.mips[cutout.mip.level + 1 :]:
        steps = mip.grid.steps_from(cutout.target.resolution_nm)
        if not mip.is_placeholder and steps.prod() > 1:
            choices.append((mip.level, nbytes / float(steps.prod())))
    if not choices:
        return ""
    level, size = next((choice for choice in choices if choice[1] <= most), choices[-1])
    return f", read {'' if size <= most else 'a part of '}mip {level} ({human_bytes(size)})"


@cache
def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


@cache
def install() -> None:
    """Have dask ask before all blocks of an array are named, or reduced.

    Expressions ask before their blocks are named in `imagery_dask.arrays.expressions`.
    """
    if not da.array_expr_enabled():
        da.Array.__dask_keys__ = _after(da.Array.__dask_keys__, _check_result)
        rechunking: Any = import_module("dask.array.rechunk")  # `dask.array` has a function of that name
        rechunking._compute_rechunk = _after(rechunking._compute_rechunk, check_blocks)
    da.reduction = reductions.reduction = _after(reductions.reduction, check_read, _culled)
    reductions.arg_reduction = _after(reductions.arg_reduction, check_read, _culled)


def _check_result(array: da.Array) -> None:
    if sources := sources_in(array):
        check_bytes(array.nbytes, sources)


def _culled(array: da.Array) -> da.Array:
    """Return an array without the unused blocks of its cutouts, all of whose names a reduction would make."""
    layers = {} if da.array_expr_enabled() else array.dask.layers
    if not any(len(layer) > MOST_BLOCKS for layer in layers.values()):
        return array
    with no_limit():
        (culled,) = dask.optimize(array)
    return culled


def _after(
    function: Function, check: Callable[[da.Array], None], prepare: Callable[[da.Array], da.Array] = lambda array: array
) -> Function:
    """Return a function of an array that checks and prepares the array first."""

    @wraps(function)
    def checked(array: da.Array, *args: Any, **kwargs: Any) -> Any:
        check(array)
        return function(prepare(array), *args, **kwargs)

    return cast(Function, checked)
