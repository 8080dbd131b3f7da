"""A CAVEclient as the source: datastacks, versions, explicit arguments and failing services."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dynamic import (
    BOXES,
    TOKEN,
    WHOLE,
    assert_clean,
    bounds,
    client_of,
    closed_port,
    crop,
    cut,
    expected,
    resolution,
    whole_of,
)

from imagery_dask import ImageryClient
from imagery_dask.client.cave_queries import open_cave
from imagery_dask.errors import (
    AccessRefusedError,
    ServerError,
    SourceNotFoundError,
)  # fmt: skip
from imagery_dask.testing.cave import CaveServer, Fault, World


def test_a_caveclient_provides_sources_and_resolution(server: CaveServer, world: World) -> None:
    client = ImageryClient(client=server.client())
    assert client.image_source == world.image_source
    assert client.segmentation_source == server.segmentation_source
    assert client.resolution.tolist() == [8, 8, 40]
    assert "timestamp" not in repr(client)
    voxels = client.segmentation_cutout(
        bounds(world, BOXES[1]) * (2, 2, 1), scale_to_bounds=False, timestamp=world.times["created"]
    )
    np.testing.assert_array_equal(voxels, expected(world, world.times["created"], BOXES[1]))


def test_explicit_arguments_replace_those_of_the_caveclient(server: CaveServer, world: World) -> None:
    cave = server.client(version=2)
    assert ImageryClient(client=cave, resolution=(16, 16, 40)).resolution.tolist() == [16, 16, 40]
    assert ImageryClient(client=cave, resolution="segmentation").resolution.tolist() == [16, 16, 40]
    other = ImageryClient(client=cave, image_source=world.watershed_source.replace("watershed", "image"))
    assert other.image_source == world.image_source
    flat = ImageryClient(client=cave, segmentation_source=world.watershed_source, imagery=False)
    server.reset()
    np.testing.assert_array_equal(cut(flat, world, WHOLE), world.supervoxels)
    assert server.count() == 0
    moment = int(world.times["created"])
    pinned = ImageryClient(client=cave, timestamp=moment, imagery=False)
    assert pinned.segmentation_volume().attrs["timestamp_unix_s"] == moment
    assert pinned.segmentation_volume(timestamp=moment + 5).attrs["timestamp_unix_s"] == moment + 5
    np.testing.assert_array_equal(cut(pinned, world, WHOLE), expected(world, moment, WHOLE))
    assert ImageryClient(client=server.client(), auth_token=TOKEN, imagery=False).segmentation_source


def test_a_client_without_a_layer_sends_no_request_for_it(server: CaveServer) -> None:
    cave = server.client()
    server.reset()
    client = ImageryClient(client=cave, segmentation=False)
    assert (client.segmentation_source, server.count("info")) == (None, 0)
    with pytest.raises(ValueError, match="made without segmentation"):
        client.segmentation_volume()
    assert ImageryClient(client=cave, imagery=False).image_source is None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_version_pins_the_moment(server: CaveServer, world: World, number: int) -> None:
    moment = int(np.ceil(world.versions[number].timestamp))
    by_client = ImageryClient(client=server.client(version=number), imagery=False)
    by_keyword = ImageryClient(client=server.client(), imagery=False, version=number)
    by_volume = ImageryClient(client=server.client(), imagery=False).segmentation_volume(version=number)
    keyword_over_client = ImageryClient(client=server.client(version=4 - number), imagery=False, version=number)
    expected_voxels = expected(world, moment, WHOLE)
    for volume in (by_client.segmentation_volume(), by_keyword.segmentation_volume(), by_volume):
        assert volume.attrs["timestamp_unix_s"] == moment
        assert volume.attrs["materialization_version"] == number
        np.testing.assert_array_equal(volume, expected_voxels)
    assert keyword_over_client.segmentation_volume().attrs["timestamp_unix_s"] == moment
    assert by_client.segmentation_volume(version=2).attrs["timestamp_unix_s"] == np.ceil(world.versions[2].timestamp)
    assert "materialization_version" not in by_client.segmentation_volume(timestamp=moment).attrs
    for client in (by_client, by_keyword):
        np.testing.assert_array_equal(cut(client, world, BOXES[1]), crop(expected_voxels, BOXES[1]))
        masks = client.split_segmentation_cutout(bounds(world, BOXES[1]), mip=0, resolution=resolution(world))
        assert set(masks) == set(np.unique(crop(expected_voxels, BOXES[1])).tolist()) - {0}


def test_unknown_versions_and_wrong_combinations_are_refused(server: CaveServer) -> None:
    cave = server.client()
    with pytest.raises(ValueError, match=r"'demo_datastack' does not exist. Existing versions: 1, 2, 3"):
        ImageryClient(client=cave, version=9)
    with pytest.raises(ValueError, match=r"version=2 needs a CAVEclient"):
        client_of(server, version=2)
    with pytest.raises(ValueError, match=r"excludes timestamp"):
        ImageryClient(client=cave, version=2, timestamp=1_704_067_300)
    client = ImageryClient(client=cave)
    with pytest.raises(ValueError, match=r"Version 0 .* does not exist"):
        client.segmentation_volume(version=0)
    with pytest.raises(ValueError, match=r"excludes timestamp"):
        client.segmentation_volume(version=2, timestamp="now")
    with pytest.raises(ValueError, match=r"version=2 needs a CAVEclient"):
        client_of(server).segmentation_volume(version=2)
    for version in ("2", 2.0, True):
        with pytest.raises(TypeError, match="version must be a whole number"):
            ImageryClient(client=cave, version=version)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"stale_roots": "ignore"}, {"stale_roots": None}, {"max_requests": 0}, {"max_requests": 1.5},
     {"max_requests": True}],
)  # fmt: skip
def test_invalid_options_of_the_client_are_refused(server: CaveServer, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        client_of(server, **options)


def test_reading_sends_no_requests_through_the_caveclient(server: CaveServer, world: World) -> None:
    """The CAVEclient is used only while an ImageryClient is created, and only by the driver."""
    client = ImageryClient(client=server.client(version=3), imagery=False)
    server.reset()
    np.testing.assert_array_equal(client.segmentation_volume(), expected(world, world.versions[3].timestamp, WHOLE))
    assert {request.endpoint for request in server.requests} == {"roots_binary"}


def test_a_datastack_opens_with_a_token(server: CaveServer) -> None:
    client = ImageryClient(open_cave(server.datastack, server.url, TOKEN))
    assert client.segmentation_source == server.segmentation_source
    assert not (Path.home() / ".cloudvolume").exists()


def test_an_unknown_datastack_is_named(server: CaveServer) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no datastack 'other' at http://127") as refused:
        open_cave("other", server.url, TOKEN)
    assert_clean(refused.value)


def test_a_wrong_token_for_a_datastack_is_refused_and_not_shown(server: CaveServer) -> None:
    wrong = "badbadbad" + "0123456789"  # split, since the traceback shows the source of this test
    with pytest.raises(AccessRefusedError, match=r"refused to datastack 'demo_datastack'") as refused:
        open_cave(server.datastack, server.url, wrong)
    assert wrong not in whole_of(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_token_for_a_datastack_names_where_tokens_are_sought(server: CaveServer) -> None:
    with pytest.raises(AccessRefusedError, match=r"CAVE_TOKEN.*cave-secret\.json") as refused:
        open_cave(server.datastack, server.url)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("origin", ["environment", "file"])
def test_a_datastack_finds_its_token_in_environment_and_file(
    server: CaveServer, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    folder = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{server.url.removeprefix('http://')}-cave-secret.json"
    if origin == "environment":
        monkeypatch.setenv("CAVE_TOKEN", TOKEN)
    else:
        file.write_text(json.dumps({"token": TOKEN}))
    try:
        assert ImageryClient(open_cave(server.datastack, server.url)).segmentation_source
    finally:
        file.unlink(missing_ok=True)


def test_a_datastack_of_an_unreachable_server_is_named() -> None:
    address = closed_port()
    with pytest.raises(ServerError, match=rf"datastack 'd' at {address} does not answer") as failed:
        open_cave("d", address, TOKEN)
    assert_clean(failed.value)


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
@pytest.mark.parametrize("endpoint", ["datastack_info", "versions", "version_metadata"])
def test_failing_services_of_a_caveclient_are_named(server: CaveServer, status: int, endpoint: str) -> None:
    cave = server.client(max_retries=0)
    server.faults = lambda name, n: Fault(status=status, body=b'{"message": "because"}') if name == endpoint else None
    kinds: dict[int, type[Exception]] = {401: AccessRefusedError, 403: AccessRefusedError, 404: SourceNotFoundError}
    if endpoint == "datastack_info":
        with pytest.raises(kinds.get(status, ServerError), match="demo_datastack") as failed:
            open_cave(server.datastack, server.url, TOKEN)
    else:
        with pytest.raises((kinds.get(status, ServerError), ValueError), match="demo_datastack") as failed:
            ImageryClient(client=cave, version=2)
    assert_clean(failed.value)
