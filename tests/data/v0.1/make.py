"""Make the files of this folder: exports, plans and cluster files as version 0.1 wrote and read them.

Run it with the package of commit fe6ded5 only::

    git worktree add /tmp/v0.1 fe6ded5
    PYTHONPATH=/tmp/v0.1:/tmp/v0.1/tests python tests/data/v0.1/make.py

The script works in `ROOT` and copies the results to this folder, with placeholders for values that differ between
machines (README.md). It replaces the results of an earlier run, and keeps README.md and itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

import imagery_dask
from imagery_dask.cli import main as imagery_dask_command
from imagery_dask.cluster import ClusterFile, load_cluster_file
from imagery_dask.records.runs import Records

COMMIT = "fe6ded5"
HERE = Path(__file__).resolve().parent
CHECKOUT = Path(imagery_dask.__file__).resolve().parents[1]
# Fingerprints in the records are hashes of text that contains this path.
ROOT = Path("/tmp/imagery_dask_corpus_v0_1")
HOST = "older-host"
# No process has this id, on any machine.
DEAD_PID = 2**31 - 1
# Far enough in the past for machines whose clocks are slow.
RENEWED = 1.7e9
# A receipt has 92 bytes; a killed process leaves the first 40 bytes of its last one.
TORN_BYTES = 40

OFFSET, SHAPE, CHUNK = (-16, 32, 8), (40, 40, 16), (16, 16, 4)
BOUNDS = [str(value) for value in (*OFFSET, *(first + size for first, size in zip(OFFSET, SHAPE, strict=True)))]
# Color images are large; export half of the slices.
FLAT_BOUNDS = [*BOUNDS[:5], str(OFFSET[2] + SHAPE[2] // 2)]
IMAGE_HOLE, IDS_HOLE = (0, 48, 12), (16, 32, 20)
LARGE_SHAPE = (128, 128, 80)
LARGE_BOUNDS = ["0", "0", "0", *map(str, LARGE_SHAPE)]

IMAGE = ["--image-source", f"{ROOT}/source/image"]
IDS = ["--segmentation-source", f"{ROOT}/source/ids"]
BLOCKS = ["--chunks", "16,16,8", "--block-mib", "0.01"]

THREADS = """\
cluster: distributed.LocalCluster
arguments: {processes: false, n_workers: 1, threads_per_worker: 1, dashboard_address: null}
"""
# Replaces the `sbatch` of a batch system.
SBATCH = "#!/bin/sh\necho Submitted batch job 4242\n"
SLURM = """\
cluster: dask_jobqueue.SLURMCluster
workers: 2
arguments: {cores: 1, memory: 1GiB, walltime: "01:00:00", log_directory: logs}
"""

# Files that use every key, in addition to those of cluster_configs/.
CLUSTERS = {
    "local-wishes": """\
cluster: distributed.LocalCluster
adapt: {maximum: 3}
worker_memory: 1500MB
environment: {OMP_NUM_THREADS: 1, GREETING: "it's $HOME"}
preload: my_module
arguments: {threads_per_worker: 2, host: 127.0.0.1, preload: [other_module]}
""",
    "local-temporary": """\
cluster: distributed.LocalCluster
workers: 2
security: temporary
arguments: {host: 0.0.0.0}
""",
    "slurm-wishes": """\
cluster: dask_jobqueue.SLURMCluster
adapt: {minimum: 2, maximum: 20}
retire_before: 15m
worker_memory: 4GiB
environment: {OMP_NUM_THREADS: 1, GREETING: "it's $HOME"}
preload: [my_module, /shared/start.py]
security: {ca: ca.pem, cert: cert.pem, key: key.pem}
driver: {walltime: "48:00:00", queue: long}
arguments:
  queue: normal
  walltime: "04:00:00"
  cores: 8
  processes: 2
  job_script_prologue: |
    module load python
    source activate
  job_extra_directives: ["--requeue"]
""",
    "lsf-wishes": """\
