"""Folders and buckets that are written: URLs, credentials, whole files, zarr stores, and what may be replaced.

May import `sources` (for errors) and what is below it; knows nothing of exports. Begin with `buckets` (`BucketUrl`),
then `files` (whole files by name), `zarr_stores` (zarr stores by URL) and `targets` (the store of an export).
"""
