"""Servers and files that tests start, write and read; they are real, not mocks."""
