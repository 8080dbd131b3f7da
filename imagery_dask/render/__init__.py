"""Pictures: grey pages, masks, labels and overlays of planes of voxels, figures of them, and PNG and TIFF files.

`pages` turns a plane of voxels into pixels and pixels into a file; `overlays` draws objects in color over imagery, with
the drawing in `canvas` and the colors in `palettes` and `clashes`; `save` writes the slices of an array to a local
folder. `show` makes figures, which need matplotlib, and `slice_browser` a widget, which needs anywidget. All others are
pure functions on arrays. May import arrays, sources, model, geometry and kernels, and no exports. Begin reading at
`pages`.
"""
