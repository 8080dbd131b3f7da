"""Links: read as every viewer writes them, refused with the place of the fault, and made for public viewers."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask import bounds_from_center, bounds_from_neuroglancer
from imagery_dask.geometry.vec import Vec3
from imagery_dask.viewer.links import link_of, public_source, read_state, viewer_of
from imagery_dask.viewer.states import Place, state_of

neuroglancer = pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")

STATE = {"layers": [{"name": 'it\'s _ "em" & more', "source": "precomputed://gs://b/e_m"}], "position": [1, 2.5, 3]}
PLACE = {"dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}, "position": [100.5, 200.5, 30.5]}
SERVER = "https://spelunker.cave-explorer.org/#!middleauth+https://global.daf-apis.com/nglstate/api/v1/4658335189041152"


def url_safe(state: Any) -> str:
    """Return JSON as old viewers put it into links, without names that hold ' or "."""
    return json.dumps(state).replace('"', "'").replace(", ", "_")


PLAIN = {"layers": [{"name": "em", "source": "precomputed://gs://b/e_m"}], "position": [1, 2.5, 3]}


@pytest.mark.parametrize(
    ("given", "state"),
    [
        pytest.param(STATE, STATE, id="mapping"),
        pytest.param(json.dumps(STATE), STATE, id="json"),
        pytest.param(f"https://host/#!{json.dumps(STATE)}", STATE, id="plain"),
        pytest.param(f"https://host/#!{quote(json.dumps(STATE))}", STATE, id="escaped"),
        pytest.param(f" https://host/v1/?local_id=7#!{quote(json.dumps(STATE), safe='')}\n", STATE, id="all-escaped"),
        pytest.param(f"https://host/#!{url_safe(PLAIN)}", PLAIN, id="url-safe"),
        pytest.param(f"https://host/#!{quote(url_safe(PLAIN))}", PLAIN, id="url-safe-escaped"),
        pytest.param(link_of(STATE, "https://host"), STATE, id="ours"),
    ],
)
def test_links_are_read_as_viewers_write_them(given: Any, state: Any) -> None:
    assert read_state(given) == state


def test_states_and_links_of_the_neuroglancer_package_are_read() -> None:
    state = neuroglancer.ViewerState()
    state.dimensions = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=[8, 8, 40])
    state.position = [10.5, 20.5, 5.5]
    for written in (state, neuroglancer.to_url(state), state.to_json()):
        np.testing.assert_array_equal(bounds_from_neuroglancer(written, (1, 1)), [[10, 20, 5], [11, 21, 6]])


def test_our_links_are_read_by_the_neuroglancer_package() -> None:
    state = state_of((), Place(Vec3(10.5, 20.5, 5.5), Vec3(8.0, 8.0, 40.0), 16.0))
    theirs = neuroglancer.parse_url(link_of(state, "https://host"))
    assert list(theirs.position) == [10.5, 20.5, 5.5]
    assert [float(f"{scale:.12g}") for scale in theirs.dimensions.scales] == [8e-9, 8e-9, 4e-8]
    assert theirs.cross_section_scale == 2


@given(
    lower=st.tuples(*[st.integers(-(2**30), 2**30)] * 3), size=st.tuples(*[st.integers(1, 2**20)] * 3),
    nm=st.tuples(*[st.integers(1, 10**6).map(lambda n: n / 1000)] * 3), form=st.sampled_from(["present", "old"]),
)  # fmt: skip
def test_bounds_return_from_links_to_the_voxel(lower: Any, size: Any, nm: Any, form: Any) -> None:
    upper = [a + n for a, n in zip(lower, size, strict=True)]
    place = Place.of_bounds(Vec3.of(map(float, lower)), Vec3.of(map(float, upper)), Vec3.of(nm))
    link = link_of(state_of((), place, form), "https://host")
    np.testing.assert_array_equal(bounds_from_neuroglancer(link, size), [lower, upper])


def test_bounds_in_another_resolution() -> None:
    expected = bounds_from_center((50, 100, 30), 64, 64, 8)
    np.testing.assert_array_equal(bounds_from_neuroglancer(PLACE, (64, 64, 8), resolution=(16, 16, 40)), expected)
    np.testing.assert_array_equal(
        bounds_from_neuroglancer(PLACE | {"position": [-0.5, 0, 0]}, (1, 1), resolution=(16, 16, 40)),
        [[-1, 0, 0], [0, 1, 1]],
    )


