"""Encodings whose decoders trust a chunk: a damaged one ends the process, takes its memory or gives wrong voxels.

`compresso_chunks` decodes with numpy and checks all that the format repeats. `crackle_chunks` verifies the checksums of
the format; its decoder runs in a `decoder_process`, which may crash. `picture_sizes` looks at the headers of pictures.
"""
