"""Exports, plans and cluster files of version 0.1 still work: they are read, resumed, verified and repaired.

`tests/data/v0.1/` holds them, and its README describes how each was made. The tests do not depend on internals: they
use the command line and read results with zarr, CloudVolume and imageio.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from distributed import Client
from numpy.typing import NDArray
from support.programs import Done

CORPUS = Path(__file__).parents[1] / "data" / "v0.1"
EXPECTED: dict[str, Any] = json.loads((CORPUS / "expected.json").read_text())
# "@ROOT@" in the corpus stands for this path, from which its fingerprints were computed.
ROOT_OF_MAKER = "/tmp/imagery_dask_corpus_v0_1"
RECEIPT_BYTES = 92
OTHER_MACHINE = "00000000-0000-0000-0000-000000000000 pid:[1]"
# Keys of `status` whose values depend on the time of the call.
RATES = {"blocks_per_second", "bytes_per_second", "seconds_left", "holders"}
FORMATS = [name.partition("/")[0] for name in EXPECTED if name.endswith("/finished")]
DAMAGED = [name for name in EXPECTED if "/damaged" in name]

Command = Callable[..., Done]
Voxels = dict[str, NDArray[Any]]


# -------------------------------------------------------------------------------------------------------- unpacking


def fingerprint(plan: dict[str, Any]) -> str:
    """Return the fingerprint of a plan as version 0.1 computes it."""
    return hashlib.sha256(json.dumps(plan["decides"], sort_keys=True).encode()).hexdigest()


def machine() -> str:
    """Return the name of this machine in a lease; a process of this machine that does not exist is dead."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def unpack(root: Path, *folders: str, holder: str = OTHER_MACHINE) -> None:
    """Copy folders of the corpus as if their exports had been written below `root`.

    Fingerprints depend on the paths of the sources, so they are computed again, also in the names of the folders with
    the records of pictures. `holder` is the machine whose dead process has left a lease.
    """
    files = [path for folder in folders for path in (CORPUS / folder).rglob("*") if path.is_file()]
    changed = {"@ROOT@": str(root), "@MACHINE@": holder}
    short: dict[str, str] = {}
    for file in files:
        if file.suffix == ".json" and '"fingerprint"' in (text := file.read_text()):
            before, after = (json.loads(text.replace("@ROOT@", path)) for path in (ROOT_OF_MAKER, str(root)))
            before, after = before.get("plan", before), after.get("plan", after)
            assert fingerprint(before) == before["fingerprint"], file
            changed[before["fingerprint"]] = fingerprint(after)
            short[f".{before['fingerprint'][:8]}."] = f".{fingerprint(after)[:8]}."
    for file in files:
        name, content = str(file.relative_to(CORPUS)), file.read_bytes()
        for old, new in short.items():
            name = name.replace(old, new)
        for old, new in changed.items():
            content = content.replace(old.encode(), new.encode())
        copy = root / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)


