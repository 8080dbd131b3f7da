"""Slices as picture files: `to_png` and what it writes.

`image_options` has the options and `to_png` the export. `slice_plan` cuts a region into slabs and tiles, `slice_tasks`
reads a slab and writes its slices, `slice_pages` draws a slice, `slice_files` names the files. May import render and
everything below export/multiscale; not the other formats. Begin reading at `image_options`, then `to_png`.
"""
