"""Descriptions of the parameters that several methods of the client share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from imagery_dask.docstrings import fill_parameters

__all__ = ["describe"]

Function = TypeVar("Function", bound=Callable[..., object])

PROSE = {
    "bounds": """bounds : array-like, shape (2, 3) or (3,)
    Lower corner (inclusive) and upper corner (exclusive), x, y, z in voxels of `resolution`. With `bbox_size` or
    `image_size`, the center of the box instead (3 numbers).""",
    "bbox_size": """bbox_size : array-like of 2 or 3 numbers, optional
    Size of the box around the center, x, y, z in voxels of `resolution`; two numbers mean one voxel in z.""",
    "image_size": """image_size : array-like of 2 or 3 integers, optional
    Size of the result, x, y, z in pixels of the mip; two numbers mean one slice. Excludes `bbox_size`.""",
    "mip": """mip : int, optional
    Resolution level to read. By default the client's.""",
    "image_mip": """image_mip : int, optional
    Resolution level of the imagery. By default the client's.""",
    "segmentation_mip": """segmentation_mip : int, optional
    Resolution level of the segmentation. By default the client's.""",
    "resolution": """resolution : array-like of 3 numbers, optional
    Resolution of `bounds` and `bbox_size`, nm per voxel (x, y, z). By default the client's.""",
    "scale_to_bounds": """scale_to_bounds : bool, optional
    True resamples the result to `resolution`, with one voxel for each voxel of the bounds; False returns the voxels of
    the mip. None (default) is True if neither a mip nor `image_size` is given, and False otherwise.""",
    "root_ids": """root_ids : sequence of int, None or 'all'
    Objects to keep; all other voxels become 0, and an empty sequence keeps no object. 'all' (default) keeps every
    object. None returns the ids as stored: supervoxel ids in a dynamic segmentation, the same as 'all' in a flat one.
    In a dynamic segmentation, one request checks that the given ids are root ids at the cutout's timestamp.""",
    "include_null_root": """include_null_root : bool
    Treat 0 (no object) as an object. False by default.""",
    "timestamp": """timestamp : datetime, str or number, optional
    State of a dynamic segmentation to show: a datetime (naive means UTC), an ISO 8601 string, seconds since 1970, or
    "now". By default the client's timestamp, or else the time of this call. It is resolved to a whole second at once,
    so that every block shows the same state. It has no effect on a flat segmentation.""",
    "stop_layer": """stop_layer : int, optional
    Layer of the chunkedgraph whose ids are returned: 2 for L2 ids, 1 for supervoxel ids. By default root ids.
    `root_ids` still selects the voxels to keep.""",
    "version": """version : int, optional
    Materialization version whose timestamp is used. Requires a client made with a CAVEclient; excludes
    `timestamp`.""",
    "convert_to_int64": """convert_to_int64 : bool
    True converts ids to int64; False keeps the stored dtype. With True, computing a block that contains an id above
    2**63 - 1 raises an `OverflowError`.""",
    "resize": """resize : bool
    Resample the coarser layer to the voxels of the finer one (default): each voxel takes the value of the coarse voxel
    that contains its center.""",
    "order": """order : {0, 1}
    Resampling of imagery: 0 takes the nearest voxel (default), 1 interpolates linearly. For ids,
    also those of an image layer (see `image_kind` of the client), 1 is an error.""",
    "axis": """axis : {0, 1, 2, "x", "y", "z"}
    Axis along which the volume is cut into planes. By default z.""",
    "outline": """outline : bool
    Draw outlines of objects rather than fill them.""",
    "alpha": """alpha : float, optional
    Opacity of the colors, 0 to 1. By default 0.3 for filled objects, 1 for outlines and without imagery.""",
    "window": """window : tuple of 2 float, optional
    Voxel values that are black and white. By default 0 and 255 for 8-bit imagery; for other imagery those that leave
    out the darkest and the brightest 0.5% of the voxels shown.""",
    "colors": """colors : mapping of int to 3 or 4 int, optional
    Red, green and blue, 0 to 255, by id. By default an id has the same color in every picture
    (`imagery_dask.render.palettes.colors_of`), except where objects that touch would look alike.""",
    "legend": """legend : bool, optional
    List the ids and their colors. By default if there are at most eight.""",
    "scale_bar": """scale_bar : bool
    Draw a scale bar.""",
    "filename_prefix": """filename_prefix : str
    Path prefix of all files, including the folder.""",
    "slice_axis": """slice_axis : {0, 1, 2}
    Axis along which the volume is sliced into pictures: 0 (x), 1 (y) or 2 (z, default).""",
    "segmentation_colormap": """segmentation_colormap : dict, optional
    Colors by root id: 3 (RGB) or 4 (RGBA) numbers from 0 to 255. Other objects are white.""",
    "verbose": """verbose : bool
    Print the name of each file. False by default.""",
    "kwargs": """**kwargs
    Keyword arguments of ``imageio.imwrite``, for example ``compress_level=1``.""",
}


def describe(function: Function) -> Function:
    """Replace ``{parameters}`` in a docstring with the descriptions of the function's parameters."""
    return fill_parameters(function, PROSE)
