"""Zarr v2, zarr v3 and N5: their metadata, OME-Zarr's and COSEM's levels, shards and codecs.

Begin with `zarr_volume`. `array_format` reads the metadata of an array, `multiscales` that of its levels,
`chunk_codecs` decodes, `shard_files` finds chunks within shards, and `webknossos` reads what a dataset says of layers.
"""
