"""The shipped cluster files: each can be loaded, and its job scripts are as expected.

The expected scripts are under ``expected/``. ``IMAGERY_DASK_WRITE_EXPECTED=1 pytest tests/cluster/test_configs.py``
writes them again; review the difference before committing it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.certificates import certificates

from imagery_dask.cluster import ClusterFile, load_cluster_file

CONFIGS = Path(__file__).parents[2] / "cluster_configs"
EXPECTED = Path(__file__).parent / "expected"
CLASSES = {
    "local": "LocalCluster", "slurm": "SLURMCluster", "lsf": "LSFCluster", "pbs": "PBSCluster", "sge": "SGECluster",
    "ssh": "SSHCluster", "kubernetes": "KubeCluster", "gateway": "GatewayCluster",
}  # fmt: skip
BATCH = ("slurm", "lsf", "pbs", "sge")
ADDITIONS = "environment: {OMP_NUM_THREADS: 1, GREETING: it's $HOME}\npreload: [my_module, /shared/start.py]\n"


def shipped(name: str) -> ClusterFile:
    """Load a shipped cluster file, or skip the test if its package is not installed."""
    try:
        return load_cluster_file(CONFIGS / f"{name}.yaml")
    except ImportError as error:
        reason = str(error)
    assert f"pip install 'imagery_dask[{name}]'." in reason
    pytest.skip(reason)


def compare(name: str, text: str) -> None:
    """Compare text with a file under ``expected/``, or write the file if requested."""
    file = EXPECTED / name
    if os.environ.get("IMAGERY_DASK_WRITE_EXPECTED"):
        file.write_text(text)
    assert text == file.read_text()


def job_script(file: ClusterFile) -> str:
    """Return the job script of a worker, without a scheduler or a batch system."""
    job = file.cluster.job_cls("tcp://10.1.2.3:40000", name="worker-0", python="python", **file.arguments)
    return str(job.job_script())


def test_all_shipped_files_are_tested() -> None:
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {*CLASSES, "tls"}


@pytest.mark.parametrize("name", CLASSES)
def test_each_shipped_file_can_be_loaded(name: str) -> None:
    file = shipped(name)
    assert file.cluster.__name__ == CLASSES[name]
    assert file.workers or name == "ssh"


@pytest.mark.parametrize("name", CLASSES)
def test_each_shipped_file_explains_its_use(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert f"--cluster cluster_configs/{name}.yaml" in text
    assert "# change" in text
    assert "imagery-dask plan" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_tls_file_names_certificates_beside_it(tmp_path: Path) -> None:
    created = certificates(tmp_path / "made", "ours")
    for part in ("ca", "cert", "key"):
        shutil.copy(getattr(created, part), tmp_path / f"{part}.pem")
    shutil.copy(CONFIGS / "tls.yaml", tmp_path)
    file = load_cluster_file(tmp_path / "tls.yaml")
    assert (file.cluster, file.address) == (None, "tls://scheduler.example:8786")
    assert file.security is not None
    assert file.security.tls_client_cert == str(tmp_path / "cert.pem")


@pytest.mark.parametrize("name", BATCH)
def test_job_scripts_are_as_expected(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # dask-jobqueue creates the log folder in it
    compare(f"{name}.sh", job_script(shipped(name)))


@pytest.mark.parametrize("name", BATCH)
def test_job_scripts_with_variables_and_preloads_are_as_expected(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (CONFIGS / f"{name}.yaml").read_text()
    text = text.replace("  cores: 1 ", "  cores: 8 ").replace("  processes: 1 ", "  processes: 2 ")
    text = text.replace("  job_script_prologue: [] ", "  job_script_prologue: [source activate] ")
    file = tmp_path / f"{name}.yaml"
    file.write_text(text + ADDITIONS)
    shipped(name)
    compare(f"{name}-wishes.sh", job_script(load_cluster_file(file)))


def test_the_kubernetes_manifest_is_as_expected() -> None:
    file = shipped("kubernetes")
    from dask_kubernetes.operator.kubecluster.kubecluster import make_cluster_spec

    arguments: dict[str, Any] = dict(file.arguments)
    for name in ("namespace", "resource_timeout"):
        del arguments[name]
    compare("kubernetes.yaml", yaml.safe_dump(make_cluster_spec(n_workers=file.workers, **arguments), sort_keys=False))


def test_the_image_has_the_programs_that_the_operator_calls() -> None:
    text = (CONFIGS / "Dockerfile").read_text()
    for name in ("dask-scheduler", "dask-worker"):
        assert f"/usr/local/bin/{name}" in text
