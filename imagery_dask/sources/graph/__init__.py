"""Servers of chunked graphs (CAVE): the root ids of supervoxels, and a cache of them.

Begin with `roots`; `graph_server` makes the requests.
"""
