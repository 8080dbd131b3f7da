"""Neuroglancer's precomputed format: its info, files and shards, and the encodings of its chunks.

Begin with `precomputed_volume`. Decoders that trust their chunks are in `encodings`.
"""
