"""Clusters: connect a dask `Client` to what `--cluster` names, and keep its workers running.

This folder imports `sources` and what is below it, never `export` or `records`. Begin with `connecting.connect`; then
read `files` (the keys of YAML files), `starting`, `replacing` (new workers for those that ended), and `growing` (more
workers, as long as they help).
Names are imported when they are first used: most of them load dask.distributed, `batch_jobs` and `resources` do not.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.cluster.batch_jobs import DriverJob, describe_jobs, is_listed, job_details, system_of
    from imagery_dask.cluster.connecting import LOST, connect, connection, dashboard_address
    from imagery_dask.cluster.driver import driver_script, submit_driver
    from imagery_dask.cluster.files import ClusterFile, load_cluster_file
    from imagery_dask.cluster.growing import Grower, WorkDone
    from imagery_dask.cluster.resources import (
        WorkerResources,
        cores,
        free_memory,
        resources_of,
        thread_memory,
        threads_of_cores,
    )
    from imagery_dask.cluster.starting import WorkerCount
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.cluster.batch_jobs": ["DriverJob", "describe_jobs", "is_listed", "job_details", "system_of"],
            "imagery_dask.cluster.files": ["ClusterFile", "load_cluster_file"],
            "imagery_dask.cluster.growing": ["Grower", "WorkDone"],
            "imagery_dask.cluster.starting": ["WorkerCount"],
            "imagery_dask.cluster.driver": ["driver_script", "submit_driver"],
            "imagery_dask.cluster.connecting": ["LOST", "connect", "connection", "dashboard_address"],
            "imagery_dask.cluster.resources": [
                "WorkerResources",
                "cores",
                "free_memory",
                "resources_of",
                "thread_memory",
                "threads_of_cores",
            ],
        },
    )

# Seconds to wait for the first worker.
WAIT_S = 600.0

__all__ = [
    "LOST",
    "WAIT_S",
    "ClusterFile",
    "DriverJob",
    "Grower",
    "WorkDone",
    "WorkerCount",
    "WorkerResources",
    "connect",
    "connection",
    "cores",
    "dashboard_address",
    "describe_jobs",
    "driver_script",
    "free_memory",
    "is_listed",
    "job_details",
    "load_cluster_file",
    "resources_of",
    "submit_driver",
    "system_of",
    "thread_memory",
    "threads_of_cores",
]
