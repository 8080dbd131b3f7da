"""Servers that tests start, and files that they write and read. All are real, not mocks."""
