"""Clusters: from a word, a YAML file or an address to a dask `Client`, and what its workers have."""

from imagery_dask.cluster.connect import LOST, WAIT_S, connect
from imagery_dask.cluster.files import ClusterFile, load_cluster_file
from imagery_dask.cluster.room import Room, dashboard_address, room_of, thread_memory
from imagery_dask.cluster.waiting import job_words

__all__ = [
    "LOST",
    "WAIT_S",
    "ClusterFile",
    "Room",
    "connect",
    "dashboard_address",
    "job_words",
    "load_cluster_file",
    "room_of",
    "thread_memory",
]
