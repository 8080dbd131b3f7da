"""Exports record the origin of their voxels, and no byte of them contains a secret."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from support.dynamic import TOKEN, served
from support.http_server import FileServer
from support.volumes import coordinate_volume, delete_chunks, random_labels, write_volume

from imagery_dask import ImageryClient, to_precomputed, to_zarr
from imagery_dask.testing.cave import World, make_world

SHAPE = (64, 48, 16)
OFFSET = (-32, 64, 7)
NM = (4.3, 4.3, 13)
#: No other text in the tests contains it.
SECRET = "planted/AWS+secret0123456789abcdefghijkl"
OPTIONS: dict[str, Any] = {"chunks": (32, 32, 16), "progress": False}


@pytest.fixture
def client(tmp_path: Path) -> ImageryClient:
    geometry: dict[str, Any] = {"resolution": NM, "voxel_offset": OFFSET, "chunk_size": (16, 16, 16), "mips": 2}
    return ImageryClient(
        image_source=write_volume(tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), **geometry),
        segmentation_source=write_volume(
            tmp_path / "ids", random_labels(SHAPE, n=20), layer_type="segmentation", **geometry
        ),
    )


@pytest.fixture(params=["zarr", "zarr 0.4", "precomputed"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def exported_provenance(data: Any, out: Path, form: str, **options: Any) -> dict[str, Any]:
    """Export an array; return the provenance that the output records."""
    if form == "precomputed":
        to_precomputed(data, out, **OPTIONS, **options)
        (step,) = json.loads((out / "provenance").read_text())["processing"]
        provenance: dict[str, Any] = step["method"]["imagery_dask"]
        return provenance
    to_zarr(data, out, ome_version="0.4" if "0.4" in form else "0.5", **OPTIONS, **options)
    return attributes(out)


def attributes(out: Path, group: str = "") -> dict[str, Any]:
    recorded: Any = zarr.open_group(out, path=group, mode="r").attrs["imagery_dask"]
    return dict(recorded)


def moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def test_the_provenance_of_imagery_is_complete(tmp_path: Path, client: ImageryClient, form: str) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    bounds = [[-30, 70, 8], [10, 100, 20]]
    provenance = exported_provenance(client.image_cutout(bounds), tmp_path / "out", form)
    assert before <= moment(provenance.pop("created")) <= moment(provenance.pop("finished")) <= datetime.now(UTC)
    assert provenance == {
        "version": version("imagery_dask"),
        "source": client.image_source,
        "mip": 0,
        "resolution_nm": list(NM),
        "source_resolution_nm": list(NM),
        "voxel_offset": bounds[0],
        "bounds_voxels": bounds,
        "missing_rule": "fill",
        "source_chunks_missing": 0,
        "source_chunks_missing_first": [],
        "supervoxels_without_root": 0,
        "blocks_failed": 0,
    }


def test_the_provenance_names_the_mip(tmp_path: Path, client: ImageryClient, form: str) -> None:
    provenance = exported_provenance(client.image_volume(mip=1), tmp_path / "out", form)
    assert (provenance["mip"], provenance["resolution_nm"]) == (1, [8.6, 8.6, 13])


def test_arrays_without_a_source_record_version_and_time(tmp_path: Path, form: str) -> None:
    placement = {"resolution_nm": NM, "translation_nm": [size / 2 for size in NM]}
    provenance = exported_provenance(coordinate_volume(SHAPE, dtype=np.uint8), tmp_path / "out", form, **placement)
    assert "source" not in provenance
    assert provenance["version"] == version("imagery_dask")
    assert moment(provenance["created"]) <= moment(provenance["finished"])


@pytest.mark.parametrize("levels", [1, "source"])
def test_missing_chunks_are_recorded(tmp_path: Path, client: ImageryClient, form: str, levels: Any) -> None:
    gone = delete_chunks(client.image_source, 0, lambda start: start[0] == -16)
    if levels == "source":
        gone += delete_chunks(client.image_source, 1, lambda start: start[0] == 0)
    assert len(gone) == (3 if levels == 1 else 5)
    provenance = exported_provenance(client.image_volume(), tmp_path / "out", form, levels=levels)
    assert provenance["source_chunks_missing"] == len(gone)
    assert len(provenance["source_chunks_missing_first"]) == len(gone)
    assert any(key.endswith("/-16-0_64-80_7-23") for key in provenance["source_chunks_missing_first"])


def test_missing_chunks_are_recorded_for_their_layer(tmp_path: Path, client: ImageryClient) -> None:
    delete_chunks(client.image_source, 0, lambda start: start[0] == -16)
    to_zarr(client.dataset(client_bounds()), tmp_path / "out", **OPTIONS)
    assert attributes(tmp_path / "out")["source_chunks_missing"] == 3
    assert attributes(tmp_path / "out", "labels/segmentation")["source_chunks_missing"] == 0


def client_bounds() -> list[list[int]]:
    return [list(OFFSET), [first + size for first, size in zip(OFFSET, SHAPE, strict=True)]]


@pytest.mark.parametrize("count", [1, 1000, 1001])
def test_listed_ids_are_recorded_themselves_or_as_a_hash(
    tmp_path: Path, client: ImageryClient, form: str, count: int
) -> None:
    ids = sorted(2**60 + 7 * n for n in range(count))
    data = client.segmentation_cutout(client_bounds(), root_ids=ids)
    provenance = exported_provenance(data, tmp_path / "out", form)
    if count <= 1000:
        assert provenance["root_ids"] == [str(value) for value in ids]
        return
    assert "root_ids" not in provenance
    assert provenance["root_ids_count"] == count
    assert provenance["root_ids_sha256"] == hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()


def test_all_ids_are_recorded_as_all(tmp_path: Path, client: ImageryClient, form: str) -> None:
    assert exported_provenance(client.segmentation_volume(), tmp_path / "out", form)["root_ids"] == "all"


# -------------------------------------------------------------------------------------------------------------- secrets


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (64, 64, 16))


def test_a_dynamic_segmentation_records_its_moment_and_no_token(tmp_path: Path, world: World, form: str) -> None:
    moment_of_split = world.times["split_1"]
    with served(world) as server:
        client = ImageryClient(segmentation_source=server.segmentation_source, auth_token=TOKEN)
        provenance = exported_provenance(client.segmentation_volume(timestamp=moment_of_split), tmp_path / "out", form)
        few = exported_provenance(
            client.segmentation_volume(timestamp=moment_of_split, stop_layer=2), tmp_path / "layer", form, levels=1
        )  # fmt: skip
    assert provenance["timestamp_unix_s"] == int(np.ceil(moment_of_split))
    assert moment(provenance["timestamp"][:19].rstrip("Z") + "Z").timestamp() == int(np.ceil(moment_of_split))
    assert (provenance["source"], provenance["root_ids"]) == (server.segmentation_source, "all")
    assert provenance["supervoxels_without_root"] == 0
    assert few["stop_layer"] == 2
    assert holding(tmp_path, TOKEN) == []


@pytest.mark.long
@pytest.mark.parametrize("form", ["zarr", "precomputed"])
def test_no_secret_of_a_bucket_is_exported(tmp_path: Path, s3_server: Any, client: ImageryClient, form: str) -> None:
    pytest.importorskip("obstore")
    bucket = f"t-{uuid.uuid4().hex[:12]}"
    source = s3_server.upload(str(client.image_source).removeprefix("precomputed://file://"), bucket, "em")
    with s3_server.environment(CAVE_TOKEN=TOKEN):
        data = ImageryClient(image_source=f"precomputed://{source}").image_volume()
        provenance = exported_provenance(data, tmp_path / "local", form)
        assert provenance["source"] == f"precomputed://{source}"
        write = to_precomputed if form == "precomputed" else to_zarr
        write(data, f"s3://{bucket}/out", **OPTIONS)  # type: ignore[operator]
        with s3_server._closing_client() as s3:
            for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]:
                target = tmp_path / "downloaded" / entry["Key"]
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(IsADirectoryError):
                    target.write_bytes(s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
    assert len([file for file in (tmp_path / "downloaded" / "out").rglob("*") if file.is_file()]) > 3
    for secret in (s3_server.secret_key, s3_server.access_key, TOKEN):
        assert holding(tmp_path, secret) == []


def test_no_secret_of_the_environment_or_secrets_files_is_exported(
    tmp_path: Path, client: ImageryClient, processes: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    secrets = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    secrets.mkdir(parents=True, exist_ok=True)
    file = secrets / "aws-secret.json"
    file.write_text(json.dumps({"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET}))
    try:
        for write in (to_zarr, to_precomputed):
            write(client.dataset(client_bounds()), tmp_path / write.__name__, cluster=processes, **OPTIONS)
    finally:
        file.unlink()
    assert holding(tmp_path, SECRET) == []


def test_no_password_of_a_url_is_exported(
    tmp_path: Path, client: ImageryClient, file_server: FileServer, form: str
) -> None:
    assert client.image_source is not None
    host = file_server.url.removeprefix("http://")
    data = ImageryClient(image_source=f"precomputed://http://me:{TOKEN}@{host}/em").image_volume()
    provenance = exported_provenance(data, tmp_path / "out", form)
    assert provenance["source"] == f"precomputed://http://{host}/em"
    assert holding(tmp_path, TOKEN) == []


def holding(folder: Path, secret: str) -> list[str]:
    """Return the names of the files that contain a secret, as stored or decompressed."""
    names, text = [], secret.encode()
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            with suppress(OSError, EOFError):
                content += gzip.decompress(content)
            if text in content or secret in str(file):
                names.append(str(file))
    return names
