"""Prose of the parameters that several public methods share, written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from imagery_dask.docstrings import fill_parameters

__all__ = ["describe"]

Function = TypeVar("Function", bound=Callable[..., object])

PROSE = {
    "bounds": """bounds : array-like
    Two corners (2 x 3), lower inclusive and upper exclusive, in voxels of `resolution`. With `bbox_size` or
    `image_size`, the center instead (3 numbers).""",
    "bbox_size": """bbox_size : array-like of 2 or 3 numbers, optional
    Size of the box around the center, in voxels of `resolution`; two numbers mean one voxel in z.""",
    "image_size": """image_size : array-like of 2 or 3 integers, optional
    Size of the result in pixels of the mip; two numbers mean one slice. Not together with `bbox_size`.""",
    "mip": """mip : int, optional
    Resolution level to read. The client's default when not given.""",
    "image_mip": """image_mip : int, optional
    Resolution level of the imagery. The client's default when not given.""",
    "segmentation_mip": """segmentation_mip : int, optional
    Resolution level of the segmentation. The client's default when not given.""",
    "resolution": """resolution : array-like of 3 numbers, optional
    Resolution of `bounds` and `bbox_size` in nm per voxel (x, y, z). The client's when not given.""",
    "scale_to_bounds": """scale_to_bounds : bool, optional
    True gives a result with the voxels of `resolution`, one for each voxel of the bounds; False one with the mip's own
    voxels. None (default) is True when neither a mip nor `image_size` is given.""",
    "root_ids": """root_ids : sequence of int, None or 'all'
    Objects to keep, all other voxels are 0; an empty sequence keeps none. 'all' (default) keeps every object, None
    gives the ids as stored: supervoxel ids in a dynamic segmentation, the same in a flat one. Listed ids of a dynamic
    segmentation are checked, with one request, to be root ids at the cutout's moment.""",
    "include_null_root": """include_null_root : bool
    Whether 0, the voxels of no object, counts as an object. False by default.""",
    "timestamp": """timestamp : datetime, str or number, optional
    Moment of a dynamic segmentation: a datetime (naive means UTC), ISO 8601 text, seconds since 1970, or "now". The
    client's when not given, else the moment of this call. It is resolved now, to a whole second, so that every block
    shows the same state. A flat segmentation has only one state.""",
    "stop_layer": """stop_layer : int, optional
    Layer of the ids to give, in a dynamic segmentation: 2 for L2 ids, 1 for supervoxels. Root ids when not given.
    Listed `root_ids` choose voxels all the same.""",
    "version": """version : int, optional
    Materialization version, whose moment is taken. Needs a client made with a CAVEclient; not together with
    `timestamp`.""",
    "convert_to_int64": """convert_to_int64 : bool
    Convert ids to int64 (default) rather than give the stored dtype. An id above 2**63 - 1 makes the block that holds
    it fail with an `OverflowError`.""",
    "resize": """resize : bool
    Bring the coarser layer to the finer one's voxels (default), each taking the value of the coarse voxel that
    contains its centre.""",
    "order": """order : {0, 1}
    Resampling of imagery: 0 takes the nearest voxel (default), 1 interpolates linearly. Ids are never interpolated.""",
    "filename_prefix": """filename_prefix : str
    Beginning of every file's name, folder included.""",
    "slice_axis": """slice_axis : {0, 1, 2}
    Axis along which a volume is cut into pictures, by default 2 (z).""",
    "segmentation_colormap": """segmentation_colormap : dict, optional
    Colors by root id: 3 (RGB) or 4 (RGBA) numbers from 0 to 255. Objects without one are white.""",
    "verbose": """verbose : bool
    Print the name of each file.""",
    "kwargs": """**kwargs
    Passed to ``imageio.imwrite``, for example ``compress_level=1``.""",
}


def describe(function: Function) -> Function:
    """Fill ``{parameters}`` in a docstring with the prose of the function's parameters."""
    return fill_parameters(function, PROSE)
