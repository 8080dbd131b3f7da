"""Add levels to volumes that somebody else made, in place.

May import all formats. Begin with `downsample`: it finds out what is left to add (`zarr_additions`,
`precomputed_additions`), runs an ordinary export into a folder of the volume, and then lets the volume's metadata name
the new levels (`metadata_files`). `downsample_options` are its options.
"""
