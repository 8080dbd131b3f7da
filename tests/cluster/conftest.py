"""A real SLURM, the shipped cluster file filled in for it, and the warnings that the package logs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster.processes import NO_DASHBOARD
from cluster.slurm import Slurm, SlurmUnavailable, slurm

SLURM_FILE = Path(__file__).parents[2] / "cluster_configs" / "slurm.yaml"


@pytest.fixture(scope="session")
def batch_system() -> Iterator[Slurm]:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    folder = Path(
        tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
    )  # short, since the path of a socket has at most 108 characters
    try:
        with slurm(folder) as running:
            yield running
    except SlurmUnavailable as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster_file(tmp_path: Path, batch_system: Slurm, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill in the shipped cluster file for this machine."""
    for name, value in batch_system.env.items():
        monkeypatch.setenv(name, value)
    content = yaml.safe_load(SLURM_FILE.read_text())
    content |= {"workers": 2, "worker_memory": "1GiB", "retire_before": "1m"}
    content["arguments"] |= {
        "queue": batch_system.partition,
        "walltime": "00:05:00",
        "interface": "lo",
        "local_directory": str(tmp_path / "scratch"),
        "log_directory": str(tmp_path / "logs"),
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "worker_extra_args": list(NO_DASHBOARD),
    }
    file = tmp_path / "slurm.yaml"
    file.write_text(yaml.safe_dump(content))
    return file
