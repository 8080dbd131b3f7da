"""The state of an export, from its records alone: `status`, the map of its blocks, and the HTML report.

It may import `export.core` and everything below exports. Begin reading in `status`.
"""
