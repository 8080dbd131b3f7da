"""Programs of other packages, each run by the Python of an environment with that package and without this one.

``SCRIPT write FOLDER`` writes stores and what the package itself reads from them, ``SCRIPT read STORE ... FOLDER`` what
it reads from stores of ours. Begin with `stores`, which runs them.
"""
