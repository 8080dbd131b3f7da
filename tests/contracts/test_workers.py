"""Threads of this process, and the workers of a dask cluster, keep the contract of `Workers`."""

from __future__ import annotations

import time

import pytest
from contracts.workers import THREADS, Log, WorkersContract
from distributed import Client

from imagery_dask.run.dask_workers import DaskWorkers
from imagery_dask.run.thread_workers import ThreadWorkers
from imagery_dask.run.workers import Workers


class TestThreads(WorkersContract):
    """Threads of this process."""

    @pytest.fixture
    def workers(self) -> Workers:
        return ThreadWorkers(THREADS)

    def settle(self, log: Log) -> None:
        assert log.at_once == 0


class TestCluster(WorkersContract):
    """Workers of a dask cluster, which are threads of this process so that the tests see what blocks do."""

    @pytest.fixture
    def workers(self, threads: Client) -> Workers:
        return DaskWorkers(threads)

    def settle(self, log: Log) -> None:
        before = -1
        while log.at_once or len(log.begun) != before:
            before = len(log.begun)
            time.sleep(0.3)
