"""Root ids of supervoxels: from servers of chunked graphs (CAVE), or from stored tables.

Begin with `roots`; `graph_server` makes the requests, `root_cache` keeps answers, and `root_tables` reads the tables of
version stores.
"""
