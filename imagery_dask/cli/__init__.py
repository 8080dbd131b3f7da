"""The command line: arguments become calls of the package. Only this folder and `demo` print.

Every other folder may be imported, but only inside of functions: ``--help`` and shell completion load click and modules
that import no array library. Begin with `main`, which names the commands, and `formats`, which makes the flags of
``export`` and ``plan``.
"""

from imagery_dask.cli.main import main

__all__ = ["main"]
