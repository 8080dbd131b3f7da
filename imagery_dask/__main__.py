"""Entry point of ``python -m imagery_dask``: the command line, in the environment of that Python."""

from imagery_dask.cli import main

if __name__ == "__main__":
    main()
