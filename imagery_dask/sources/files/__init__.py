"""Files as stored, by key: on disk and over HTTP, and their compression.

Knows nothing of volumes. `local_files` and `http_files` return bytes and their compression, or None for a file that
does not exist; `connections`, `response` and `deadlines` make the requests; `compression` decompresses up to a limit.
"""
