"""Requests for the files of volumes: limits, retries, refusals, credentials, and counts of all of them.

May import `files`, which makes them. Begin with `transport`; knows nothing of the formats of volumes.
"""
