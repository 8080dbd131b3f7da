"""Folders and buckets to write to: URLs, credentials, atomic writes of files, zarr stores, and their replacement.

May import `sources` (for errors) and what is below it; knows nothing of exports. Begin with `buckets` (`BucketUrl`),
then `files` (files by name), `zarr_stores` (zarr stores by URL) and `targets` (the store of an export).
"""