@dataclass(frozen=True)
class OldExport:
    """An unpacked export of the corpus; `command` is the command line that wrote it."""

    root: Path
    form: str
    out: Path
    command: list[str]
    status: dict[str, Any]
    damaged: int | None

    @property
    def target_name(self) -> str:
        """Name of the exported store, volume or prefix in the corpus."""
        return "em.zarr" if self.out.suffix == ".zarr" else "em"

    def receipts(self) -> dict[str, int]:
        """Return the number of complete receipts in each file of receipts."""
        files = self.out.parent.rglob("receipts-*.bin")
        return {path.name: path.stat().st_size // RECEIPT_BYTES for path in files}


def unpack_export(tmp_path: Path, name: str, holder: str = OTHER_MACHINE) -> OldExport:
    """Unpack an export of the corpus and its sources."""
    root = tmp_path.resolve()
    unpack(root, f"exports/{name}", "source", holder=holder)
    record = json.loads(json.dumps(EXPECTED[name]).replace("@ROOT@", str(root)))
    form, _, state = name.partition("/")
    if form == "more":
        form = "zarr-0.4" if state in ("failed", "queued") else "zarr-0.5"
    return OldExport(root, form, Path(record["out"]), record["command"], record["status"], record.get("damaged"))


@pytest.fixture
def address(threads: Client) -> str:
    return str(threads.scheduler_info()["address"])


def status_of(command: Command, out: Path) -> list[dict[str, Any]]:
    done = command("status", out, "--json")
    assert (done.code, done.error) == (0, "")
    exports: list[dict[str, Any]] = json.loads(done.out)["exports"]
    return exports


def verified(command: Command, export: OldExport, address: str) -> Done:
    """Verify all blocks; pictures are not compared with the source, since their bytes depend on the compressor."""
    source = "--no-source" if export.form.startswith("png") else "--source"
    return command("verify", export.out, "--all", source, "--cluster", address)


# ------------------------------------------------------------------------------------------------------------ voxels


def voxels(out: Path) -> Voxels:
    """Read all voxels of an export, as x, y, z, or the pixels of its pictures, with other programs."""
    if out.suffix == ".zarr":
        members = zarr.open_group(out, mode="r").members(max_depth=None)
        return {path: np.asarray(member[...]).T for path, member in members if isinstance(member, zarr.Array)}
    if not out.exists():
        files = out.parent.glob(f"{out.name}_*.png")
        return {path.name.removeprefix(out.name): np.asarray(imageio.imread(path)) for path in files}
    levels = {}
    for info in sorted(out.rglob("info")):
        scales = json.loads(info.read_text())["scales"]
        for mip in range(len(scales)):
            volume = CloudVolume(f"precomputed://file://{info.parent}", mip=mip, progress=False)
            levels[f"{info.parent.name}/{mip}"] = np.asarray(volume[:])[..., 0]
    return levels


def source(root: Path, name: str) -> NDArray[Any]:
    """Read the voxels of a source; missing chunks are 0."""
    volume = CloudVolume(f"precomputed://file://{root}/source/{name}", fill_missing=True, progress=False)
    return np.asarray(volume[:])[..., 0]


def planes(pictures: Voxels, first: tuple[int, int, int]) -> NDArray[Any]:
    """Join tiles to voxels x, y, z; `first` holds the lowest numbers that occur in their names."""
    volume = np.zeros((40, 40, 16), np.int64)
    for name, picture in pictures.items():
        z, y, x = (int(number) for number in re.findall(r"(?:slice_|[zyx])(-?\d+)", name))
        x, y, z = (number - start for number, start in zip((x, y, z), first, strict=True))
        volume[x : x + picture.shape[1], y : y + picture.shape[0], z] = picture.T
    return volume


@cache
def finished_voxels(form: str, name: str) -> Voxels:
    """Return all voxels of a form's export that version 0.1 finished."""
    return voxels(CORPUS / "exports" / form / "finished" / name)


def with_source(export: OldExport, exported: Voxels) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield pairs of the finest voxels of an export and those of its source."""
    if export.form == "zarr-pyramid":
        yield exported["labels/segmentation/0"], source(export.root, "large-ids")
    elif export.form == "png-imagery":
        yield planes(exported, (0, 0, 0)), source(export.root, "image")
    elif export.form == "png-labels":
        table = np.loadtxt(
            export.out.with_name(f"{export.out.name}_labels.csv"), dtype=np.uint64, delimiter=",", skiprows=1
        )
        np.testing.assert_array_equal(table[:, 1], np.arange(len(table)))
        yield table[:, 0][planes(exported, (-16, 32, 8))], source(export.root, "ids")
    elif export.form != "png-overlay":
        image, ids = ("image/0", "segmentation/0") if export.form == "precomputed" else ("0", "labels/segmentation/0")
        yield exported[image], source(export.root, "image")
        yield exported[ids], source(export.root, "ids")


def check_voxels(export: OldExport) -> None:
    """Compare the finest level with the source, and everything with the export that version 0.1 finished."""
    exported, as_finished = voxels(export.out), finished_voxels(export.form, export.target_name)
    for finest, expected in with_source(export, exported):
        assert len(np.unique(expected)) > 5
        np.testing.assert_array_equal(finest, expected)
    assert exported.keys() == as_finished.keys()
    assert len(exported) > 1
    for name, expected in as_finished.items():
        np.testing.assert_array_equal(exported[name], expected, err_msg=name)


# ------------------------------------------------------------------------------------------------------------- status


@pytest.mark.parametrize("name", EXPECTED)
def test_status_equals_that_of_version_0_1(tmp_path: Path, command: Command, name: str) -> None:
    """This holds also if the lease is that of a dead process of another machine."""
    export = unpack_export(tmp_path, name)
    done = command("status", export.out, "--json")
    assert (done.code, done.error) == (0, "")
    status = json.loads(done.out)
    assert status["drivers"] == export.status["drivers"]
    assert len(status["exports"]) == len(export.status["exports"])
    for now, before in zip(status["exports"], export.status["exports"], strict=True):
        assert {key: now[key] for key in before.keys() - RATES} == {key: before[key] for key in before.keys() - RATES}
        assert now["holders"] == []


@pytest.mark.parametrize(("name", "file"), [("zarr-0.5/interrupted", "lease.json"), ("more/parts", "part-2-of-2.json")])
def test_a_renewed_lease_is_running_unless_its_process_is_known_to_be_dead(
    tmp_path: Path, command: Command, name: str, file: str
) -> None:
    """Only a process of this machine can be known to be dead."""
    for holder, state in ((OTHER_MACHINE, "running"), (machine(), "interrupted")):
        export = unpack_export(tmp_path, name, holder)
        (path,) = export.out.parent.rglob(file)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"renewed": time.time()}))
        (now,) = status_of(command, export.out)
        assert now["state"] == state
        assert [process["host"] for process in now["holders"]] == (["older-host"] if state == "running" else [])


# ---------------------------------------------------------------------------------------------------------- finished


@pytest.mark.parametrize("name", [*(f"{form}/finished" for form in FORMATS), "more/resumed"])
def test_a_finished_export_is_verified_and_not_changed(
    tmp_path: Path, command: Command, address: str, name: str
) -> None:
    export = unpack_export(tmp_path, name)
    (before,) = export.status["exports"]
    check_voxels(export)
    done = verified(command, export, address)
    assert (done.code, done.error) == (0, "")
    assert f"{before['blocks']} of {before['blocks']} blocks read back" in done.out
    assert "all as written" in done.out
    receipts = export.receipts()
    for again in (export.command, ["export", "--plan", export.out], ["export", "--plan", export.out, "--repair"]):
        done = command(*again, "--cluster", address)
        assert (done.code, done.error) == (0, "")
        assert f"{before['blocks']} blocks were written before; 0 were left to do" in done.out
    assert export.receipts() == receipts
    assert sum(receipts.values()) == before["blocks"]


# ------------------------------------------------------------------------------------------------------- interrupted


def check_resumed(command: Command, export: OldExport, address: str, *resume: Any) -> None:
    """Resume an export; check that only blocks without a receipt are done, and that the export is then complete."""
    before = next(status for status in export.status["exports"] if status["state"] != "complete")
    left = before["blocks"] - before["done"]
    assert before["done"] > 0
    assert left > 0
    receipts = export.receipts()
    done = command(*(resume or export.command), "--cluster", address)
    assert (done.code, done.error) == (0, "")
    assert f"{before['done']} blocks were written before; {left} were left to do" in done.out
    new = {name: count for name, count in export.receipts().items() if name not in receipts}
    assert sum(new.values()) == left
    check_complete(command, export, address)


def check_complete(command: Command, export: OldExport, address: str) -> None:
    """Check that all blocks are done, the voxels are right, and no lease or partial file is left."""
    (now,) = status_of(command, export.out)
    assert (now["state"], now["done"], now["failed"], now["damaged"]) == ("complete", now["blocks"], 0, [])
    check_voxels(export)
    done = verified(command, export, address)
    assert (done.code, done.error) == (0, "")
    left = [path.name for path in export.out.parent.rglob("*") if re.search("lease|part-|partial|incoming", path.name)]
    assert left == []


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_export_is_resumed_by_its_command(
    tmp_path: Path, command: Command, address: str, form: str
) -> None:
    check_resumed(command, unpack_export(tmp_path, f"{form}/interrupted", machine()), address)


@pytest.mark.parametrize("form", ["zarr-0.5", "png-overlay"])
def test_an_interrupted_export_is_resumed_by_its_plan(
    tmp_path: Path, command: Command, address: str, form: str
) -> None:
    export = unpack_export(tmp_path, f"{form}/interrupted", machine())
    check_resumed(command, export, address, "export", "--plan", export.out)


def test_other_arguments_are_refused_by_name(tmp_path: Path, command: Command, address: str) -> None:
    export = unpack_export(tmp_path, "zarr-0.5/interrupted", machine())
    receipts = export.receipts()
    done = command(*export.command, "--codec", "gzip", "--cluster", address)
    assert done.code == 2
    assert 'codec was "blosc-zstd" and is "gzip"' in done.error
    assert export.receipts() == receipts


def test_an_interrupted_replacement_is_resumed(tmp_path: Path, command: Command, address: str) -> None:
    export = unpack_export(tmp_path, "more/replacing", machine())
    _, replacing = export.status["exports"]
    done = command(*export.command, "--cluster", address)
    assert (done.code, done.error) == (0, "")
    left = replacing["blocks"] - replacing["done"]
    assert f"{replacing['done']} blocks were written before; {left} were left to do" in done.out
    (now,) = status_of(command, export.out)
    assert now["run"] == replacing["run"]
    check_complete(command, export, address)


def test_a_part_is_resumed_and_closes_the_export(tmp_path: Path, command: Command, address: str) -> None:
    export = unpack_export(tmp_path, "more/parts", machine())
    (before,) = export.status["exports"]
    receipts = export.receipts()
    done = command(*export.command, "--cluster", address)
    assert (done.code, done.error) == (0, "")
    new = {name: count for name, count in export.receipts().items() if name not in receipts}
    assert sum(new.values()) == before["blocks"] - before["done"]
    check_complete(command, export, address)


def test_failed_blocks_are_tried_again(tmp_path: Path, command: Command, address: str) -> None:
    export = unpack_export(tmp_path, "more/failed", machine())
    (before,) = export.status["exports"]
    receipts = export.receipts()
    done = command(*export.command, "--cluster", address)
    assert (done.code, f"{before['failed']} blocks FAILED" in done.error) == (1, True)
    assert export.receipts() == receipts
    # Restore the missing chunks of the source by copies of others of the same shape.
    for existing, missing in (
        ("image/8_8_40/0-16_48-64_8-12", "image/8_8_40/0-16_48-64_12-16"),
        ("ids/8_8_40/16-24_32-48_16-20", "ids/8_8_40/16-24_32-48_20-24"),
    ):
        folder = export.root / "source"
        assert not (folder / missing).exists()
        shutil.copy(folder / existing, folder / missing)
    done = command(*export.command, "--cluster", address)
    assert (done.code, done.error) == (0, "")
    assert f"{before['done']} blocks were written before; {before['failed']} were left to do" in done.out
    (now,) = status_of(command, export.out)
    assert (now["state"], now["failed"]) == ("complete", 0)
    for finest, expected in with_source(export, voxels(export.out)):
        np.testing.assert_array_equal(finest, expected)


def test_a_submitted_export_that_has_not_begun_is_exported(tmp_path: Path, command: Command, address: str) -> None:
    export = unpack_export(tmp_path, "more/queued")
    done = command(*export.command, "--cluster", address)
    assert (done.code, done.error) == (0, "")
    (now,) = status_of(command, export.out)
    assert now["state"] == "complete"
    check_voxels(export)


# ----------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_block_is_found_and_repaired(tmp_path: Path, command: Command, address: str, name: str) -> None:
    """In exports named "damaged-found", version 0.1 has recorded the damage already."""
    export = unpack_export(tmp_path, name)
    if not name.endswith("found"):
        done = verified(command, export, address)
        assert (done.code, "  1 blocks DAMAGED" in done.error) == (1, True)
    (now,) = status_of(command, export.out)
    assert (now["state"], now["damaged"]) == ("damaged", [export.damaged])
    receipts = export.receipts()
    done = command("export", "--plan", export.out, "--repair", "--cluster", address)
    assert (done.code, done.error) == (0, "")
    assert f"{now['blocks'] - 1} blocks were written before; 1 were left to do" in done.out
    assert sum(export.receipts().values()) == sum(receipts.values()) + 1
    check_complete(command, export, address)


# ------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("name", [path.stem for path in sorted((CORPUS / "plans").glob("*.json"))])
def test_a_saved_plan_runs(tmp_path: Path, command: Command, address: str, name: str) -> None:
    root = tmp_path.resolve()
    unpack(root, "plans", "source")
    out = root / "plans" / "out" / (f"{name}.zarr" if name.startswith("zarr") else name)
    (finished,) = EXPECTED[f"{name}/finished"]["status"]["exports"]
    export = OldExport(root, name, out, [], {}, None)
    done = command("export", "--plan", root / "plans" / f"{name}.json", "--cluster", address)
    assert (done.code, done.error) == (0, "")
    (now,) = status_of(command, out)
    assert (now["state"], now["blocks"], now["stages"]) == ("complete", finished["blocks"], finished["stages"])
    check_voxels(export)


# ----------------------------------------------------------------------------------------------------- cluster files


def resolved(path: Path) -> dict[str, Any]:
    """Return the content of a loaded cluster file in the form of the corpus's `make.py`."""
    from imagery_dask.cluster import load_cluster_file

    file = load_cluster_file(path)
    security = None
    if file.security is not None:
        names = [name for name in dir(file.security) if name.startswith("tls_")]
        values = {name: getattr(file.security, name) for name in names}
        security = {name: value for name, value in values.items() if isinstance(value, str)}
        # Temporary certificates differ in each run.
        security = {name: "PEM" if "-----BEGIN" in value else value for name, value in security.items()}
        security["require_encryption"] = bool(file.security.require_encryption)
    return {
        "cluster": None if file.cluster is None else file.cluster.__name__, "arguments": file.arguments,
        "workers": file.workers, "adapt": file.adapt, "address": file.address, "security": security,
        "driver": file.driver,
    }  # fmt: skip


@pytest.mark.parametrize("name", [path.name for path in sorted((CORPUS / "clusters").glob("*.yaml"))])
def test_a_cluster_file_is_loaded_as_by_version_0_1(tmp_path: Path, name: str) -> None:
    root = tmp_path.resolve()
    unpack(root, "clusters")
    expected = json.loads((root / "clusters" / "resolved.json").read_text())[name]
    try:
        loaded = resolved(root / "clusters" / name)
    except ImportError as error:
        pytest.skip(str(error))
    # JSON turns tuples into lists, as in the expected file.
    assert json.loads(json.dumps(loaded)) == expected
