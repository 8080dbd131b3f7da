"""Cluster files: conversion of keys to the arguments of each class, and errors that name key and line."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster, SSHCluster

from imagery_dask.cluster import connect, load_cluster_file
from imagery_dask.cluster.starting import LEAVE_INTERRUPTS

LOCAL = "cluster: distributed.LocalCluster\n"
SSH = "cluster: distributed.SSHCluster\narguments: {hosts: [head, one, two]}\n"
SLURM = "cluster: dask_jobqueue.SLURMCluster\narguments: {cores: 1, processes: 2%s}\n"
WORKER_KEYS = "environment: {A: 1, B: it's}\npreload: [one.py, two]\nworker_memory: 2GiB\n"


def write(folder: Path, text: str, name: str = "cluster.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, LOCAL + "arguments:\n  n_workers: 0\n  threads_per_worker: 3\nworkers: 7\n")
    file = load_cluster_file(path)
    assert file.cluster is LocalCluster
    assert file.arguments == {"n_workers": 0, "threads_per_worker": 3}
    assert file.workers == 7


@pytest.mark.parametrize("text", [LOCAL, LOCAL + "arguments:\n", LOCAL + "arguments: {}\nworkers:\n"])
def test_arguments_and_workers_are_optional(tmp_path: Path, text: str) -> None:
    file = load_cluster_file(write(tmp_path, text))
    assert (file.cluster, file.arguments, file.workers) == (LocalCluster, {}, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["must have a key 'cluster'"]),
        ("- a\n- b\n", ["the file is not a mapping; it must have a key 'cluster'"]),
        ("just words", ["the file is not a mapping; it must have a key 'cluster'"]),
        ("arguments: {}\n", ["must have a key 'cluster'"]),
        ("cluster: [unclosed\n", ["is not YAML"]),
        (LOCAL + "argument: {}\n", ["unknown key 'argument'", "adapt, address, arguments, cluster"]),
        (LOCAL + "n_workers: 3\n", ["unknown key 'n_workers'", "adapt, address, arguments, cluster"]),
        (LOCAL + "1: 3\nextra: 4\n", ["line 2", "1 is an unknown key"]),
        (LOCAL + "workers: 0\n", ["'workers' must be a whole number from 1", "got 0"]),
        (LOCAL + "workers: -2\n", ["'workers' must be a whole number from 1", "got -2"]),
        (LOCAL + "workers: 2.5\n", ["'workers' must be a whole number from 1", "got 2.5"]),
        (LOCAL + "workers: true\n", ["'workers' must be a whole number from 1", "got True"]),
        (LOCAL + "workers: many\n", ["'workers' must be a whole number from 1", "got 'many'"]),
        (LOCAL + "arguments: [1, 2]\n", ["arguments", "[1, 2]"]),
        (LOCAL + "arguments: words\n", ["arguments", "'words'"]),
        ("cluster: distributed.LocalClutser\n", ["'cluster' names no class", "distributed.LocalClutser"]),
        ("cluster: LocalCluster\n", ["'cluster' names no class", "LocalCluster"]),
        ("cluster: 5\n", ["'cluster' names no class", "5"]),
        ("cluster:\n", ["'cluster' names no class"]),
        ("cluster: os.path\n", ["'cluster' names no class", "os.path"]),
        ("cluster: .LocalCluster\n", ["'cluster' names no class", ".LocalCluster"]),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match="cluster.yaml") as caught:
        load_cluster_file(path)
    assert str(path) in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_certificates_need_an_encrypted_scheduler(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    path = write(tmp_path, "address: tcp://host:1\nsecurity: {ca: ca, cert: cert, key: key}\n")
    with pytest.raises(ValueError, match="line 1: 'security' is for an encrypted scheduler, whose address is tls://"):
        load_cluster_file(path)


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "cluster: dask_of_the_moon.MoonCluster\n")
    with pytest.raises(ImportError, match="dask_of_the_moon.*pip install") as caught:
        load_cluster_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (LOCAL + "workers: 2\nworker: 2\n", 3, "unknown key 'worker' (did you mean 'workers'?)"),
        (LOCAL + "# why\n\nworkers: two\n", 4, "'workers' must be a whole number from 1; got 'two'"),
        (LOCAL + "workers: 2\nworkers: 3\n", 3, "duplicate key 'workers' (first on line 2)"),
        (LOCAL + "a: [\n", 3, "is not YAML"),
        (
            LOCAL + "arguments:\n  n_workers: 1\n  memory_limt: 1GiB\n",
            4,
            "'memory_limt' (did you mean 'memory_limit'?)",
        ),
        (SSH + "workers: 2\nadapt: {maximum: 3}\n", 4, "give one of them"),
        (LOCAL + "adapt: 3\n", 2, "'adapt' must be {minimum: N, maximum: N}; got 3"),
        (LOCAL + "adapt:\n  minimum: 1\n", 3, "'adapt' needs a 'maximum'"),
        (LOCAL + "adapt:\n  minimum: 0\n  maximum: 3\n", 3, "'minimum' must be a whole number from 1; got 0"),
        (LOCAL + "adapt:\n  minimum: 4\n  maximum: 3\n", 4, "less than 'minimum': 3 < 4"),
        (LOCAL + "adapt:\n  maximal: 3\n", 3, "unknown key 'maximal' (did you mean 'maximum'?)"),
        (LOCAL + "environment: [A]\n", 2, "'environment' must be a mapping of variables to values"),
        (LOCAL + "environment:\n  A: yes\n", 3, "the variable A must be text or a number; got True (in quotes"),
        (LOCAL + "environment:\n  A B: c\n", 3, "'A B' is not a valid name of a variable"),
        (LOCAL + "preload: 3\n", 2, "'preload' must be a module or a file, or a list of them; got 3"),
        (LOCAL + "worker_memory: much\n", 2, "'worker_memory' must be a size such as 4GiB; got 'much'"),
        (LOCAL + "worker_memory: 4\n", 2, "'worker_memory' must be a size such as 4GiB; got 4 bytes."),
        (LOCAL + "arguments: {env: [A]}\nenvironment: {A: 1}\n", 3, "'env' in 'arguments' must be a mapping"),
        (LOCAL + "environment:\n  D: 2024-13-45\n", 3, "the value of 'D' is invalid: month must be in 1..12"),
        (LOCAL + "worker_memory: 0\n", 2, "'worker_memory' must be a size"),
        (LOCAL + "arguments: {memory_limit: 1GiB}\nworker_memory: 2GiB\n", 3, "given twice"),
        (LOCAL + "arguments: {processes: false}\nenvironment: {A: b}\n", 3, "no environment of their own"),
        ("cluster: distributed.SpecCluster\nsecurity: temporary\n", 2, "takes no certificates here"),
        (LOCAL + "security: yes\n", 2, "'security' must be {ca: FILE, cert: FILE, key: FILE}, or 'temporary'"),
        (LOCAL + "security:\n  ca: absent.pem\n", 3, "'ca': there is no file"),
        (LOCAL + "security:\n  certificate: a\n", 3, "unknown key 'certificate'"),
        (LOCAL + "security: {cert: a, key: b}\n", 2, "'security' needs 'ca'"),
        (LOCAL + "address: tcp://host:1\n", 2, "'cluster' starts a cluster and 'address' joins one"),
        ("address: tcp://host:1\nworkers: 3\n", 2, "'workers' is for clusters that are started"),
        (LOCAL + "retire_before: 10m\n", 2, "workers of LocalCluster have no walltime"),
        (SSH + "retire_before: 10m\n", 3, "workers of SSHCluster have no walltime"),
        (LOCAL + "retire_before: soon\n", 2, "'retire_before' must be a time such as 90s, 10m or 1h; got 'soon'"),
        (LOCAL + "retire_before: 0\n", 2, "'retire_before' must be a time such as 90s, 10m or 1h; got 0"),
        (LOCAL + "retire_before: -5m\n", 2, "'retire_before' must be a time such as 90s, 10m or 1h; got '-5m'"),
        (LOCAL + "retire_before: true\n", 2, "'retire_before' must be a time such as 90s, 10m or 1h; got True"),
        ("address: tcp://host:1\nretire_before: 5m\n", 2, "'retire_before' is for clusters that are started"),
        ("address: host\n", 1, "'address' must be tcp://HOST:PORT"),
        ("address: tcp://host:1\nsecurity: temporary\n", 2, "'security' must be"),
        ("cluster: distributed.deploy.Cluster\npreload: a\n", 2, "does not know what Cluster calls 'preload'"),
        ("cluster: distributed.LocalClutser\n", 1, "(did you mean 'LocalCluster'?)"),
        ("cluster: distributed.deplyo.LocalCluster\n", 1, "there is no module 'distributed.deplyo'"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match="cluster.yaml") as caught:
        load_cluster_file(path)
    assert str(caught.value).startswith(f"{path}, line {line}"), str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("dask_jobqueue.SLURMCluster", "dask_jobqueue", "imagery_dask[slurm]"),
        ("dask_jobqueue.PBSCluster", "dask_jobqueue", "imagery_dask[pbs]"),
        ("dask_jobqueue.OARCluster", "dask_jobqueue", "imagery_dask[clusters]"),
        ("dask_kubernetes.operator.KubeCluster", "dask_kubernetes", "imagery_dask[kubernetes]"),
        ("dask_gateway.GatewayCluster", "dask_gateway", "imagery_dask[gateway]"),
        ("distributed.SSHCluster", "asyncssh", "imagery_dask[ssh]"),
    ],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    path = write(tmp_path, f"# a comment\ncluster: {name}\n")
    with pytest.raises(ImportError) as caught:
        load_cluster_file(path)
    assert str(caught.value) == (f"{path}, line 2: {name} needs the package {package!r}; pip install '{extra}'.")


def test_worker_keys_become_arguments_of_a_local_cluster(tmp_path: Path) -> None:
    file = load_cluster_file(write(tmp_path, LOCAL + "arguments: {env: {C: d, A: 0}, preload: three}\n" + WORKER_KEYS))
    assert file.arguments == {
        "env": {"A": "1", "B": "it's", "C": "d"}, "preload": ["three", "one.py", "two"], "memory_limit": 2 * 2**30
    }  # fmt: skip


def test_worker_keys_become_arguments_of_an_ssh_cluster(tmp_path: Path) -> None:
    pytest.importorskip("asyncssh", reason="needs asyncssh: pip install 'imagery_dask[ssh]'")
    file = load_cluster_file(write(tmp_path, SSH + WORKER_KEYS))
    assert file.cluster is SSHCluster
    assert file.arguments == {
        "hosts": ["head", "one", "two"],
        "worker_options": {
            "env": {"A": "1", "B": "it's"}, "preload": ["one.py", "two"], "memory_limit": 2 * 2**30
        },
    }  # fmt: skip


@pytest.mark.parametrize("own", ["", ", job_script_prologue: [activate], worker_extra_args: [--resources, GPU=1]"])
def test_worker_keys_become_arguments_of_a_batch_system(tmp_path: Path, own: str) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    file = load_cluster_file(write(tmp_path, SLURM % own + WORKER_KEYS))
    exports = ["export A=1", """export B='it'"'"'s'"""]
    flags = ["--preload", "one.py", "--preload", "two"]
    assert file.arguments == {
        "cores": 1, "processes": 2, "memory": "4.00GiB",
        "job_script_prologue": [*exports, *(["activate"] if own else [])],
        # dask-jobqueue's default walltime is half an hour; workers leave a tenth of it earlier.
        "worker_extra_args": [
            *(["--resources", "GPU=1"] if own else []), *flags, "--lifetime", "1530s", "--lifetime-stagger", "90s"
        ],
    }  # fmt: skip


WALLTIME = "cluster: dask_jobqueue.%s\narguments: {cores: 1, memory: 1GB, walltime: '%s'}\n"


@pytest.mark.parametrize(
    ("kind", "walltime", "retire_before", "override_s", "flags"),
    [
        ("SLURMCluster", "04:00:00", "10m", None, ["13500s", "300s"]),
        ("SLURMCluster", "04:00:00", "10m", 3600, ["9000s", "1800s"]),
        ("SLURMCluster", "1-12", "1h", None, ["124200s", "1800s"]),
        ("SLURMCluster", "90", "1m", None, ["5310s", "30s"]),
        ("SLURMCluster", "10:30", "30", None, ["585s", "15s"]),
        ("SLURMCluster", "00:01:00", "40s", None, ["15s", "5s"]),
        ("SLURMCluster", "UNLIMITED", "", None, None),
        ("LSFCluster", "4:00", "", None, ["13500s", "300s"]),
        ("LSFCluster", "240/host1", "10m", None, ["13500s", "300s"]),
        ("PBSCluster", "14400", "10m", None, ["13500s", "300s"]),
        ("SGECluster", "00:10:00", "", None, ["510s", "30s"]),
    ],
)
def test_workers_leave_before_the_walltime(
    tmp_path: Path, kind: str, walltime: str, retire_before: str, override_s: float | None, flags: list[str] | None
) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    text = WALLTIME % (kind, walltime) + (f"retire_before: {retire_before}\n" if retire_before else "")
    arguments = load_cluster_file(write(tmp_path, text), override_s).arguments
    assert arguments.get("worker_extra_args") == (flags and ["--lifetime", flags[0], "--lifetime-stagger", flags[1]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            WALLTIME % ("SLURMCluster", "00:10:00") + "retire_before: 10m\n",
            "600 s is not less than the walltime of 600 s",
        ),
        (WALLTIME % ("SLURMCluster", "UNLIMITED") + "retire_before: 10m\n", "no walltime .walltime: 'UNLIMITED'."),
        (
            "cluster: dask_jobqueue.SLURMCluster\narguments:\n  {cores: 1, worker_extra_args: [--lifetime, 3h]}\n"
            "retire_before: 10m\n",
            "worker_extra_args have '--lifetime' as well",
        ),
        ("cluster: dask_jobqueue.HTCondorCluster\narguments: {}\n\nretire_before: 5m\n", "no walltime"),
    ],
)
def test_retire_before_without_enough_walltime_is_refused(tmp_path: Path, text: str, words: str) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=words) as caught:
        load_cluster_file(path)
    assert str(caught.value).startswith(f"{path}, line {len(text.splitlines())}: 'retire_before' (--retire-before): ")


@pytest.mark.parametrize("extra_args", ["[--lifetime, 3h]", "--resources GPU=1 --lifetime 3h"])
def test_a_lifetime_in_the_arguments_of_a_file_is_kept(tmp_path: Path, extra_args: str) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    file = load_cluster_file(write(tmp_path, SLURM % f", worker_extra_args: {extra_args}"))
    assert file.arguments["worker_extra_args"] == (["--lifetime", "3h"] if extra_args[0] == "[" else [extra_args])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("os.system", "a builtin_function_or_method"), ("subprocess.Popen", "another class"),
        ("shutil.rmtree", "a function"), ("distributed.Client", "another class"), ("os.environ", "a _Environ"),
        ("pathlib.Path.unlink", "module"), ("distributed.deploy.ssh.SSHCluster", None), ("builtins.eval", "a builtin"),
    ],
)  # fmt: skip
def test_only_cluster_classes_are_called(tmp_path: Path, name: str, kind: str | None) -> None:
    path = write(tmp_path, f"cluster: {name}\narguments: {{}}\n")
    if kind is None:
        assert load_cluster_file(path).cluster is SSHCluster
        return
    with pytest.raises(ValueError, match=f"line 1: 'cluster' names no class.*{kind}"):
        load_cluster_file(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cluster: distributed.SpecCluster\narguments:\n  workers:\n    a:\n      cls: os.system\n", 5),
        ("cluster: distributed.SpecCluster\narguments:\n  scheduler: {cls: subprocess.Popen}\n", 3),
        (LOCAL + "arguments:\n  processes: true\n  worker_class: os.system\n", 4),
    ],
)
def test_only_classes_of_processes_are_called(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ValueError, match=f"line {line}: '(cls|worker_class)' names no class of a scheduler"):
        load_cluster_file(write(tmp_path, text))


def test_classes_of_processes_are_accepted(tmp_path: Path) -> None:
    text = "arguments: {worker: {cls: distributed.Nanny}, workers: {a: {cls: absent.W}}}\n"
    assert load_cluster_file(write(tmp_path, "cluster: distributed.SpecCluster\n" + text)).arguments["worker"] == {
        "cls": "distributed.Nanny"
    }


@pytest.mark.parametrize(
    "name", ["distributed.SpecCluster", "distributed.deploy.Cluster", "dask_jobqueue.OARCluster",
             "dask_gateway.GatewayCluster", "dask_kubernetes.operator.KubeCluster"],
)  # fmt: skip
def test_all_cluster_classes_of_dask_are_accepted(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name.partition(".")[0])
    assert load_cluster_file(write(tmp_path, f"cluster: {name}\n")).cluster.__name__ == name.rpartition(".")[2]


def test_the_home_folder_in_a_folder_of_logs_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    monkeypatch.setenv("HOME", str(tmp_path))
    file = load_cluster_file(write(tmp_path, SLURM % ", log_directory: ~/logs" + "driver: {log_directory: ~/driver}\n"))
    assert file.arguments["log_directory"] == f"{tmp_path}/logs"
    assert file.driver["log_directory"] == f"{tmp_path}/driver"
    with pytest.raises(ValueError, match="~no-such-user-here, the home folder of a user whom this machine does not"):
        load_cluster_file(write(tmp_path, SLURM % ", log_directory: ~no-such-user-here/logs"))


def test_numbers_keep_their_spelling(tmp_path: Path) -> None:
    """YAML 1.1 reads 12:00:00 as a number of base 60, and 0755 as a number of base 8."""
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    text = SLURM % ", walltime: 12:00:00" + "driver: {walltime: 1:00:00}\nenvironment: {MODE: 0755, T: 1:30, F: 1.50}\n"
    file = load_cluster_file(write(tmp_path, text))
    assert (file.arguments["walltime"], file.driver["walltime"]) == ("12:00:00", "1:00:00")
    assert file.arguments["job_script_prologue"] == ["export MODE=0755", "export T=1:30", "export F=1.50"]


def test_booleans_of_yaml_1_1_are_booleans(tmp_path: Path) -> None:
    file = load_cluster_file(write(tmp_path, LOCAL + "arguments: {processes: no, silence_logs: Off, host: 'no'}\n"))
    assert file.arguments == {"processes": False, "silence_logs": False, "host": "no"}


def test_keys_of_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    """Keys of an anchor may be repeated; other duplicate keys are refused."""
    base = LOCAL + "environment: &base {A: 01, B: 2}\narguments:\n  env:\n    <<: *base\n    B: 3\n"
    assert load_cluster_file(write(tmp_path, base)).arguments["env"] == {"A": "01", "B": "2"}
    with pytest.raises(ValueError, match=r"line 7: duplicate key 'B' \(first on line 6\)"):
        load_cluster_file(write(tmp_path, base + "    B: 4\n"))


def test_an_anchor_within_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cluster\.yaml: an anchor .* its own alias"):
        load_cluster_file(write(tmp_path, LOCAL + "arguments: &a {x: *a}\n"))


def test_only_workers_of_batch_systems_retire(tmp_path: Path) -> None:
    path = write(tmp_path, "address: tcp://host:1\n")
    for spec, seconds, words in (
        ("local", 60, "cluster file .YAML. starts on a batch system; the cluster is 'local'"),
        (None, 60, "the cluster is 'local'"),
        (path, 60, "line 1: --retire-before .* this file joins one"),
        (path, 0, "a number of seconds above 0; got 0"),
        (path, "5m", "a number of seconds above 0; got '5m'"),
    ):
        with pytest.raises(ValueError, match=words), connect(spec, retire_before_s=seconds):  # type: ignore[arg-type]
            pass


def test_a_class_without_an_environment_is_named(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    path = write(tmp_path, "cluster: dask_jobqueue.HTCondorCluster\nenvironment: {A: 1}\n")
    with pytest.raises(ValueError, match="line 2: this package does not know what HTCondorCluster calls 'environment'"):
        load_cluster_file(path)


def has_preloaded(dask_worker: Any) -> bool:
    import os

    return os.environ["COLOR"] == "green" and "preloaded_by_a_test" in os.environ


@pytest.mark.long
def test_worker_keys_reach_the_workers(tmp_path: Path) -> None:
    preload = write(tmp_path, "import os\nos.environ['preloaded_by_a_test'] = 'yes'\n", "own_preload.py")
    text = LOCAL + "arguments: {threads_per_worker: 1, host: 127.0.0.1, dashboard_address: '127.0.0.1:0'}\n"
    text += f"workers: 2\nenvironment: {{COLOR: green}}\npreload: {preload}\nworker_memory: 1GiB\n"
    with connect(write(tmp_path, text)) as client:
        client.wait_for_workers(2, timeout=30)
        answers = client.run(has_preloaded)
        assert list(answers.values()) == [True, True]
        limits = {worker["memory_limit"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
        assert limits == {2**30}
        assert LEAVE_INTERRUPTS in client.cluster.worker_spec[0]["options"]["preload"]


def test_adapt_starts_with_the_minimum(tmp_path: Path) -> None:
    text = LOCAL + "arguments: {processes: false, n_workers: 0, dashboard_address: '127.0.0.1:0'}\n"
    with connect(write(tmp_path, text + "adapt: {minimum: 2, maximum: 4}\n"), wait_s=30) as client:
        client.wait_for_workers(2, timeout=30)


# dask does not close a cluster that failed to start.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_error_of_a_class_is_one_line_with_the_path(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'imagery_dask[clusters]'")
    path = write(tmp_path, "cluster: dask_jobqueue.SLURMCluster\nworkers: 1\n")
    words = "SLURMCluster did not start: You must specify how much cores"
    with pytest.raises(ValueError, match=words) as caught, connect(path):
        pass
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    del caught
    gc.collect()


def test_ssh_needs_a_host_for_each_worker(tmp_path: Path) -> None:
    pytest.importorskip("asyncssh", reason="needs asyncssh: pip install 'imagery_dask[ssh]'")
    path = write(tmp_path, SSH)
    with pytest.raises(ValueError, match="5 workers need 6 hosts.*'hosts' has 3"), connect(path, workers=5):
        pass