cluster: dask_jobqueue.LSFCluster
workers: 4
worker_memory: 2GiB
preload: [my_module]
arguments: {queue: normal, walltime: "4:00", lsf_units: mb, use_stdin: true, cores: 1, processes: 1}
""",
    "ssh-wishes": """\
cluster: distributed.SSHCluster
workers: 2
worker_memory: 3GiB
environment: {OMP_NUM_THREADS: 1}
preload: [my_module]
arguments:
  hosts: [head, node1, node2]
  worker_options: {nthreads: 1, preload: other_module}
""",
    "kubernetes-wishes": """\
cluster: dask_kubernetes.operator.KubeCluster
adapt: {minimum: 1, maximum: 5}
worker_memory: 2GiB
environment: {OMP_NUM_THREADS: 1}
preload: [my_module]
arguments: {name: em, image: "registry.example/em:1", env: {LEVEL: "2"}, worker_command: dask worker --nthreads 1}
""",
    "join-address": "address: tcp://10.1.2.3:8786\n",
    "join-file": """\
address: scheduler.json
security: {ca: ca.pem, cert: cert.pem, key: key.pem}
""",
}

EXPECTED: dict[str, Any] = {}


# ------------------------------------------------------------------------------------------------------------- sources


def write_sources() -> None:
    """Write imagery and ids of two mips, with a missing chunk in each, and a larger volume of ids."""
    image = coordinate_volume(SHAPE, OFFSET, dtype=np.uint8)
    ids = random_labels(SHAPE, seed=1, n=12)
    common: dict[str, Any] = {"voxel_offset": OFFSET, "chunk_size": CHUNK, "compress": False, "mips": 2}
    write_volume(ROOT / "source/image", image, **common)
    write_volume(ROOT / "source/ids", ids, layer_type="segmentation", encoding="compressed_segmentation", **common)
    delete_chunks(f"precomputed://file://{ROOT}/source/image", 0, lambda start: start == IMAGE_HOLE)
    delete_chunks(f"precomputed://file://{ROOT}/source/ids", 0, lambda start: start == IDS_HOLE)
    large = random_labels(LARGE_SHAPE, seed=2, n=40, block=48)
    write_volume(
        ROOT / "source/large-ids", large, layer_type="segmentation", resolution=(8, 8, 8), chunk_size=(64, 64, 40)
    )
    shown = [int(value) for value in np.unique(ids)[1:9]]
    (ROOT / "source/root_ids.txt").write_text("".join(f"{value}\n" for value in shown))
    colors = "".join(f"{value},{40 * n % 256},{255 - 30 * n},{90 + 20 * n}\n" for n, value in enumerate(shown))
    (ROOT / "source/colors.csv").write_text(colors)


# ------------------------------------------------------------------------------------------------------------- exports

FORMATS: dict[str, tuple[str, list[str]]] = {
    "zarr-0.5": ("zarr", [*IMAGE, *IDS, "--bounds", *BOUNDS, *BLOCKS, "--shards", "32,32,8", "--levels", "2"]),
    "zarr-0.4": ("zarr", [*IMAGE, *IDS, "--bounds", *BOUNDS, *BLOCKS, "--shards", "none", "--ome-version", "0.4"]),
    "zarr-pyramid": ("zarr", [
        "--segmentation-source", f"{ROOT}/source/large-ids", "--bounds", *LARGE_BOUNDS, "--chunks", "16,16,16",
        "--shards", "64,64,64", "--levels", "4", "--block-mib", "1",
    ]),
    "precomputed": ("precomputed", [*IMAGE, *IDS, "--bounds", *BOUNDS, *BLOCKS, "--levels", "source"]),
    "png-imagery": ("png", [*IMAGE, "--bounds", *BOUNDS, "--tile", "32"]),
    "png-labels": ("png", [*IDS, "--bounds", *BOUNDS, "--what", "labels", "--tile", "32", "--names", "absolute"]),
    "png-overlay": ("png", [
        *IMAGE, *IDS, "--bounds", *FLAT_BOUNDS, "--what", "overlay", "--tile", "32", "--outline", "--width", "2",
        "--root-ids", f"@{ROOT}/source/root_ids.txt", "--colors", f"{ROOT}/source/colors.csv",
    ]),
}  # fmt: skip


def export_path(name: str, kind: str) -> Path:
    return ROOT / "exports" / name / ("em.zarr" if kind == "zarr" else "em")


@dataclass(frozen=True)
class Done:
    """Exit code (or minus the signal that killed the process) and output of a process."""

    code: int
    out: str
    error: str


def run(*arguments: Any, kill_after: int = -1, path: str = "") -> Done:
    """Run ``imagery-dask`` in a fork, and kill it in the middle of the receipt that follows ``kill_after`` receipts."""
    (ROOT / "cwd").mkdir(exist_ok=True)
    outputs = [ROOT / "stdout", ROOT / "stderr"]
    process = os.fork()
    if process == 0:
        for number, file in enumerate(outputs, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(ROOT / "cwd")
        os.environ["PATH"] = path + os.environ["PATH"]
        sys.argv = ["imagery-dask", *map(str, arguments)]
        _run_here(kill_after)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Done(code, *(file.read_text() for file in outputs))


def _run_here(receipts_left: int) -> NoReturn:
    append, lock = Records.append, threading.Lock()

    def append_or_die(self: Records, kind: Any, content: bytes) -> None:
        nonlocal receipts_left
        with lock:
            if kind == "receipts":
                if receipts_left == 0:
                    append(self, kind, content[:TORN_BYTES])
                    os.kill(os.getpid(), signal.SIGKILL)
                receipts_left -= 1
            append(self, kind, content)

    Records.append = append_or_die  # type: ignore[method-assign]
    socket.gethostname = lambda: HOST
    code: Any = 1
    try:
        imagery_dask_command()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def on_threads(command: Sequence[Any], code: int = 0, **options: Any) -> None:
    done = run(*command, "--cluster", ROOT / "threads.yaml", **options)
    if done.code != code:
        raise RuntimeError(f"{command} ended with {done.code}: {done.out}\n{done.error}")


def status(out: Path) -> dict[str, Any]:
    done = run("status", out, "--json")
    assert done.code == 0, done
    content: dict[str, Any] = json.loads(done.out)
    return content


def expect(name: str, out: Path, command: Sequence[Any], steps: Sequence[str], **facts: Any) -> None:
    """Store what the tests compare with: the export's command, the steps that made it, and the output of `status`."""
    command = [*map(str, command)]
    EXPECTED[name] = {"out": str(out), "command": command, "made": [*steps], "status": status(out), **facts}


