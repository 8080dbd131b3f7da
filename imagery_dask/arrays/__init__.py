"""Lazy arrays of cutouts: what `dask.array` and xarray show of a volume, and what a block of them computes.

May import `sources`, `model`, `geometry` and `kernels`; the only folder that builds graphs which read volumes. Begin
with `cutout_array` (an array-like whose slices are read from the volume), then `lazy` (the dask array over it) and
`computing` (how it is computed).
"""
