"""Programs of other packages, each run by the Python of an environment with that package; napari's has ours too.

``SCRIPT write FOLDER`` writes stores and what the package itself reads from them, ``SCRIPT read STORE ... FOLDER`` what
it reads from stores of ours. Begin with `stores`, which runs them.
"""
