"""Time travel: one export of supervoxels, and a table of their roots for each version.

May import `export`, `client` and everything below. A store OUT is a folder or a prefix in a bucket::

    OUT/versions.json           what the store is of; it is written last, so that a store with it is complete
    OUT/volume.zarr             the supervoxels, an ordinary export whose shards are aligned to graph chunks
    OUT/supervoxels.parquet     supervoxel, its graph chunk, voxels and box, sorted by supervoxel
    OUT/roots/NAME.parquet      the root of each supervoxel at one moment, in the same rows

A version exists if its table does. Begin with `version_store` (what lies where); `opened_versions` is the reading side,
`create_store` and `add_version` the writing one. Tables are exports too (`tables.table_export`), of rows in place of
voxels.
"""
