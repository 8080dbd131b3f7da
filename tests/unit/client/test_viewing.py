"""A client's links to public viewers, and clients made from links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.volumes import coordinate_volume, write_volume

from imagery_dask import ImageryClient, bounds_from_neuroglancer
from imagery_dask.client import viewing
from imagery_dask.errors import ServerError
from imagery_dask.testing.cave import CaveServer, World, endpoints, make_world
from imagery_dask.testing.cave import server as cave_server
from imagery_dask.viewer.links import link_of, read_state
from imagery_dask.viewer.states import read_layers

SHAPE, OFFSET = (40, 30, 20), (100, 200, 30)
BOUNDS = [[105, 210, 35], [116, 220, 36]]
LARGE = 2**60 + 5
PLACE = {"dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}, "position": [110.5, 215.5, 35.5]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_volume(tmp_path / "em", coordinate_volume(SHAPE, OFFSET, np.uint8), voxel_offset=OFFSET)
    ids = coordinate_volume(SHAPE, OFFSET)
    write_volume(tmp_path / "seg", ids, voxel_offset=OFFSET, layer_type="segmentation")
    return tmp_path


@pytest.fixture
def public(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ImageryClient:
    """Return a client whose folders pass for buckets, which links can name."""
    monkeypatch.setattr(
        viewing, "public_source", lambda path, form: path.replace(f"file://{folder}", "gs://bucket"), raising=True
    )
    return ImageryClient(image_source=str(folder / "em"), segmentation_source=str(folder / "seg"))


@pytest.mark.parametrize("viewer", ["neuroglancer", "spelunker", "flywire", "https://host/viewer"])
def test_links_hold_sources_place_and_objects(public: ImageryClient, viewer: str) -> None:
    link = public.neuroglancer_url(BOUNDS, [LARGE, 2**63 + 1], viewer)
    image, segmentation = read_layers(read_state(link))
    assert (image.source, segmentation.source) == ("precomputed://gs://bucket/em", "precomputed://gs://bucket/seg")
    assert segmentation.segments == (LARGE, 2**63 + 1)
    assert segmentation.timestamp is None
    np.testing.assert_array_equal(bounds_from_neuroglancer(link, (11, 10)), BOUNDS)


def test_links_to_a_position_or_a_center(public: ImageryClient) -> None:
    at = (110, 215, 35)
    for link in (public.neuroglancer_url(at), public.neuroglancer_url(at, bbox_size=(11, 10))):
        np.testing.assert_array_equal(bounds_from_neuroglancer(link, (11, 10)), BOUNDS)
    link = public.neuroglancer_url((220, 430, 35), resolution=(4, 4, 40))
    np.testing.assert_array_equal(bounds_from_neuroglancer(link, (11, 10), resolution=(8, 8, 40)), BOUNDS)


def test_links_are_refused_for_local_folders(folder: Path) -> None:
    client = ImageryClient(image_source=str(folder / "em"), segmentation=False)
    with pytest.raises(ValueError, match=r"a page on another server cannot read it.*client\.view"):
        client.neuroglancer_url(BOUNDS)


@pytest.mark.parametrize(
    ("bounds", "options", "named"),
    [
        ([[0, 0, 0], [0, 1, 1]], {}, "bounds are inverted or empty along x"),
        ([1, 2], {}, "bounds must be two corners"),
        (BOUNDS, {"root_ids": [-1]}, "root_ids must be integers from 0"),
        (BOUNDS, {"viewer": "napari"}, "viewer must be"),
    ],
)
def test_arguments_of_links_are_checked(public: ImageryClient, bounds: Any, options: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        public.neuroglancer_url(bounds, **options)


def state_at(folder: Path) -> dict[str, Any]:
    return PLACE | {
        "layers": [
            {"type": "image", "name": "other", "source": f"precomputed://file://{folder}/none", "visible": False},
            {"type": "image", "name": "dvid", "source": "dvid://https://host/uuid/em"},
            {"type": "image", "name": "em", "source": {"url": f"file://{folder}/em|neuroglancer-precomputed:"}},
            {"type": "segmentation", "name": "seg", "source": [f"precomputed://file://{folder}/seg"]},
        ]
    }


def test_a_client_of_a_link_cuts_out_what_the_link_shows(folder: Path) -> None:
    link = link_of(state_at(folder) | {"dimensions": PLACE["dimensions"]}, "https://host")
    client = ImageryClient.from_neuroglancer(link)
    assert client.resolution.tolist() == [8, 8, 40]
    bounds = bounds_from_neuroglancer(link, (11, 10))
    np.testing.assert_array_equal(bounds, BOUNDS)
    whole = coordinate_volume((11, 10, 1), BOUNDS[0])[..., 0]
    np.testing.assert_array_equal(client.segmentation_cutout(bounds, convert_to_int64=False), whole)


def test_options_come_before_the_link(folder: Path) -> None:
    client = ImageryClient.from_neuroglancer(state_at(folder), segmentation=False, resolution=(4, 4, 40))
    assert (client.segmentation_source, client.resolution.tolist()) == (None, [4, 4, 40])
    client = ImageryClient.from_neuroglancer(PLACE | {"layers": []}, image_source=str(folder / "em"))
    assert client.image_source == str(folder / "em")


def test_a_typo_in_an_option_is_a_type_error(folder: Path) -> None:
    with pytest.raises(TypeError, match="resolutoin"):
        ImageryClient.from_neuroglancer(state_at(folder), resolutoin=(4, 4, 40))


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([], "no layer that can be read: .*; got none"),
        ([{"type": "image", "name": "em", "source": "dvid://https://h/u/em"}], r"got 'em' \(dvid://https://h/u/em\)"),
        ([{"type": "image", "name": "em"}], r"layers\[0\]\.source must be the URL of a volume"),
    ],
)
def test_links_without_layers_are_refused(layers: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ImageryClient.from_neuroglancer(PLACE | {"layers": layers})


# ---------------------------------------- dynamic segmentations


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_timestamps_and_roots_of_dynamic_segmentations(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "public_source", lambda path, form: path)
    moment = int(world.times["split_1"])
    with CaveServer(world) as server:
        client = ImageryClient(server.client(), imagery=False, timestamp=moment)
        center = (np.array(world.voxel_offset) + np.array(world.mips[0].shape) // 2).tolist()
        bounds = [center, [n + 4 for n in center]]
        bounds_nm = {"resolution": world.resolution}
        root = next(iter(client.unique_roots(bounds, **bounds_nm)))
        link = client.neuroglancer_url(bounds, [root], viewer="flywire", **bounds_nm)
        (layer,) = read_layers(read_state(link))
        assert (layer.segments, layer.timestamp) == ((root,), moment)
        again = ImageryClient.from_neuroglancer(link, server.client())
        assert (again.timestamp, again.token) == (moment, server.tokens[0])
        found = again.unique_roots(bounds_from_neuroglancer(link, (4, 4, 4)))
        assert found == client.unique_roots(bounds, **bounds_nm)
        supervoxel = world.mips[0][tuple(np.array(world.mips[0].shape) // 2)]
        with pytest.raises(ValueError, match="root_ids .* are not root ids"):
            client.neuroglancer_url(bounds, [supervoxel])


def test_states_on_the_server_of_a_caveclient(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[str, Any] = {}

    def answer(call: Any) -> Any:
        if call.values["number"] not in states:
            raise endpoints.ApiError(404, "No state")
        return states[call.values["number"]]

    kept = endpoints.Endpoint.at("GET", "/nglstate/api/v1/{number}", answer)
    monkeypatch.setattr(cave_server, "_ENDPOINTS", (*cave_server._ENDPOINTS, kept))
    with CaveServer(world) as server:
        cave = server.client(max_retries=0)
        layer = {"type": "segmentation", "name": "s", "source": server.segmentation_source, "timestamp": 1.7e9}
        states["7"] = PLACE | {"layers": [layer]}
        link = f"https://host/#!middleauth+{server.url}/nglstate/api/v1/"
        client = ImageryClient.from_neuroglancer(f"{link}7", cave)
        assert (client.segmentation_source, client.timestamp) == (server.segmentation_source, 1.7e9)
        np.testing.assert_array_equal(bounds_from_neuroglancer(f"{link}7", (11, 10), client=cave), BOUNDS)
        with pytest.raises(ServerError, match="/nglstate/api/v1/8' of the link cannot be read"):
            ImageryClient.from_neuroglancer(f"{link}8", cave)


def test_no_token_is_sent_to_servers_that_a_link_names(world: World) -> None:
    with CaveServer(world) as server, CaveServer(world) as other:
        layer = {"type": "segmentation", "name": "s", "source": other.segmentation_source}
        with pytest.raises(ValueError, match="the token of this client is for"):
            ImageryClient.from_neuroglancer(PLACE | {"layers": [layer]}, server.client())
        assert other.requests == []


IDENTITY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
SHIFTED = [[1, 0, 0, 50], [0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("kind", ["image", "segmentation"])
@pytest.mark.parametrize("is_old", [True, False])
def test_links_that_move_a_layer_are_refused(folder: Path, kind: str, is_old: bool) -> None:
    source = f"precomputed://file://{folder / ('em' if kind == 'image' else 'seg')}"

    def state(matrix: Any) -> dict[str, Any]:
        moved = {"outputDimensions": PLACE["dimensions"]} | ({} if matrix is None else {"matrix": matrix})
        layer = {"source": source, "transform": matrix or IDENTITY} if is_old else {
            "source": [{"url": source, "transform": moved}]
        }  # fmt: skip
        return {**PLACE, "layers": [{"type": kind, "name": "em", **layer}]}

    for matrix in (IDENTITY, None):
        assert ImageryClient.from_neuroglancer(state(matrix))
    where = r"layers\[0\]\.transform" if is_old else r"layers\[0\]\.source\[0\]\.transform\.matrix"
    with pytest.raises(ValueError, match=rf"{where} moves or scales the layer 'em'.* Pass {kind}_source='precomputed"):
        ImageryClient.from_neuroglancer(state(SHIFTED))
    options: dict[str, Any] = {f"{kind}_source": source}
    assert ImageryClient.from_neuroglancer(state(SHIFTED), **options)
