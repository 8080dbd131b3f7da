"""The command line: arguments become client calls. The only place that prints."""

from imagery_dask.cli.main import main

__all__ = ["main"]
