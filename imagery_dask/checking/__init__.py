"""Checks of volumes that this program need not have written: whether every chunk decodes, and whether levels agree.

Begin with `check_volume` (which chunks and samples are read, on which workers). `stored_tasks` are what workers run,
`level_pairs` says which voxels of two levels belong together, `level_methods` compares them by each method of
downsampling, and `volume_report` is the result.
"""
