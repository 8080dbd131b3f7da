"""Refusal to compute, or to build the graph of, more of a cutout than `max_bytes`.

A petabyte layer opens as quickly as a small one, and a forgotten crop would have dask make tens of millions of tasks
before it reads anything. Slices of a part and elementwise operations of such an array cost nothing and are allowed;
steps that make all of its tasks are not: naming blocks that are made of all of its blocks, which is how dask computes
or persists any array, reducing it, and changing, joining or slicing a great number of its blocks.

dask has no hook for these steps: `install` wraps its functions, and skips those that a version of dask does not have.
Arrays that are not made of cutouts pass unchanged, and so do exports, which compute block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial, wraps
from typing import Any, TypeVar, cast

import dask
import dask.array as da
import numpy as np
from dask.blockwise import Blockwise

from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.hooks import wrap
from imagery_dask.arrays.origins import source_named, sources_in
from imagery_dask.config import config
from imagery_dask.errors import TooLargeError
from imagery_dask.humanize import human_bytes, size_or_zero
from imagery_dask.sources import open_volume

__all__ = [
    "check_blocks",
    "check_bytes",
    "check_read",
    "check_result",
    "install",
    "max_bytes",
    "missing_steps",
    "no_limit",
    "set_max_bytes",
]

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


def check_result(array: da.Array) -> None:
    """Raise if the voxels of an array, or all those of a great number of blocks, are more than `max_bytes`."""
    if sources := sources_in(array):
        check_bytes(array.size * array.dtype.itemsize, sources)  # expressions have no `nbytes`
        if not da.array_expr_enabled():
            _check_whole(array)


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


def install() -> None:
    """Have dask ask before it names, reduces, joins or slices all blocks of an array.

    Expressions ask before their blocks are named in `imagery_dask.arrays.expressions`.
    """
    if not _installed:
        for step, how in (_STEPS_OF_EXPRESSIONS if da.array_expr_enabled() else _STEPS).items():
            _installed[step] = wrap(step, partial(_after, *how))


def missing_steps() -> list[str]:
    """Return the functions of dask that should ask, and that its version does not have."""
    return [step for step, is_found in _installed.items() if not is_found]


def _check_reduced(array: da.Array) -> None:
    check_read(array)
    if not da.array_expr_enabled() and sources_in(array):
        _check_whole(array)


def _check_whole(array: da.Array) -> None:
    if whole := _read_whole(array):
        check_bytes(max(part.cutout.target.size * part.dtype.itemsize for part in whole), whole)


def _read_whole(array: da.Array) -> list[CutoutArray]:
    """Return the cutouts of a great number of blocks all of which an array is made of.

    Layers of a graph are followed down from the array: a layer of blocks, and one with a task or more for each block of
    another, takes all of these.
    """
    layers, below = array.dask.layers, array.dask.dependencies
    names, seen = [array.name], set()
    while names:
        name = names.pop()
        if name in seen or name not in layers:
            continue
        seen.add(name)
        is_whole = isinstance(layers[name], Blockwise)
        names += [other for other in below[name] if is_whole or len(layers[name]) >= len(layers[other]) > MOST_BLOCKS]
    return [source for name in seen if len(layers[name]) > MOST_BLOCKS and (source := source_named(name)) is not None]


def _check_slices(array: da.Array, index: object) -> None:
    """Raise if slices cross a great number of blocks that hold more than `max_bytes`."""
    if array.npartitions <= MOST_BLOCKS or not (sources := sources_in(array)):
        return
    parts = [part for part in (index if isinstance(index, tuple) else (index,)) if part is not None]
    ellipsis = next((n for n, part in enumerate(parts) if part is Ellipsis), len(parts))
    missing_axes = [slice(None)] * (array.ndim - len(parts) + (ellipsis < len(parts)))
    parts[ellipsis : ellipsis + 1] = missing_axes
    if all(isinstance(part, slice) and part == slice(None) for part in parts):
        return  # the array itself
    crossed = math.prod(map(_blocks_crossed, parts, array.shape, array.numblocks))
    if crossed > MOST_BLOCKS:
        itemsize = max(source.dtype.itemsize for source in sources)
        check_bytes(array.size * itemsize * crossed / array.npartitions, sources)


def _blocks_crossed(part: object, size: int, blocks: int) -> int:
    """Return about how many blocks along an axis a part of it crosses."""
    if isinstance(part, slice) and size == size:  # NaN where dask does not know it
        picked = range(*part.indices(size))
        span = abs(picked[-1] - picked[0]) + 1 if picked else 0
        return min(blocks, len(picked), span * blocks // size + 1)
    return 1 if isinstance(part, int | np.integer) else blocks


def _culled(array: Any) -> Any:
    """Return an array without the unused blocks of its cutouts, all of whose names a reduction would make."""
    if not isinstance(array, da.Array) or da.array_expr_enabled() or not sources_in(array):
        return array
    if not any(len(layer) > MOST_BLOCKS for layer in array.dask.layers.values()):
        return array
    with no_limit():
        (culled,) = dask.optimize(array)
    return culled


def _each(check: Callable[[da.Array], None]) -> Callable[..., None]:
    """Return a check of all arrays among the arguments of a function, and in lists among them."""

    def check_arguments(*args: Any, **kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        for array in [*given, *(part for several in given if isinstance(several, list | tuple) for part in several)]:
            if isinstance(array, da.Array):
                check(array)

    return check_arguments


def _after(check: Callable[..., None], prepare: Callable[[Any], Any], function: Function) -> Function:
    """Return a function that checks, and prepares, its arguments first."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return function(*map(prepare, args), **{name: prepare(value) for name, value in kwargs.items()})

    return cast(Function, checked)


def _unchanged(value: Any) -> Any:
    return value


# Functions of dask that ask first, the check, and what is done to their arguments.
_REDUCTIONS = {
    f"dask.array.reductions.{name}": (_each(_check_reduced), _culled) for name in ("reduction", "arg_reduction")
}
_STEPS = _REDUCTIONS | {
    "dask.array.core:Array.__dask_keys__": (check_result, _unchanged),
    "dask.array.core:Array.__getitem__": (_check_slices, _unchanged),
    **{
        f"dask.array.{name}": (_each(check_blocks), _unchanged)
        for name in (
            "core.concatenate", "core.stack", "overlap.overlap", "reductions.cumreduction", "reshape.reshape",
            "rechunk._compute_rechunk",
        )
    },
}  # fmt: skip
# Of expressions: those that are computed ask in `expressions`; these also when they are persisted or in xarray objects.
_STEPS_OF_EXPRESSIONS = _REDUCTIONS | {
    f"dask.array:Array.{name}": (_each(check_result), _unchanged)
    for name in ("__dask_keys__", "__dask_graph__", "persist")
}
# Whether each was found; empty before `install`.
_installed: dict[str, bool] = {}
