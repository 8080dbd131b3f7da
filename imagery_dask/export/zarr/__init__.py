"""OME-Zarr: `to_zarr` and what it writes.

`zarr_options` has the options, `to_zarr` the export, `ome` the metadata; `block_array` writes whole blocks into an
array, and `zarr_shards` encodes the shards of a local one. May import export/multiscale and everything below; not the
other formats. Begin reading at `zarr_options`, then `to_zarr`.
"""