@pytest.mark.parametrize(
    ("link", "error", "named"),
    [
        (5, TypeError, "got int"),
        ("minnie65", ValueError, "'minnie65' is neither a URL"),
        ("https://host/", ValueError, "has no state"),
        ("https://host/#x", ValueError, "has no state"),
        ('https://host/#!{"position": [1, 2', ValueError, r"not JSON: .* at character 18, near .*\[1, 2"),
        ("https://host/#!%7B%22a%22:tru%7D", ValueError, "not JSON"),
        ("https://host/#![1]", ValueError, "is a JSON object; got list"),
        ("https://host/#!{}", ValueError, r"dimensions must be .*missing"),
        (SERVER, ValueError, r"'middleauth\+https://global.daf-apis.com/nglstate/api/v1/\d+'.*client=CAVEclient"),
        ("https://ngl.cave-explorer.org/?json_url=https://h/nglstate/api/v1/5", ValueError, "client=CAVEclient"),
    ],
)
def test_malformed_links(link: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        bounds_from_neuroglancer(link, (1, 1))


def test_sizes_are_checked_before_the_link() -> None:
    with pytest.raises(ValueError, match="size"):
        bounds_from_neuroglancer("https://host/", (1.5, 2))


class Service:
    """What a CAVEclient's state service has."""

    server_address = "https://global.daf-apis.com"

    def __init__(self) -> None:
        self.state, self.asked = self, []

    def get_state_json(self, address: str) -> Any:
        self.asked.append(address)
        return PLACE


def test_states_on_a_server_are_read_with_the_client() -> None:
    service = Service()
    np.testing.assert_array_equal(
        bounds_from_neuroglancer(SERVER, (1, 1), client=service), [[100, 200, 30], [101, 201, 31]]
    )
    assert service.asked == ["https://global.daf-apis.com/nglstate/api/v1/4658335189041152"]


def test_no_token_is_sent_to_a_server_that_a_link_names() -> None:
    service = Service()
    with pytest.raises(ValueError, match="'evil.org'.*'global.daf-apis.com' alone"):
        bounds_from_neuroglancer("https://h/#!middleauth+https://evil.org/nglstate/1", (1, 1), client=service)
    assert service.asked == []


@pytest.mark.parametrize(
    ("viewer", "url", "form"),
    [
        ("spelunker", "https://spelunker.cave-explorer.org", "present"),
        ("flywire", "https://ngl.flywire.ai", "old"),
        ("https://ngl.flywire.ai/#!{}", "https://ngl.flywire.ai", "old"),
        ("https://host/v2/", "https://host/v2", "present"),
    ],
)
def test_viewers_by_name_or_url(viewer: str, url: str, form: str) -> None:
    assert viewer_of(viewer) == (url, form)


def test_unknown_viewers_are_refused() -> None:
    with pytest.raises(ValueError, match="viewer must be 'neuroglancer', .* or the URL of a viewer; got 'webknossos'"):
        viewer_of("webknossos")


@pytest.mark.parametrize(
    ("path", "form", "source"),
    [
        ("gs://bucket/em", "present", "precomputed://gs://bucket/em"),
        ("precomputed://s3://bucket/em/", "present", "precomputed://s3://bucket/em"),
        (
            "graphene://https://h/segmentation/table/t",
            "present",
            "graphene://middleauth+https://h/segmentation/table/t",
        ),
        ("graphene://middleauth+https://h/segmentation/table/t", "old", "graphene://https://h/segmentation/table/t"),
        ("zarr3://gs://bucket/em/#resolution=4,4,40", "present", "gs://bucket/em/|zarr3:"),
        ("s3://bucket/em.zarr/labels/cells", "present", "s3://bucket/em.zarr/labels/cells/|zarr:"),
    ],
)
def test_sources_of_public_viewers(path: str, form: Any, source: str) -> None:
    assert public_source(path, form) == source


@pytest.mark.parametrize(
    "path",
    [
        "/data/em", "precomputed://file:///data/em", "http://127.0.0.1:8000/em", "http://host/em", "mem://em",
        "https://localhost/em", "s3://http://host/em", "graphene://http://127.0.0.1:9/segmentation/table/t",
        "https://me:secret@host/em", "https://host/em?token=secret",
    ],
)  # fmt: skip
def test_sources_that_no_public_viewer_can_read_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"client\.view") as caught:
        public_source(path, "present")
    assert "secret" not in str(caught.value)
