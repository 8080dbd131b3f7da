"""Speed, memory and requests of this package, its peers and a lower bound, measured in turns.

Begin with `rows`, which lists what is measured. Every measurement is a process of its own (`child`), which runs a
function of `programs` in the environment of the program; `runner` lets the programs of a row take turns, compares their
results before their time counts, and measures each process from outside. `report` makes ``docs/benchmarks.md`` from the
JSON of one run. Nothing that the runner imports is large: Linux counts its memory as that of the processes it starts.
"""
