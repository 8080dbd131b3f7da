"""Descriptions of what to read, as frozen values: layers, mips, chunked graphs, label rules, moments and cutouts.

May import `geometry`, `errors`, `validate` and numpy; does no I/O.
Begin with `cutout`, which resolves a request on a `layer` to exact voxels.
"""
