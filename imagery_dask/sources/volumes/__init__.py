"""What volumes of all formats share: their paths, their chunks, and how a box of voxels is read.

Begin with `stored_volume`, whose abstract methods are what a format adds; `precomputed` and `zarr` beside this folder
are formats.
"""
