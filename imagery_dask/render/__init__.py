"""Pictures: grey pages, masks, labels and overlays of planes of voxels, and the bytes of PNG and TIFF files.

`pages` turns a plane of voxels into pixels and pixels into a file; `overlays` draws objects in color over imagery, with
the drawing in `canvas` and the colors in `palettes`; `save` writes the slices of an array to a local folder. All but
`save` are pure functions on arrays. May import arrays, sources, model, geometry and kernels, and no exports. Begin
reading at `pages`.
"""
