"""Voxel boxes, pyramids and blocks, as arithmetic on integers and exact fractions; axes are always x, y, z.

May import numpy and, from this package, only `errors`, `kernels` and `validate`; does no I/O.
Begin with `vec` (three values) and `grid` (where voxels are). `block_plan` cuts a region into blocks, `pyramid` plans
downsampled levels, `region` has the slices that select a box.
"""
