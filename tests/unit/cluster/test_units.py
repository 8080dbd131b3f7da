"""Times and sizes have the same meaning in a cluster file and on the command line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from imagery_dask.cli.flags.param_types import DurationType, SizeType
from imagery_dask.cluster import load_cluster_file

SLURM = "cluster: dask_jobqueue.SLURMCluster\narguments: {cores: 1, memory: 1GB, walltime: '%s'}\n"
LOCAL = "cluster: distributed.LocalCluster\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("30s", 30), ("10m", 600), ("10min", 600), ("10 min", 600), ("10 minutes", 600), ("1 hour", 3600),
        ("1h", 3600), ("1.5h", 5400), ("2 hours", 7200), ("1d", 86_400), ("1 day", 86_400), ("2 weeks", 1_209_600),
        ("1e3", 1000),
    ],
)  # fmt: skip
def test_times_are_read(tmp_path: Path, text: str, seconds: float) -> None:
    assert DurationType().convert(text, None, None) == seconds
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    path = tmp_path / "cluster.yaml"
    path.write_text(SLURM % "100-00:00:00" + f"retire_before: {text}\n")
    flags = load_cluster_file(path).arguments["worker_extra_args"]
    # The lifetime is spread over half of the time.
    assert float(flags[flags.index("--lifetime-stagger") + 1].removesuffix("s")) == seconds / 2


@pytest.mark.parametrize("text", ["", "0", "0s", "-1m", "soon", "5 fortnights", "m", "nan", "inf", "10 min 5 s"])
def test_text_that_is_not_a_time_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a time such as 30s, 10m or 2h"):
        DurationType().convert(text, None, None)
    path = tmp_path / "cluster.yaml"
    path.write_text(LOCAL + f"retire_before: '{text}'\n")
    with pytest.raises(ValueError, match="line 2: 'retire_before' must be a time such as 90s, 10m or 1h; got"):
        load_cluster_file(path)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4 * 10**9), ("4GB", 4 * 10**9), ("4gb", 4 * 10**9), ("4GiB", 2**32), ("4Gi", 2**32), ("4 GiB", 2**32),
        ("500MiB", 500 * 2**20), ("1.5 TB", 1_500_000_000_000), ("2000000", 2_000_000), ("1e9", 10**9),
        ("2048k", 2_048_000),
    ],
)  # fmt: skip
def test_sizes_are_read(tmp_path: Path, text: str, size: int) -> None:
    assert SizeType().convert(text, None, None) == size
    path = tmp_path / "cluster.yaml"
    path.write_text(LOCAL + f"worker_memory: {text}\n")
    assert load_cluster_file(path).arguments["memory_limit"] == size


@pytest.mark.parametrize("text", ["", "0", "-4GiB", "much", "4XB", "GiB", "nan", "inf"])
def test_text_that_is_not_a_size_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size such as 4GiB or 500MB"):
        SizeType().convert(text, None, None)
    path = tmp_path / "cluster.yaml"
    path.write_text(LOCAL + f"worker_memory: '{text}'\n")
    with pytest.raises(ValueError, match="line 2: 'worker_memory' must be a size such as 4GiB; got"):
        load_cluster_file(path)
