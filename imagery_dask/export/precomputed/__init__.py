"""Neuroglancer precomputed volumes: `to_precomputed` and what it writes.

`precomputed_options` has the options and the choice of encodings, `to_precomputed` the export; `precomputed_level`
writes the chunks of one mip, `sharded_level` the shards. `sharding` says which chunks a shard holds, `shard_file` how
they lie in it. May import export/multiscale and everything below; not the other formats. Begin reading at
`precomputed_options`, then `to_precomputed`.
"""
