"""What all formats share: `Export`, its inputs and plan, how it runs, and the two states of a run.

May import everything below `imagery_dask.export`, and no other folder of it. Begin with `base`, which is all that a
format implements; `inputs` brings arrays to one form, `plans` is the plan as data, `run_states` has `NewRun` and
`StartedRun`, and `run_options` the cluster and limits of a run.
"""
