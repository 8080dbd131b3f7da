"""Clusters: from a word, a YAML file or an address to a dask `Client`, and what its workers have."""

from imagery_dask.cluster.classes import system_of
from imagery_dask.cluster.cluster_file import ClusterFile, load_cluster_file
from imagery_dask.cluster.connect import LOST, WAIT_S, connect
from imagery_dask.cluster.driver import DriverJob, driver_script, submit_driver
from imagery_dask.cluster.replacing import is_listed
from imagery_dask.cluster.resources import WorkerResources, dashboard_address, resources_of, thread_memory
from imagery_dask.cluster.waiting import job_words, said_of_jobs

__all__ = [
    "LOST",
    "WAIT_S",
    "ClusterFile",
    "DriverJob",
    "WorkerResources",
    "connect",
    "dashboard_address",
    "driver_script",
    "is_listed",
    "job_words",
    "load_cluster_file",
    "resources_of",
    "said_of_jobs",
    "submit_driver",
    "system_of",
    "thread_memory",
]
