"""Verifying volumes of other programs: damaged and missing chunks are named, and levels are compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tensorstore
import xarray as xr
from distributed import Client
from numpy.typing import NDArray
from support.buckets import environment
from support.http_server import Fault, FileServer
from support.programs import Done
from support.settings import Configure
from support.stored_volumes import FORMATS, chunk_file, write_stored
from support.volumes import delete_chunks, random_labels, smooth_image, write_volume

from imagery_dask import ImageryClient, kernels, to_precomputed, to_zarr, verify_volume
from imagery_dask.checking import stored_tasks
from imagery_dask.checking.volume_report import VolumeReport
from imagery_dask.errors import AccessRefusedError, SourceNotFoundError
from imagery_dask.sources import open_volume

SHAPE = (75, 70, 40)  # the last chunks of each axis are cut
OFFSET = (64, -32, 16)
CHUNKS = [27, 12]
STEP = (2, 2, 1)

Command = Callable[..., Done]
Voxels = NDArray[Any]
formats = pytest.mark.parametrize("kind", FORMATS)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> None:
    configure("run.pauses_s", (0.0,))
    for module in ("requests.transport", "volumes.stored_volume"):
        monkeypatch.setattr(f"imagery_dask.sources.{module}.pause_s", lambda *args: 0.0)


@pytest.fixture(scope="module")
def ids() -> Voxels:
    return random_labels(SHAPE, n=30)


def mode_of(ids: Voxels) -> Voxels:
    return kernels.downsample(ids, STEP, labels=True)


def check(path: object, **options: Any) -> VolumeReport:
    return verify_volume(str(path), **{"progress": False, "seed": 1} | options)


@pytest.fixture
def stored(tmp_path: Path, ids: Voxels) -> Callable[[str], str]:
    """Write a volume of two levels in a format."""
    return lambda kind: write_stored(kind, tmp_path / "em", ids, OFFSET, halved=mode_of(ids))


# ---------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.long
@formats
def test_a_sound_volume_is_read_and_fits(kind: str, stored: Callable[[str], str]) -> None:
    report = check(stored(kind))
    assert report.ok
    assert [(level.chunks, level.read) for level in report.levels] == [(count, count) for count in CHUNKS]
    assert [level.missing + level.not_stored + level.damaged for level in report.levels] == [0, 0]
    assert all(level.stored_bytes for level in report.levels)
    assert report.read_bytes == 8 * (75 * 70 * 40 + 38 * 35 * 40)
    (compared,) = report.compared
    assert (compared.factor, compared.fitting[0], compared.skipped) == (STEP, "mode", "")
    assert compared.samples > 8
    assert compared.methods["mode"].voxels > 10_000
    assert compared.share("striding") > 0.02
    assert "sound" in repr(report)
    assert "not stored" in report._repr_html_()


@formats
@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_damaged_chunks_are_all_named(kind: str, damage: str, stored: Callable[[str], str], tmp_path: Path) -> None:
    path = stored(kind)
    file = chunk_file(kind, tmp_path / "em")
    second = next(other for other in sorted(file.parent.iterdir()) if other.is_file() and other.name[0] not in "az.i")
    for one in {file, second}:
        content = one.read_bytes()
        one.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes(len(content)))
    report = check(path)
    if (kind, damage) == ("precomputed", "zeros"):  # valid voxels of raw chunks; the level does not fit then
        assert not any(level.damaged for level in report.levels)
        return
    assert not report.ok
    damaged = sum(level.damaged for level in report.levels)
    assert damaged == len(report.damaged) == len({chunk.key for chunk in report.damaged})
    assert all(chunk.reason for chunk in report.damaged)
    assert not any(level.missing for level in report.levels)
    if "shard" not in kind:
        names = {str(one.relative_to(tmp_path / "em")) for one in {file, second}}
        assert {chunk.key for chunk in report.damaged} == names
    elif damage == "zeros":  # the index, and with it all chunks
        assert damaged >= 8
    # Others are still read.
    assert sum(level.read for level in report.levels) == sum(CHUNKS)


@pytest.mark.long
def test_a_changed_byte_is_found_by_a_checksum(stored: Callable[[str], str], tmp_path: Path) -> None:
    path = stored("zarr3-transposed")
    files = [file for file in (tmp_path / "em").rglob("*") if file.is_file() and file.suffix != ".json"]
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    report = check(path)
    assert [level.damaged for level in report.levels] == CHUNKS
    assert "crc32c" in report.damaged[0].reason
    assert report.compared[0].skipped.startswith("chunks of all samples are damaged")


@pytest.mark.long
@formats
def test_chunks_that_do_not_exist_are_missing_or_not_stored(
    kind: str, stored: Callable[[str], str], tmp_path: Path
) -> None:
    path = stored(kind)
    chunk_file(kind, tmp_path / "em").unlink()
    report = check(path)
    missing, not_stored = (sum(getattr(level, name) for level in report.levels) for name in ("missing", "not_stored"))
    if kind.startswith("precomputed"):
        assert (missing > 0, not_stored, report.ok) == (True, 0, False)
        assert len(report.missing_keys) == min(missing, 20)
        assert all(key.startswith(("8_8_40/", "16_16_40/")) for key in report.missing_keys)
    else:
        assert (missing, not_stored > 0) == (0, True)
    assert sum(level.damaged for level in report.levels) == 0


@pytest.mark.long
def test_a_thousand_chunks_of_a_broken_shard_are_refetched_once(
    tmp_path: Path, http_server_factory: Callable[..., FileServer]
) -> None:
    ids = random_labels((64, 64, 64))
    spec = {
        "driver": "zarr3", "kvstore": f"file://{tmp_path}/em/", "create": True,
        "metadata": {
            "shape": [64, 64, 64], "data_type": "uint64",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64, 64, 64]}},
            "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [4, 8, 8]}}],
        },
    }  # fmt: skip
    tensorstore.open(spec).result().write(ids.T).result()
    shard = tmp_path / "em" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-4])
    server = http_server_factory(tmp_path)
    report = check(f"zarr3://{server.url}/em")
    assert [level.damaged for level in report.levels] == [1024]
    assert len(report.damaged) == 1000
    assert len([request for request in server.requests if "/c/" in request.path]) < 10


# -------------------------------------------------------------------------------------------------- every byte once


@pytest.mark.long
@formats
def test_each_byte_is_fetched_once_over_http(
    kind: str, stored: Callable[[str], str], tmp_path: Path, http_server_factory: Callable[..., FileServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("imagery_dask.checking.check_volume._compare_levels", lambda *arguments: None)
    format_ = stored(kind).partition("://")[0]
    server = http_server_factory(tmp_path)
    report = check(f"{format_}://{server.url}/em")
    assert report.ok
    assert [level.read for level in report.levels] == CHUNKS
    of_chunks = [request for request in server.requests if ".json" not in request.path and "info" not in request.path]
    ranges = [(request.path, request.range) for request in of_chunks if "/." not in request.path]
    assert len(ranges) == len(set(ranges))
    if "shard" not in kind and "n5" not in kind:
        assert len(ranges) == sum(CHUNKS)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zarr3", "zarr3-shards", "precomputed-sharded"])
def test_boxes_may_be_smaller_than_shards(
    kind: str, stored: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tasks.boxes_of, "__defaults__", (2**18,))
    boxes: list[int] = []
    report = check(stored(kind), progress=lambda run: boxes.append(run.blocks))
    assert report.ok
    assert [level.read for level in report.levels] == CHUNKS
    assert boxes[-1] > 2


@pytest.mark.long
def test_a_server_that_fails_or_refuses_is_not_damage(
    stored: Callable[[str], str], tmp_path: Path, http_server_factory: Callable[..., FileServer]
) -> None:
    stored("zarr3")
    server = http_server_factory(tmp_path)
    path = f"zarr3://{server.url}/em"
    open_volume(path)
    server.faults = lambda path, n: Fault(503) if "/c/" in path else None
    report = check(path)
    assert (report.ok, report.unread_boxes > 0) == (False, True)
    assert not any(level.damaged or level.missing for level in report.levels)
    assert "503" in report.unread[0]
    server.faults = lambda path, n: Fault(403) if "/c/" in path else None
    with pytest.raises(AccessRefusedError, match="403"):
        check(path)
    server.faults = None
    assert check(path).ok


@pytest.mark.long
@pytest.mark.parametrize("kind", ["precomputed", "precomputed-sharded", "zarr2", "zarr3-shards", "n5"])
def test_a_server_that_refuses_what_does_not_exist_does_not_say_which_is_missing(
    kind: str, stored: Callable[[str], str], tmp_path: Path, command: Command,
    http_server_factory: Callable[..., FileServer],
) -> None:  # fmt: skip
    format_ = stored(kind).partition("://")[0]
    chunk_file(kind, tmp_path / "em").unlink()
    server = http_server_factory(tmp_path)
    server.absent = 403, b"<Error><Code>AccessDenied</Code></Error>"
    path = f"{format_}://{server.url}/em"
    report = check(path)
    missing = sum(level.missing for level in report.levels)
    assert sum(level.refused_or_absent for level in report.levels) == missing == len(report.missing_keys) > 0
    assert not any(level.not_stored or level.damaged for level in report.levels)
    done = command("verify", path)
    assert (done.code, f"{missing} of these refused or absent" in done.out) == (1, True)


# ---------------------------------------------------------------------------------------------------------- levels

MADE: dict[str, Callable[[Voxels], Voxels]] = {
    "mode": mode_of,
    "striding": lambda ids: ids[::2, ::2],
    "nearest": lambda ids: np.pad(ids, [(0, 1), (0, 0), (0, 0)], mode="edge")[1::2, 1::2],
}


@pytest.mark.parametrize("method", MADE)
@pytest.mark.parametrize("kind", ["precomputed", "zarr3-shards", "n5"])
def test_the_method_of_a_level_is_found(kind: str, method: str, tmp_path: Path, ids: Voxels) -> None:
    report = check(write_stored(kind, tmp_path / "em", ids, OFFSET, halved=MADE[method](ids)))
    assert report.ok
    assert report.compared[0].fitting == [method]
    assert report.compared[0].nearest == method


@pytest.mark.long
@formats
def test_a_level_of_something_else_fits_by_no_method(kind: str, tmp_path: Path, ids: Voxels) -> None:
    wrong = np.roll(mode_of(ids), 3, axis=0)
    report = check(write_stored(kind, tmp_path / "em", ids, OFFSET, halved=wrong))
    assert not report.ok
    (compared,) = report.compared
    assert (compared.fits, compared.fitting) == (False, [])
    assert 0.1 < compared.share(compared.nearest) <= 1
    assert not any(level.damaged or level.missing for level in report.levels)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_means_of_imagery_are_found(tmp_path: Path, dtype: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, SHAPE).astype(dtype)
    for number, (method, halved) in enumerate(
        {"mean": kernels.downsample(image, STEP, labels=False), "striding": image[::2, ::2]}.items()
    ):
        report = check(write_stored("zarr3", tmp_path / str(number), image, OFFSET, halved=halved))
        assert report.compared[0].fitting == [method]


@pytest.mark.long
@pytest.mark.parametrize("method", ["stride", "mode", "mean", "max"])
@pytest.mark.parametrize("what", ["image", "ids"])
def test_levels_of_tensorstore_are_told_by_their_method(what: str, method: str, tmp_path: Path, ids: Voxels) -> None:
    voxels = ids if what == "ids" else np.random.default_rng(4).integers(0, 256, SHAPE).astype(np.uint8)
    source = tensorstore.array(np.ascontiguousarray(voxels if method != "mean" else voxels.astype(np.uint32)))
    halved = tensorstore.downsample(source, [2, 2, 1], method).read().result().astype(voxels.dtype)
    report = check(write_stored("zarr3", tmp_path / "em", voxels, OFFSET, halved=halved))
    named = {"stride": ["striding"], "mode": ["mode"], "mean": ["mean"], "max": []}[method]
    expected = [] if (what, method) == ("ids", "mean") else named  # means of ids fit by no method
    assert report.compared[0].fitting == expected
    assert report.ok == bool(expected)


@pytest.mark.long
def test_imagery_that_was_smoothed_is_near_to_the_mean(tmp_path: Path, command: Command) -> None:
    image = smooth_image(SHAPE)
    mean = kernels.downsample(image, STEP, labels=False).astype(int)
    smoothed = mean + np.random.default_rng(5).integers(-3, 4, mean.shape)
    done = command("verify", write_stored("zarr3", tmp_path / "em", image, OFFSET, halved=smoothed.astype(np.uint8)))
    assert done.code == 1
    assert "NO METHOD fits; nearest is mean: " in done.error
    assert "voxels differ, on average by 1." in done.error


@pytest.mark.long
def test_levels_with_loss_are_compared_with_a_tolerance(tmp_path: Path) -> None:
    smooth = smooth_image((128, 128, 32))
    noise = np.random.default_rng(2).integers(0, 24, smooth.shape).astype(np.uint8)
    image = smooth // 2 + noise
    mean = kernels.downsample(image, STEP, labels=False)
    cases: list[tuple[str, Voxels, Voxels]] = [
        ("mean", image, mean),
        ("striding", smooth, smooth[::2, ::2]),
        ("none", image, np.roll(mean, 9, axis=0)),
    ]
    for method, fine, halved in cases:
        options: Any = {"mips": 2, "encoding": "jpeg", "compress": False, "levels": [halved]}
        report = check(write_volume(tmp_path / method, fine, **options))
        assert report.compared[0].is_lossy
        assert report.ok == (method != "none")
        assert report.compared[0].fitting[:1] == ([] if method == "none" else [method])


@pytest.mark.long
def test_edges_that_another_program_makes_differently_are_told_apart(tmp_path: Path, ids: Voxels) -> None:
    halved = mode_of(ids)
    halved[-1] += np.uint64(10**6)  # of 75 voxels, the last window has one
    report = check(write_stored("precomputed", tmp_path / "em", ids, OFFSET, halved=halved))
    assert report.ok
    tally = report.compared[0].methods["mode"]
    assert tally.differing == 0
    assert tally.cut_differing == tally.cut > 0


@pytest.mark.long
def test_levels_that_are_half_a_voxel_away_are_read_and_compared(tmp_path: Path, ids: Voxels) -> None:
    path = write_stored("zarr3", tmp_path / "em", ids, (65, -32, 16), halved=mode_of(ids))
    assert open_volume(path).layer.mips[1].refusal
    report = check(path)
    assert report.ok
    assert [level.read for level in report.levels] == CHUNKS
    assert report.compared[0].fitting == ["mode"]


def test_levels_without_whole_windows_are_not_compared(tmp_path: Path, ids: Voxels) -> None:
    path = write_stored("zarr3", tmp_path / "em", ids, OFFSET, halved=ids[:50, :47])
    metadata = tmp_path / "em" / "zarr.json"
    content = json.loads(metadata.read_text())
    level = content["attributes"]["ome"]["multiscales"][0]["datasets"][1]["coordinateTransformations"]
    level[0]["scale"], level[1]["translation"] = [40.0, 12.0, 12.0], [660.0, -250.0, 518.0]
    metadata.write_text(json.dumps(content))
    report = check(path)
    assert report.ok
    assert report.compared[0].skipped.startswith("its voxels are 1.5 x 1.5 x 1 times as large")


@pytest.mark.long
def test_an_empty_volume_fits_by_every_method(tmp_path: Path) -> None:
    nothing = np.zeros(SHAPE, np.uint64)
    report = check(write_stored("zarr3", tmp_path / "em", nothing, OFFSET, halved=nothing[::2, ::2]))
    assert report.ok
    assert [level.not_stored for level in report.levels] == CHUNKS
    assert report.compared[0].fitting[0] == "mode"


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "start"),
    [  # mips of precomputed volumes begin at whole voxels
        ("precomputed", (64, -32, 16)), ("zarr", (64, -32, 16)), ("zarr", (65, -31, 17)), ("zarr shards", (71, -29, 18))
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["image", "ids"])
def test_levels_of_own_exports_fit(kind: str, what: str, start: tuple[int, int, int], tmp_path: Path) -> None:
    voxels = smooth_image(SHAPE) if what == "image" else random_labels(SHAPE)
    corner = np.array([8 * start[0] + 4, 8 * start[1] + 4, 40 * start[2] + 20], float)
    options: dict[str, Any] = {"levels": 4, "progress": False, "resolution_nm": (8, 8, 40), "chunks": (16, 16, 8)}
    options |= {"shards": (32, 32, 16)} if kind == "zarr shards" else {}
    options["translation_nm"] = tuple(corner.tolist())
    out = tmp_path / "out.zarr"
    data = xr.DataArray(
        da.from_array(voxels, chunks=20), dims=("x", "y", "z"), name="segmentation" if what == "ids" else "image"
    )
    (to_precomputed if kind == "precomputed" else to_zarr)(data, out, **options)
    report = check(out)
    assert report.ok
    assert [compared.fitting[0] for compared in report.compared] == ["mean" if what == "image" else "mode"] * 3
    assert all(compared.methods for compared in report.compared)


@pytest.mark.long
def test_labels_beside_an_image_are_checked_too(tmp_path: Path) -> None:
    volumes = {
        "image_source": write_volume(tmp_path / "image", smooth_image(SHAPE)),
        "segmentation_source": write_volume(
            tmp_path / "ids", random_labels(SHAPE), layer_type="segmentation"
        ),
    }  # fmt: skip
    out = tmp_path / "out.zarr"
    data = ImageryClient(**volumes).dataset([[0, 0, 0], [*SHAPE]])
    assert to_zarr(data, out, chunks=(32, 32, 16), levels=3, progress=False).ok
    shutil.rmtree(f"{out}.receipts")
    report = check(out)
    assert report.ok
    assert [level.name for level in report.levels] == [
        *(f"level {n}" for n in range(3)), *(f"labels/segmentation level {n}" for n in range(3))
    ]  # fmt: skip
    assert [compared.fitting[0] for compared in report.compared] == ["mean", "mean", "mode", "mode"]
    file = next(file for file in sorted((out / "labels").rglob("*")) if file.is_file() and file.suffix != ".json")
    file.write_bytes(file.read_bytes()[:-3])
    report = check(out)
    assert [level.damaged for level in report.levels] == [0, 0, 0, 1, 0, 0]


# ----------------------------------------------------------------------------------------------- samples and clusters


@pytest.mark.long
def test_a_sample_reads_some_boxes(stored: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_tasks.boxes_of, "__defaults__", (2**17,))
    path = stored("zarr2")
    read = [[level.read for level in check(path, sample=0.25, seed=seed).levels] for seed in (1, 1, 2)]
    assert read[0] == read[1] != read[2]
    assert sum(read[0]) == round(0.25 * sum(CHUNKS))
    for fraction in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="fraction of the boxes"):
            check(path, sample=fraction)


@pytest.fixture(scope="module")
def threads() -> Any:
    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as client:
        yield client


@pytest.mark.long
def test_a_cluster_finds_the_same(stored: Callable[[str], str], tmp_path: Path, threads: Client) -> None:
    path = stored("zarr3")
    file = chunk_file("zarr3", tmp_path / "em")
    file.write_bytes(file.read_bytes()[:-10])
    here, there = check(path), check(path, cluster=threads)
    assert here.damaged == there.damaged != []
    assert here.levels == there.levels
    assert here.compared == there.compared


# ------------------------------------------------------------------------------------------------------ command line


def test_the_command_says_first_that_there_is_no_export(
    stored: Callable[[str], str], tmp_path: Path, command: Command
) -> None:
    path = stored("precomputed")
    done = command("verify", path)
    assert (done.code, done.error) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == (
        f"{path}: there are no records of an export beside it; it is checked as a volume of another program"
    )
    assert "level 0 (8_8_40): 27 of 27 chunks read" in done.out
    assert "level 1 from level 0: mode fits: 0.00% of" in done.out
    assert "no damage found" in done.out
    files = sorted((tmp_path / "em" / "8_8_40").iterdir())
    files[0].write_bytes(b"torn")
    for file in files[2:]:
        file.unlink()
    done = command("verify", str(tmp_path / "em"), "--all", "--workers", "1")
    assert done.code == 1
    assert "1 DAMAGED, 25 MISSING" in done.out
    assert f"    8_8_40/{files[0].name}: " in done.error
    assert f"    8_8_40/{files[2].name}" in done.error
    assert "    and 5 more" in done.error
    assert "Traceback" not in done.error
    report = json.loads(command("verify", path, "--json").out)
    assert (report["ok"], report["levels"][0]["missing"], report["damaged"][0]["level"]) == (False, 25, "level 0")


@pytest.mark.long
def test_the_command_names_levels_that_fit_by_no_method(tmp_path: Path, ids: Voxels, command: Command) -> None:
    path = write_stored("zarr3", tmp_path / "em", ids, OFFSET, halved=np.roll(mode_of(ids), 5, axis=1))
    done = command("verify", path)
    assert done.code == 1
    assert "level 1 from level 0: NO METHOD fits; nearest is " in done.error
    assert "no damage found" not in done.out
    done = command("verify", path, "--json")
    assert (done.code, "no records of an export" in done.error) == (1, True)
    (compared,) = json.loads(done.out)["compared"]
    assert (compared["fitting"], compared["factor"], compared["shares"]["mode"] > 0.1) == ([], [2, 2, 1], True)


@pytest.mark.long
def test_the_command_reads_over_http(
    stored: Callable[[str], str], tmp_path: Path, command: Command, http_server_factory: Callable[..., FileServer]
) -> None:
    stored("zarr3")
    server = http_server_factory(tmp_path)
    done = command("verify", f"{server.url}/em|zarr3:")
    assert (done.code, "12 of 12 chunks read" in done.out) == (0, True)


@pytest.mark.long
def test_a_bucket_that_cannot_be_listed_is_read(
    stored: Callable[[str], str], tmp_path: Path, command: Command, http_server_factory: Callable[..., FileServer]
) -> None:
    stored("precomputed")
    server = http_server_factory(tmp_path.parent)
    server.absent = 403, b"<Error><Code>AccessDenied</Code></Error>"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with environment(keys | {"AWS_ENDPOINT_URL_S3": server.url, "AWS_SESSION_TOKEN": ""}):
        path = f"s3://{tmp_path.name}/em"
        done = command("verify", path)
        assert (done.code, done.error) == (0, "")
        assert done.out.startswith(f"{path}: records of an export beside it cannot be looked for, since access is ")
        assert "27 of 27 chunks read" in done.out


@pytest.mark.long
def test_the_json_of_an_export_has_its_report(tmp_path: Path, command: Command) -> None:
    image = write_volume(tmp_path / "image", smooth_image(SHAPE))
    to_zarr(ImageryClient(image_source=image).image_volume(), tmp_path / "out.zarr", progress=False)
    report = json.loads(command("verify", str(tmp_path / "out.zarr"), "--all", "--json").out)
    assert (report["ok"], report["checked"], report["damaged"]) == (True, report["blocks"], [])


def test_what_is_no_volume_is_refused_in_a_line(tmp_path: Path, command: Command) -> None:
    done = command("verify", str(tmp_path / "nothing"))
    assert done.code == 2
    assert done.error.startswith(f"Error: There are no records of an export beside {tmp_path / 'nothing'}, ")
    assert len(done.error.splitlines()) == 1
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "info").write_text("{}")
    done = command("verify", str(tmp_path / "strange"))
    assert (done.code, "no volume that can be checked" in done.error) == (2, True)
    with pytest.raises(SourceNotFoundError):
        check(tmp_path / "nothing")


@pytest.mark.long
def test_placeholders_are_not_read(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "em", smooth_image(SHAPE), mips=3, placeholder_mip=True)
    report = check(path)
    assert report.ok
    assert (report.levels[0].read, report.levels[0].skipped) == (0, "it is a placeholder, which holds no data")
    assert [compared.finer for compared in report.compared] == ["level 1"]


@pytest.mark.long
def test_missing_chunks_of_samples_are_no_wrong_level(tmp_path: Path, ids: Voxels) -> None:
    path = write_stored("precomputed", tmp_path / "em", ids, OFFSET, halved=mode_of(ids))
    delete_chunks(path, 0, lambda start: start[0] > 64)
    report = check(path)
    assert report.levels[0].missing == 18
    assert report.compared[0].fits
