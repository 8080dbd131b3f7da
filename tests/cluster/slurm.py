"""Run SLURM with one node on this machine: its own munge, controller and node daemon, on free ports, as this user.

It works as root on loopback, without systemd, cgroups or containers. It writes to the given folder only, and its
processes have ended when the ``with`` block ends.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.ports import free_ports

START_TIMEOUT_S = 30.0
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
PARTITION = "tests"

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
InactiveLimit=0
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory=16000 State=UNKNOWN
PartitionName={partition} Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class SlurmUnavailable(RuntimeError):
    """SLURM is not installed."""


@dataclass(frozen=True)
class Slurm:
    """A running SLURM.

    Attributes
    ----------
    env
        Environment variables with which ``sbatch`` and the like use this SLURM.
    folder
        Folder of the logs.
    partition
        Partition (queue) to submit to.
    """

    env: dict[str, str]
    folder: Path
    partition: str = PARTITION

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands and return its output."""
        env = {**os.environ, **self.env}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout

    def jobs(self) -> list[str]:
        """Return the ids of pending and running jobs."""
        return self.run("squeue", "--noheader", "--format=%i").split()


@contextmanager
def slurm(folder: Path, cpus: int = 8) -> Iterator[Slurm]:
    """Run SLURM with a node of `cpus` CPUs in an empty folder, whose path must be short since it holds sockets.

    Raises
    ------
    SlurmUnavailable
        A program is not installed.
    """
    programs = {name: _program(name) for name in PROGRAMS}
    folder.chmod(0o755)  # munge requires this mode
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    controller_port, node_port = free_ports(2)
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0], user=_user(), folder=folder, cpus=cpus, partition=PARTITION,
            controller_port=controller_port, node_port=node_port,
        )
    )  # fmt: skip
    for name in ("state", "spool"):
        (folder / name).mkdir()
    munge = {"key-file": key, "socket": f"{folder}/munge.socket", "pid-file": f"{folder}/munge.pid",
             "log-file": f"{folder}/munge.log", "seed-file": f"{folder}/munge.seed"}  # fmt: skip
    running = Slurm({"SLURM_CONF": str(configuration)}, folder)
    env = {**os.environ, **running.env}
    with ExitStack() as stack:
        options = [f"--{name}={value}" for name, value in munge.items()]
        stack.enter_context(_process([programs["munged"], "--foreground", "--force", *options], env, folder))
        _wait("munge", (folder / "munge.socket").exists, folder)
        for name in ("slurmctld", "slurmd"):
            stack.enter_context(_process([programs[name], "-D", "-f", str(configuration)], env, folder))
        _wait("an idle node", lambda: _idle(running), folder)
        stack.callback(_cancel_all, running)
        yield running


def _idle(running: Slurm) -> bool:
    try:
        return running.run("sinfo", "--noheader", "--format=%T").strip() == "idle"
    except subprocess.CalledProcessError:
        return False


def _cancel_all(running: Slurm) -> None:
    if jobs := running.jobs():
        with suppress(
            subprocess.CalledProcessError
        ):  # fails if a job has ended meanwhile; the loop below waits for all
            running.run("scancel", "--signal=KILL", *jobs)
    deadline = time.monotonic() + 10
    while running.jobs() and time.monotonic() < deadline:
        time.sleep(0.2)


@contextmanager
def _process(command: Sequence[str], env: Mapping[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{Path(command[0]).name}.out").open("wb") as output:
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(what: str, ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if time.monotonic() > deadline:
            outputs = {file.name: file.read_text(errors="replace")[-3000:] for file in folder.glob("*.out")}
            logs = "\n".join(f"{name}:\n{text}" for name, text in outputs.items())
            raise RuntimeError(f"no {what} within {START_TIMEOUT_S:.0f} s\n{logs}")
        time.sleep(0.1)


def _program(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if path is None:
        raise SlurmUnavailable(f"slurm-wlm and munge are not installed ({name} is missing)")
    return path


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
