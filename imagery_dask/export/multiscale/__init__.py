"""Volumes with levels of several resolutions, whatever the format.

May import `export.core`, and formats import it. Begin with `volumes`: an `Export` of volumes with levels.
`level_layout` cuts levels into chunks, shards and stages; `levels` has the tasks that write them.
"""
