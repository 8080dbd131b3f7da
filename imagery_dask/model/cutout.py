"""Resolution of requests to exact voxels. Defaults and conflicts between arguments are decided only here.

`resolve` turns a `CutoutRequest` and a `Layer` into a `Cutout`: a frozen value from which every block, in a notebook,
on a cluster or in a resumed export, computes the same voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from imagery_dask.geometry.grid import AXES, XYZ, VoxelGrid, voxel_bounds
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.arguments import Triple, corners
from imagery_dask.model.chunkedgraph import RootQuery
from imagery_dask.model.labels import Kind, LabelRule, are_ids
from imagery_dask.model.layer import Layer, Mip
from imagery_dask.serialization import NEWER
from imagery_dask.validate import sizes, triple

__all__ = [
    "Cutout",
    "CutoutRequest",
    "dimensions_in",
    "resolve",
    "resolve_pair",
    "whole_layer",
]


@dataclass(frozen=True, slots=True)
class Cutout:
    """A resolved cutout: everything that determines its voxels, and nothing else.

    Parameters
    ----------
    path : str
        Cloud path of the layer.
    mip : Mip
        Level that is read.
    stored_dtype : str
        Data type of the layer.
    channels : int
        Values per voxel.
    target : VoxelGrid
        Voxels of the result.
    missing : {"fill", "error"}
        What a storage chunk that does not exist becomes.
    order : {0, 1}
        0 takes the voxel under the target's centre, 1 interpolates linearly (imagery only).
    labels : LabelRule or None
        None for imagery.
    kind : {"image", "segmentation"} or None
        What the voxels of a layer that is read as imagery are; None decides by the data type.
    downsampled : bool
        Whether a voxel of a coarser target is the mean, or the most frequent id, of the voxels that it covers, one or
        two along each axis; `order` says nothing then. See `coarser`.
    """

    path: str
    mip: Mip
    stored_dtype: str
    channels: int
    target: VoxelGrid
    missing: Literal["fill", "error"] = "fill"
    order: int = 0
    labels: LabelRule | None = None
    # Not in the repr, from which names of arrays are made: those of other cutouts stay what they were.
    kind: Kind | None = field(default=None, repr=False, metadata=NEWER)
    downsampled: bool = field(default=False, repr=False, metadata=NEWER)

    @property
    def holds_ids(self) -> bool:
        """True if voxels are ids, of which there is no mean."""
        if self.kind is not None:
            return self.kind == "segmentation"
        return self.labels is not None or are_ids(self.stored_dtype)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the result, known without reading."""
        if self.labels is None:
            return np.dtype(self.stored_dtype)
        if self.labels.mask_of is not None:
            return np.dtype(bool)
        return np.dtype(np.int64 if self.labels.as_int64 else self.stored_dtype)

    @property
    def share_outside(self) -> float:
        """Part of the source's voxels under the cutout that are outside of the volume, from 0.0 to 1.0."""
        box = self.target.at(self.mip.grid.resolution_nm)
        return float(1 - Fraction(box.intersection(self.mip.grid).size, box.size))

    @property
    def where(self) -> str:
        """Say where the cutout and the volume are, for messages."""
        volume = self.mip.grid
        box = volume if self.target == volume else self.target.at(volume.resolution_nm)
        return (
            f"in voxels of {_plain(volume.resolution_nm)} nm they are {box.start} to {box.stop}, and the volume has "
            f"{volume.start} to {volume.stop}"
        )

    @property
    def timestamp(self) -> int | None:
        """The moment that a dynamic segmentation is shown at, in seconds since 1970; None for what does not change."""
        if self.query is not None:
            return self.query.timestamp
        return None if self.labels is None else self.labels.moment

    @property
    def supervoxels_at(self) -> int | None:
        """Up to when splits of supervoxels are read, in seconds since 1970; None for the present, or without splits."""
        return None if self.labels is None else self.labels.supervoxels_at

    @property
    def query(self) -> RootQuery | None:
        """Query to a chunked graph that determines the ids, or None."""
        return None if self.labels is None else self.labels.query

    @property
    def unit(self) -> Vec3[int]:
        """Smallest box, in voxels of the mip, whose multiples make blocks that share no storage chunk.

        This is a storage chunk. In a dynamic segmentation it also consists of whole graph chunks, so that no two blocks
        look up the same supervoxel.
        """
        chunk = self.mip.chunk_shape
        chunks = None if self.query is None else self.query.graph.chunks_at(self.mip.grid)
        if chunks is None:
            return chunk
        shape, origin = chunks
        if any((self.mip.grid.start - origin) % shape):
            return chunk
        return chunk.map(math.lcm, shape)

    def coarser(self, step: XYZ) -> Cutout:
        """Return the next level of this cutout, whose voxels cover one or two voxels along each axis.

        Raises
        ------
        ValueError
            The first voxel is not at a multiple of `step`, or voxels would be resampled twice.
        """
        grid = self.target
        if grid.resolution_nm != self.mip.grid.resolution_nm or self.query is not None or self.downsampled:
            raise ValueError("Only voxels as they are stored are downsampled.")
        if any(grid.start % step):
            raise ValueError(
                f"A level of {grid.resolution_nm * step} nm would begin within a voxel: {grid.start} is not a multiple "
                f"of {step}."
            )
        target = VoxelGrid(grid.start // step, grid.shape.ceil_div(step), grid.resolution_nm * step)
        return replace(self, target=target, downsampled=True)

    def mask(self, root_id: int) -> Cutout:
        """Return the cutout of the mask of one id."""
        rule = replace(self.labels or LabelRule(), mask_of=int(root_id), as_int64=False)
        return replace(self, labels=rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutoutRequest:
    """Arguments of a cutout of one layer, as the caller gave them; see `resolve`.

    Parameters
    ----------
    bounds : array-like
        Two corners (2 x 3), or a center when a size is given.
    bbox_size : array-like or None
        2 or 3 sizes in voxels of `resolution`.
    image_size : array-like or None
        2 or 3 sizes in pixels of the mip.
    mip : int or None
        Level; None for `default_mip`, rescaled to the bounds.
    default_mip : int
        The client's level.
    resolution : tuple of 3 float
        Resolution of `bounds` and `bbox_size`, nm.
    scale_to_bounds : bool or None
        True to return voxels of `resolution`, False to return voxels of the mip; None depends on `mip`.
    """

    bounds: ArrayLike
    default_mip: int
    resolution: Triple
    bbox_size: ArrayLike | None = None
    image_size: ArrayLike | None = None
    mip: int | None = None
    scale_to_bounds: bool | None = None

    @property
    def scales(self) -> bool:
        """True if the result is on the grid of the bounds, not on that of the mip."""
        if self.scale_to_bounds is None:
            # image_size is the size of the result in pixels of the mip, so the result is not rescaled.
            return self.mip is None and self.image_size is None
        return bool(self.scale_to_bounds)


def resolve(
    request: CutoutRequest,
    layer: Layer,
    *,
    labels: LabelRule | None = None,
    missing: Literal["fill", "error"] = "fill",
    order: int = 0,
) -> Cutout:
    """Resolve a request on a layer to an exact cutout.

    Parameters
    ----------
    request : CutoutRequest
        The caller's arguments.
    layer : Layer
        The layer to read.
    labels : LabelRule or None
        How ids are processed; None for imagery.
    missing : {"fill", "error"}
        What a storage chunk that does not exist becomes.
    order : {0, 1}
        Nearest or linear resampling.

    Raises
    ------
    ValueError, TypeError
        If arguments are invalid or contradict each other; the message has the values and the remedy.
    """
    _check_options(missing, order, layer)
    mip = layer.mip(request.default_mip if request.mip is None else request.mip)
    target = _target(request, mip)
    kind = _kind(layer, labels)
    return Cutout(layer.path, mip, layer.dtype, layer.channels, target, missing, int(order), labels, kind)


def whole_layer(
    layer: Layer, level: int, *, labels: LabelRule | None = None, missing: Literal["fill", "error"] = "fill"
) -> Cutout:
    """Return the cutout of all voxels of a level."""
    mip = layer.mip(level)
    kind = _kind(layer, labels)
    return Cutout(layer.path, mip, layer.dtype, layer.channels, mip.grid, missing, 0, labels, kind)


def resolve_pair(
    request: CutoutRequest,
    image: Layer,
    segmentation: Layer,
    mips: tuple[int | None, int | None],
    *,
    default_mips: tuple[int, int],
    labels: LabelRule,
    resize: bool = True,
    missing: Literal["fill", "error"] = "fill",
    order: int = 0,
) -> tuple[Cutout, Cutout]:
    """Resolve one request to cutouts of imagery and segmentation.

    The finer layer determines the grid; with `resize` the coarser layer is resampled to the same grid.

    Parameters
    ----------
    request : CutoutRequest
        The caller's arguments; its mips are not used.
    image, segmentation : Layer
        The layers.
    mips : pair of int or None
        Levels of imagery and segmentation as the caller gave them.
    default_mips : pair of int
        Levels to use for those that are None.
    labels : LabelRule
        How ids are processed.
    resize : bool
        True to return both on one grid.
    missing, order
        As in `resolve`.

    Returns
    -------
    image, segmentation : Cutout
        Resolved cutouts.
    """
    scales = request.scale_to_bounds
    if scales is None:
        scales = mips == (None, None)
    image_mip, segmentation_mip = mips
    image_level = default_mips[0] if image_mip is None else image_mip
    segmentation_level = default_mips[1] if segmentation_mip is None else segmentation_mip
    image_nm = image.mip(image_level).grid.resolution_nm
    segmentation_nm = segmentation.mip(segmentation_level).grid.resolution_nm
    segmentation_is_finer = segmentation_nm.all_le(image_nm)
    finer = segmentation if segmentation_is_finer else image
    _check_options(missing, order, image)

    def cut(layer: Layer, level: int, target: VoxelGrid | None = None) -> Cutout:
        mip = layer.mip(level)
        scaled = bool(scales) and (layer is finer or image_nm == segmentation_nm)
        own = replace(request, mip=level, scale_to_bounds=scaled)
        is_image = layer is image
        return Cutout(
            path=layer.path, mip=mip, stored_dtype=layer.dtype, channels=layer.channels,
            target=_target(own, mip) if target is None else target, missing=missing,
            order=order if is_image else 0, labels=None if is_image else labels,
            kind=_kind(layer, None if is_image else labels),
        )  # fmt: skip

    # The coarser layer may have no voxel of its own in the bounds, but it has a value for each voxel of the finer one.
    finer_level = segmentation_level if segmentation_is_finer else image_level
    target = cut(finer, finer_level).target if resize else None
    return cut(image, image_level, target), cut(segmentation, segmentation_level, target)


def _kind(layer: Layer, labels: LabelRule | None) -> Kind | None:
    """Return what a cutout's voxels are where that does not follow from its rule and data type."""
    return layer.told_kind if labels is None else None


def _check_options(missing: str, order: int, layer: Layer) -> None:
    if missing not in ("fill", "error"):
        raise ValueError(f"missing must be 'fill' or 'error'; got {missing!r}.")
    if order not in (0, 1):
        raise ValueError(f"order must be 0 (nearest) or 1 (linear); got {order!r}.")
    if order == 1 and layer.holds_ids:
        raise ValueError(
            f"order=1 interpolates, and the voxels of {layer.path!r} ({layer.kind}, {layer.dtype}) are taken for ids, "
            "between which there is nothing. Pass order=0, or image_kind='image' to the client if they are intensities."
        )


def _target(request: CutoutRequest, mip: Mip) -> VoxelGrid:
    """Return the voxels of the result: those of the mip, or of the bounds if the cutout is scaled to them."""
    voxel_nm = mip.grid.resolution_nm
    lower, upper = _corners(request, voxel_nm)
    target_nm = request.resolution if request.scales else voxel_nm
    start, stop = voxel_bounds(lower, upper, request.resolution, target_nm)
    if request.image_size is not None and not request.scales:
        # The result has exactly the requested size in pixels, however the corners are rounded.
        stop = start + Vec3.of(sizes("image_size", request.image_size)).map(int)
    empty = [name for axis, name in enumerate(AXES) if stop[axis] <= start[axis]]
    if empty:
        raise ValueError(
            f"The bounds {_plain(lower)} to {_plain(upper)} at {_plain(request.resolution)} nm cover no voxel along "
            f"{', '.join(empty)}: they are voxels {start} to {stop} at {_plain(target_nm)} nm. The upper corner is "
            "exclusive; make the bounds larger, or check the resolution they are given in."
        )
    return VoxelGrid.between(start, stop, target_nm)


def _corners(request: CutoutRequest, voxel_nm: Triple) -> tuple[Triple, Triple]:
    if request.bbox_size is not None and request.image_size is not None:
        raise ValueError(
            f"Give bbox_size or image_size, not both: each sets the size of the cutout; got bbox_size="
            f"{request.bbox_size!r} and image_size={request.image_size!r}."
        )
    if request.bbox_size is not None:
        size = sizes("bbox_size", request.bbox_size)
    elif request.image_size is not None:
        size = dimensions_in(request.image_size, voxel_nm, request.resolution)
    else:
        return corners(request.bounds)
    center = np.asarray(triple("bounds (the center, since a size is given)", request.bounds))
    # Sizes that follow from a division of floats are whole where they were meant to be.
    size = Vec3.of(size).map(lambda length: round(length) if abs(length - round(length)) < 1e-6 else length)
    lower = center - np.floor_divide(size, 2)
    x0, y0, z0 = lower.tolist()
    x1, y1, z1 = (lower + np.asarray(size)).tolist()
    return (x0, y0, z0), (x1, y1, z1)


def dimensions_in(image_size: ArrayLike, voxel_nm: Triple, resolution: Triple) -> Triple:
    """Return the size, in voxels of `resolution`, of `image_size` pixels of `voxel_nm`; z is 1 for a 2-element size."""
    size = sizes("image_size", image_size, whole=True)
    x, y, z = Vec3.of(size).map(lambda pixels, own_nm, other_nm: pixels * own_nm / other_nm, voxel_nm, resolution)
    return (x, y, z if np.size(np.asarray(image_size)) == 3 else 1.0)


def _plain(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(int(v) if float(v).is_integer() else float(v) for v in values)
