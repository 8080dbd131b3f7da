"""``python -m imagery_dask``: the command line, in whichever environment Python is."""

from imagery_dask.cli import main

if __name__ == "__main__":
    main()
