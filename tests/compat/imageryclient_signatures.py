"""Names, order and defaults of imageryclient's parameters.

`test_signatures` compares this table with the installed imageryclient, with its documentation where that is available,
and with this package.
"""

from __future__ import annotations

#: The parameter has no default.
REQUIRED = "(required)"
#: The parameter takes all further keyword arguments.
KEYWORDS = "(keywords)"

Parameters = dict[str, object]

PROPERTIES = ("image_cv", "image_source", "resolution", "segmentation_cv", "segmentation_source")

CONSTRUCTOR: Parameters = {
    "client": None,
    "resolution": None,
    "segmentation": True,
    "imagery": True,
    "image_source": None,
    "segmentation_source": None,
    "image_mip": None,
    "segmentation_mip": None,
    "auth_token": None,
    "timestamp": None,
}

METHODS: dict[str, Parameters] = {
    "image_and_segmentation_cutout": {
        "bounds": REQUIRED,
        "image_mip": None,
        "segmentation_mip": None,
        "root_ids": "all",
        "resize": True,
        "split_segmentations": False,
        "include_null_root": False,
        "bbox_size": None,
        "resolution": None,
        "timestamp": None,
        "scale_to_bounds": None,
        "convert_to_int64": True,
    },
    "image_bbox_size_from_dimensions": {"image_size": REQUIRED, "mip": None, "resolution": None},
    "image_cutout": {
        "bounds": REQUIRED,
        "bbox_size": None,
        "image_size": None,
        "mip": None,
        "resolution": None,
        "scale_to_bounds": None,
    },
    "save_image_and_segmentation_masks": {
        "filename_prefix": REQUIRED,
        "bounds": None,
        "image_mip": None,
        "segmentation_mip": None,
        "root_ids": "all",
        "include_null_root": False,
        "segmentation_colormap": {},
        "resize": True,
        "precomputed_data": None,
        "slice_axis": 2,
        "bbox_size": None,
        "resolution": None,
        "timestamp": None,
        "scale_to_bounds": None,
        "kwargs": KEYWORDS,
    },
    "save_imagery": {
        "filename_prefix": REQUIRED,
        "bounds": None,
        "mip": None,
        "precomputed_image": None,
        "slice_axis": 2,
        "bbox_size": None,
        "image_size": None,
        "resolution": None,
        "scale_to_bounds": None,
        "verbose": False,
        "kwargs": KEYWORDS,
    },
    "save_segmentation_masks": {
        "filename_prefix": REQUIRED,
        "bounds": None,
        "mip": None,
        "root_ids": "all",
        "precomputed_masks": None,
        "segmentation_colormap": {},
        "slice_axis": 2,
        "include_null_root": False,
        "bbox_size": None,
        "image_size": None,
        "resolution": None,
        "timestamp": None,
        "scale_to_bounds": None,
        "verbose": False,
        "kwargs": KEYWORDS,
    },
    "segmentation_bbox_size_from_dimensions": {"image_size": REQUIRED, "mip": None, "resolution": None},
    "segmentation_cutout": {
        "bounds": REQUIRED,
        "root_ids": "all",
        "bbox_size": None,
        "image_size": None,
        "mip": None,
        "resolution": None,
        "timestamp": None,
        "scale_to_bounds": None,
        "convert_to_int64": True,
    },
    "split_segmentation_cutout": {
        "bounds": REQUIRED,
        "root_ids": "all",
        "include_null_root": False,
        "bbox_size": None,
        "image_size": None,
        "mip": None,
        "resolution": None,
        "timestamp": None,
        "scale_to_bounds": None,
    },
}

FUNCTIONS: dict[str, Parameters] = {
    "bounds_from_center": {"ctr": REQUIRED, "width": 1, "height": 1, "depth": 1},
    "save_image_slices": {
        "filename_prefix": REQUIRED,
        "filename_suffix": REQUIRED,
        "img": REQUIRED,
        "slice_axis": REQUIRED,
        "image_type": REQUIRED,
        "verbose": False,
        "color": None,
        "kwargs": KEYWORDS,
    },
}
