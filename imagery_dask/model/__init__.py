"""What is read, as frozen values: layers and their mips, chunked graphs, label rules, moments and resolved cutouts.

May import `geometry` and numpy; there is no I/O.
Begin with `cutout`, which turns a request and a `layer` into exact voxels.
"""
