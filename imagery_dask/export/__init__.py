"""Writers: one for each format, all of them fed by blocks.

`core`, `execution`, `planning`, `reports` and `multiscale` are shared; `zarr`, `precomputed` and `images` are the
formats, which do not import each other. Exports import every folder but the client, the command line and the demo.
Begin reading in `export.zarr.to_zarr`.
"""
