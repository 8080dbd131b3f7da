"""Encodings of segmentations whose own decoders trust a chunk: a damaged one ends the process or gives wrong ids.

`compresso_chunks` decodes with numpy and checks all that the format repeats. `crackle_chunks` verifies the checksums of
the format; its decoder runs in a `decoder_process`, which may crash. Imports nothing of the package but annotations.
"""
