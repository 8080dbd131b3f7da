"""Clusters: connect a dask `Client` to what `--cluster` names, and keep its workers running.

This folder imports `sources` and what is below it, never `export` or `records`. Begin with `connecting.connect`; then
read `files` (the keys of YAML files), `starting`, and `replacing` (new workers for those that ended).
Names are imported when they are first used: most of them load dask.distributed, `batch_jobs` does not.
"""

from typing import TYPE_CHECKING

from imagery_dask.lazy_names import lazy_names

if TYPE_CHECKING:
    from imagery_dask.cluster.batch_jobs import DriverJob, describe_jobs, is_listed, job_details, system_of
    from imagery_dask.cluster.connecting import (
        LOST,
        WAIT_S,
        WorkerResources,
        connect,
        dashboard_address,
        resources_of,
        thread_memory,
    )
    from imagery_dask.cluster.driver import driver_script, submit_driver
    from imagery_dask.cluster.files import ClusterFile, load_cluster_file
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "imagery_dask.cluster.batch_jobs": ["DriverJob", "describe_jobs", "is_listed", "job_details", "system_of"],
            "imagery_dask.cluster.files": ["ClusterFile", "load_cluster_file"],
            "imagery_dask.cluster.driver": ["driver_script", "submit_driver"],
            "imagery_dask.cluster.connecting": [
                "LOST",
                "WAIT_S",
                "connect",
                "WorkerResources",
                "dashboard_address",
                "resources_of",
                "thread_memory",
            ],
        },
    )

__all__ = [
    "LOST",
    "WAIT_S",
    "ClusterFile",
    "DriverJob",
    "WorkerResources",
    "connect",
    "dashboard_address",
    "describe_jobs",
    "driver_script",
    "is_listed",
    "job_details",
    "load_cluster_file",
    "resources_of",
    "submit_driver",
    "system_of",
    "thread_memory",
]
