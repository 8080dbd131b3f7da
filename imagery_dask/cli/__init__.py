"""The command line: each command converts its arguments and calls the package. Only this folder and `demo` print.

Every other folder may be imported, but inside functions only: ``--help`` and shell completion must not load array
libraries. Begin reading in `main`, which lists the commands, and in `formats`, which makes the flags of ``export`` and
``plan``.
"""

from imagery_dask.cli.main import main

__all__ = ["main"]
