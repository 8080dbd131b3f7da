"""Older names of dask-jobqueue's arguments have their effect in job scripts, whatever else the file sets."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
import pytest

from imagery_dask.cluster import driver_script, load_cluster_file

pytestmark = [
    # Not imported here: when tests are collected, its handler of interrupts would stay for all of them.
    pytest.mark.skipif(
        find_spec("dask_jobqueue") is None, reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'"
    ),
    # Of dask-jobqueue, for older names in dask's configuration.
    pytest.mark.filterwarnings("ignore:.* has been renamed to:FutureWarning"),
    pytest.mark.filterwarnings("ignore:OAR Job memory:UserWarning"),
]

SYSTEMS = ["SLURM", "PBS", "LSF", "SGE", "OAR", "Moab", "HTCondor"]
SHELLS = SYSTEMS[:-1]
OURS = "environment: {A: 1}\npreload: [one.py]\nworker_memory: 2GiB\nretire_before: 5m\n"
# Older names, with a value and the words that a job script then has.
OLD = {
    "env_extra": (["module load em"], "module load em"),
    "extra": (["--resources", "DISK=1"], "--resources DISK=1"),
    "job_extra": (["--constraint=fast"], "--constraint=fast"),
}


def script(folder: Path, system: str, given: dict[str, Any], keys: str = "") -> str:
    """Return the job script of a cluster file."""
    needed = {"disk": "1GB"} if system == "HTCondor" else {"walltime": "2:00" if system == "LSF" else "02:00:00"}
    needed |= {} if "worker_memory" in keys else {"memory": "4GB"}
    lines = "".join(
        f"  {name}: {json.dumps(value)}\n" for name, value in ({"cores": 1, "processes": 1} | needed | given).items()
    )
    path = folder / "cluster.yaml"
    path.write_text(f"cluster: dask_jobqueue.{system}Cluster\nworkers: 1\narguments:\n{lines}{keys}")
    file = load_cluster_file(path)
    return str(file.cluster.job_cls(scheduler="tcp://host:1", name="one", **file.arguments).job_script())


@pytest.mark.parametrize("system", SHELLS)
@pytest.mark.parametrize("ours", ["", OURS], ids=["alone", "with ours"])
@pytest.mark.parametrize("where", ["file", "configuration"])
def test_older_names_have_their_effect(
    system: str, ours: str, where: str, tmp_path: Path, logged_warnings: list[str]
) -> None:
    given = {name: value for name, (value, _) in OLD.items()}
    configured = {f"jobqueue.{system.lower()}.{name.replace('_', '-')}": value for name, value in given.items()}
    with dask.config.set(configured if where == "configuration" else {}):
        text = script(tmp_path, system, given if where == "file" else {}, ours)
    for _, words in OLD.values():
        assert words in text
    assert len(logged_warnings) == len(OLD)
    if ours:
        assert "export A=1" in text
        assert "--preload one.py" in text


@pytest.mark.parametrize("where", ["file", "configuration"])
def test_older_names_of_a_system_without_a_shell(where: str, tmp_path: Path) -> None:
    given = {"extra": ["--resources", "DISK=1"], "job_extra": {"MY.Group": "em"}}
    configured = {f"jobqueue.htcondor.{name.replace('_', '-')}": value for name, value in given.items()}
    with dask.config.set(configured if where == "configuration" else {}):
        text = script(tmp_path, "HTCondor", given if where == "file" else {})
    assert "--resources DISK=1" in text
    assert "MY.Group = em" in text


@pytest.mark.parametrize("system", ["SLURM", "PBS", "Moab"])
@pytest.mark.parametrize("where", ["file", "configuration"])
def test_a_project_is_an_account_where_there_is_one(system: str, where: str, tmp_path: Path) -> None:
    with dask.config.set({f"jobqueue.{system.lower()}.project": "em"} if where == "configuration" else {}):
        assert re.search(r"-A em\n", script(tmp_path, system, {"project": "em"} if where == "file" else {}))


def test_a_project_stays_one_elsewhere(tmp_path: Path, logged_warnings: list[str]) -> None:
    assert '#BSUB -P "em"' in script(tmp_path, "LSF", {"project": "em"})
    assert logged_warnings == []


@pytest.mark.parametrize("where", ["file", "configuration"])
def test_directives_are_skipped(where: str, tmp_path: Path) -> None:
    configured = {"jobqueue.slurm.header-skip": ["--mem"]} if where == "configuration" else {}
    assert "--mem" in script(tmp_path, "SLURM", {})
    with dask.config.set(configured):
        assert "--mem=" not in script(tmp_path, "SLURM", {"header_skip": ["--mem"]} if where == "file" else {})


def test_text_of_several_lines_is_a_list(tmp_path: Path) -> None:
    text = script(tmp_path, "SLURM", {"env_extra": "module load em\nmodule load dask"})
    assert "module load em\nmodule load dask\n" in text


def test_an_older_and_a_new_name_are_refused(tmp_path: Path) -> None:
    given = {"job_script_prologue": ["one"], "env_extra": ["two"]}
    with pytest.raises(ValueError, match=r"line 9: 'env_extra' is the older name of 'job_script_prologue', which is"):
        script(tmp_path, "SLURM", given)
    both = {"jobqueue.slurm.extra": ["--one"], "jobqueue.slurm.worker-extra-args": ["--two"]}
    with (
        dask.config.set(both),
        pytest.raises(ValueError, match=r"line 1: dask's configuration has jobqueue\.slurm\.extra, the older name of"),
    ):
        script(tmp_path, "SLURM", {})


def test_an_argument_overrides_the_configuration(tmp_path: Path, logged_warnings: list[str]) -> None:
    with dask.config.set({"jobqueue.slurm.env-extra": ["configured"]}):
        text = script(tmp_path, "SLURM", {"job_script_prologue": ["own"]})
    assert "own\n" in text
    assert "configured" not in text
    assert logged_warnings == [
        "jobqueue.slurm.env-extra of dask's configuration is not used, since 'arguments' have 'job_script_prologue'."
    ]


def test_the_job_of_a_driver_takes_older_names(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "cluster: dask_jobqueue.SLURMCluster\nworkers: 1\narguments: {cores: 1, memory: 1GB, env_extra: [workers]}\n"
        "driver: {env_extra: [of the driver], job_extra: [--constraint=slow]}\n"
    )
    text = driver_script(load_cluster_file(path), ["export"])
    assert "of the driver\n" in text
    assert "#SBATCH --constraint=slow\n" in text
    assert "workers" not in text
