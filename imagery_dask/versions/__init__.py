"""Version stores: supervoxels exported once, each version a table of root ids, any version a lazy remap without server.

May import `client`, `export` and everything below them. Begin with `version_store` (what lies where), then
`opened_versions` (`VersionStore`, the reading side).
"""