def blocks_of(out: Path) -> int:
    return int(status(out)["exports"][-1]["blocks"])


def data_files(out: Path) -> list[Path]:
    """Return the files that hold voxels."""
    metadata = (".json", ".zarray", ".zgroup", ".zattrs", ".csv", "info", "provenance", ".bin", ".jsonl")
    files = sorted(path for path in out.parent.rglob("*") if path.is_file() and "receipts" not in str(path))
    return [path for path in files if not path.name.endswith(metadata)]


def flip(path: Path) -> None:
    """Invert some bytes of a file."""
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 3, len(content), 7):
        content[position] ^= 255
    path.write_bytes(content)


def damaged_block(out: Path) -> int:
    """Return the number of the only block that `verify` reports as damaged."""
    on_threads(["verify", out, "--all", "--no-source"], code=1)
    ((number,),) = [export["damaged"] for export in status(out)["exports"]]
    return int(number)


def make_exports() -> None:
    for form, (kind, options) in FORMATS.items():

        def command(state: str, form: str = form, kind: str = kind, options: list[str] = options) -> list[Any]:
            return ["export", kind, export_path(f"{form}/{state}", kind), *options]

        finished = command("finished")
        on_threads(finished)
        blocks = blocks_of(finished[2])
        expect(f"{form}/finished", finished[2], finished, ["COMMAND"])
        # In the second stage of the volume of two mips, in the first stage of the others.
        after = 3 * blocks // 4 if form == "precomputed" else blocks // 2
        interrupted = command("interrupted")
        on_threads(interrupted, code=-9, kill_after=after)
        expect(f"{form}/interrupted", interrupted[2], interrupted, [f"COMMAND, killed after {after} receipts"])
        for state, damage in (("damaged", flip), ("damaged-found", Path.unlink)):
            if form == "zarr-pyramid" and state == "damaged":
                continue  # its files are large
            damaged = command(state)
            on_threads(damaged)
            files = data_files(damaged[2])
            # The last file belongs to the last level, which has a stage of its own in a pyramid.
            path = files[-1] if damage is Path.unlink else files[len(files) // 3]
            damage(path)
            number = damaged_block(damaged[2])
            verb = "bytes flipped in" if damage is flip else "removed:"
            steps = ["COMMAND", f"{verb} {path.relative_to(ROOT)}"]
            if state == "damaged":
                (damage_record,) = damaged[2].parent.rglob("damaged.json")
                damage_record.unlink()
            else:
                steps.append("imagery-dask verify OUT --all --no-source")
            expect(f"{form}/{state}", damaged[2], damaged, steps, damaged=number)


def make_special() -> None:
    """Make exports in rare states, with records that other exports do not have."""
    kind, options = FORMATS["zarr-0.5"]
    out = export_path("more/replacing", kind)
    command = ["export", kind, out, *options]
    on_threads(command)
    on_threads([*command, "--overwrite"], code=-9, kill_after=7)
    expect("more/replacing", out, command, ["COMMAND", "COMMAND --overwrite, killed after 7 receipts"])

    out = export_path("more/resumed", kind)
    command = ["export", kind, out, *options]
    on_threads(command, code=-9, kill_after=9)
    on_threads(command)
    expect("more/resumed", out, command, ["COMMAND, killed after 9 receipts", "COMMAND"])

    out = export_path("more/parts", kind)
    plan = out.parent / "plan.json"
    out.parent.mkdir(parents=True)
    done = run("plan", kind, out, *options, "--save", plan, "--samples", "1")
    assert done.code == 0, done
    command = ["export", "--plan", plan, "--part", "2/2"]
    on_threads(["export", "--plan", plan, "--part", "1/2"])
    on_threads(command, code=-9, kill_after=5)
    steps = ["imagery-dask plan zarr OUT ... --save plan.json", "imagery-dask export --plan plan.json --part 1/2"]
    expect("more/parts", out, command, [*steps, "COMMAND, killed after 5 receipts"])

    kind, options = FORMATS["zarr-0.4"]
    out = export_path("more/failed", kind)
    command = ["export", kind, out, *options, "--missing", "error"]
    on_threads(command, code=1)
    expect("more/failed", out, command, ["COMMAND"])

    out = export_path("more/queued", kind)
    slurm, bin_ = ROOT / "cwd/slurm.yaml", ROOT / "bin"
    slurm.write_text(SLURM)
    bin_.mkdir()
    (bin_ / "sbatch").write_text(SBATCH)
    (bin_ / "sbatch").chmod(0o755)
    (ROOT / "cwd/logs").mkdir()
    done = run("submit", "--cluster", slurm, kind, out, *options, path=f"{bin_}:")
    assert done.code == 0, done
    expect("more/queued", out, ["export", kind, out, *options], ["imagery-dask submit --cluster slurm.yaml zarr OUT"])


def make_plans() -> None:
    (ROOT / "plans/out").mkdir(parents=True)
    for form in ("zarr-0.5", "zarr-0.4", "precomputed", "png-labels", "png-overlay"):
        kind, options = FORMATS[form]
        out = ROOT / "plans/out" / (f"{form}.zarr" if kind == "zarr" else form)
        file = ROOT / f"plans/{form}.json"
        done = run("plan", kind, out, *options, "--save", file, "--samples", "1")
        assert done.code == 0, done
    # Only the plans are kept.
    shutil.rmtree(ROOT / "plans/out")


# ------------------------------------------------------------------------------------------------------------ clusters


def resolved(file: ClusterFile) -> dict[str, Any]:
    """Return what `load_cluster_file` returned, with ``PEM`` for certificates that are generated for each run."""
    security = None
    if file.security is not None:
        names = sorted(name for name in dir(file.security) if name.startswith("tls_"))
        security = {name: getattr(file.security, name) for name in names}
        security = {name: value for name, value in security.items() if isinstance(value, str)}
        security = {name: "PEM" if "-----BEGIN" in value else value for name, value in security.items()}
        security["require_encryption"] = bool(file.security.require_encryption)
    return {
        "cluster": None if file.cluster is None else file.cluster.__name__, "arguments": file.arguments,
        "workers": file.workers, "adapt": file.adapt, "address": file.address, "security": security,
        "driver": file.driver,
    }  # fmt: skip


def make_clusters() -> None:
    folder = ROOT / "clusters"
    folder.mkdir()
    for path in (CHECKOUT / "cluster_configs").glob("*.yaml"):
        shutil.copy(path, folder)
    for name, text in CLUSTERS.items():
        (folder / f"{name}.yaml").write_text(text)
    for name in ("ca", "cert", "key"):
        (folder / f"{name}.pem").write_text("Stands for a PEM file; only its path is used.\n")
    contents = {path.name: resolved(load_cluster_file(path)) for path in sorted(folder.glob("*.yaml"))}
    (folder / "resolved.json").write_text(json.dumps(contents, indent=1) + "\n")


# ----------------------------------------------------------------------------------------------------------- copying


def machine() -> str:
    """Return the name of this machine, as version 0.1 writes it in leases."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def stored(path: Path) -> bytes:
    """Return the content of a file, with placeholders for values that differ between machines."""
    content = path.read_bytes()
    if path.name == "lease.json" or path.name.startswith("part-"):
        lease = json.loads(content)
        content = json.dumps(lease | {"pid": DEAD_PID, "machine": "@MACHINE@", "renewed": RENEWED}).encode()
        assert lease["machine"] == machine()
    content = content.replace(str(ROOT).encode(), b"@ROOT@")
    local_names = [str(CHECKOUT), str(HERE), sys.prefix, machine()]
    if len(socket.gethostname()) > 6:
        local_names.append(socket.gethostname())
    assert not [name for name in local_names if name.encode() in content], path
    return content


def store(keep: Callable[[Path], bool]) -> None:
    """Copy the results to this folder."""
    for name in ("source", "exports", "plans", "clusters"):
        shutil.rmtree(HERE / name, ignore_errors=True)
        for path in sorted((ROOT / name).rglob("*")):
            if path.is_file() and keep(path):
                copy = HERE / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(stored(path))
    expected = json.dumps(EXPECTED, indent=1).replace(str(ROOT), "@ROOT@")
    (HERE / "expected.json").write_text(expected + "\n")


def main() -> None:
    environment = {"DASK_CONFIG": str(ROOT / "no-config"), "HOME": str(ROOT / "home"), "COLUMNS": "160"}
    if environment.items() - os.environ.items():  # dask and CloudVolume read the environment when they are imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | environment)
    subprocess.run(["git", "-C", CHECKOUT, "diff", "--quiet", COMMIT, "--", "imagery_dask"], check=True)
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    (ROOT / "threads.yaml").write_text(THREADS)
    write_sources()
    make_exports()
    make_special()
    make_plans()
    make_clusters()
    store(lambda path: path.suffix != ".lock")
    shutil.rmtree(ROOT)


if __name__ == "__main__":
    main()
