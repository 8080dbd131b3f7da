"""Tables of supervoxels in Parquet, which are written as exports are: in blocks with receipts, and joined at the end.

May import `export.core` and below. Begin with `table_export`; `supervoxel_table` and `root_table` are the two tables,
`table_files` writes their files, and `root_changes` finds out which roots need looking up again.
"""
