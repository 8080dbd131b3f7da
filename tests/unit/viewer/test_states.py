"""States in both forms hold places to the voxel and ids exactly; errors name the part that is wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.geometry.vec import Vec3
from imagery_dask.render.palettes import colors_of
from imagery_dask.viewer.states import Place, StateLayer, read_layers, read_place, state_of

FORMS = ("present", "old")
LARGE = 864_691_135_000_000_001

positions = st.tuples(*[st.integers(-(2**40), 2**40).map(lambda voxel: voxel + 0.5)] * 3).map(Vec3.of)
resolutions = st.tuples(*[st.integers(1, 10**7).map(lambda nm: nm / 1000)] * 3).map(Vec3.of)
ids = st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=5).map(tuple)
layers = st.builds(
    StateLayer, st.text(), st.just("segmentation"),
    st.sampled_from(["precomputed://gs://b/seg", "graphene://https://host/segmentation/table/t"]), ids,
    st.none() | st.integers(1, 2**33).map(float), st.booleans(),
)  # fmt: skip


@given(position=positions, resolution=resolutions, shown=st.lists(layers, max_size=3), form=st.sampled_from(FORMS))
def test_places_and_layers_return_from_their_states(position: Any, resolution: Any, shown: Any, form: Any) -> None:
    state = json.loads(json.dumps(state_of(tuple(shown), Place(position, resolution, 3.5), form)))
    assert read_place(state) == Place(position, resolution)
    assert read_layers(state) == tuple(shown)


@pytest.mark.parametrize("form", FORMS)
def test_segments_have_the_colors_of_pictures(form: Any) -> None:
    (layer,) = state_of((StateLayer("s", "segmentation", "precomputed://gs://b/s", (LARGE,)),), None, form)["layers"]
    r, g, b = colors_of(np.array(LARGE, np.uint64)[None])[0].tolist()
    assert layer["segments"] == [str(LARGE)]
    assert layer["segmentColors"] == {str(LARGE): f"#{r:02x}{g:02x}{b:02x}"}


def test_a_state_of_spelunker() -> None:
    state = {
        "dimensions": {"t": [1, "s"], "z": [4e-8, "m"], "y": [0.004, "µm"], "x": [4, "nm"]},
        "position": [0, 21000.5, 120000.5, 240640.25],
        "layers": [
            {"type": "image", "name": "img", "source": "gs://b/em|neuroglancer-precomputed:", "shader": "..."},
            {
                "type": "segmentation", "name": "seg", "timestamp": "1700000000000",
                "source": [
                    {"url": "graphene://middleauth+https://h/segmentation/table/t", "subsources": {"mesh": True}},
                    "precomputed://gs://b/skeletons",
                ],
                "segments": [str(LARGE), "!864691135000000002", LARGE + 7],
            },
            {"type": "annotation", "name": "ann", "source": "local://annotations"},
            {"type": "image", "name": "old", "archived": True, "source": {"url": "zarr://s3://b/em.zarr"}},
            {"type": "image", "name": "new", "source": "s3://b/em.zarr/|zarr3:labels/cells"},
        ],
    }  # fmt: skip
    assert read_place(state) == Place(Vec3(240640.25, 120000.5, 21000.5), Vec3(4.0, 4.0, 40.0))
    assert read_layers(state) == (
        StateLayer("img", "image", "precomputed://gs://b/em"),
        StateLayer(
            "seg", "segmentation", "graphene://middleauth+https://h/segmentation/table/t", (LARGE, LARGE + 7), 1.7e9
        ),
        StateLayer("old", "image", "zarr://s3://b/em.zarr", visible=False),
        StateLayer("new", "image", "zarr3://s3://b/em.zarr/labels/cells"),
    )


def test_a_state_of_flywire() -> None:
    position = {"voxelSize": [4, 4, 40], "voxelCoordinates": [133024.5, 54812, 2000.5]}
    state = {
        "layers": {
            "image": {"type": "image", "source": "precomputed://gs://b/image_rechunked"},
            "seg": {
                "type": "segmentation_with_graph", "source": "graphene://https://h/segmentation/table/fly_v31",
                "segments": ["720575940621039145"], "timestamp": 1600000000,
            },
        },
        "navigation": {"pose": {"position": position}, "zoomFactor": 8},
        "perspectiveOrientation": [0, 0, 0, 1],
    }  # fmt: skip
    assert read_place(state) == Place(Vec3(133024.5, 54812.0, 2000.5), Vec3(4.0, 4.0, 40.0))
    image, segmentation = read_layers(state)
    assert (image.name, segmentation.name, segmentation.segments) == ("image", "seg", (720575940621039145,))
    assert segmentation.timestamp == 1.6e9


PRESENT = {
    "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
    "position": [1, 2, 3],
    "layers": [
        {"type": "image", "source": "precomputed://gs://b/em", "name": "em"},
        {"type": "segmentation", "source": "precomputed://gs://b/s", "name": "s", "segments": ["1"]},
    ],
}
OLD = {"navigation": {"pose": {"position": {"voxelSize": [4, 4, 40], "voxelCoordinates": [1, 2, 3]}}}}


def changed(state: Any, path: str, value: Any) -> Any:
    """Return a copy of a state with another value at a path; None removes it."""
    state = at = copy.deepcopy(state)
    *keys, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
    for key in keys:
        at = at[key]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return state


@pytest.mark.parametrize(
    ("state", "path", "value", "named"),
    [
        (PRESENT, "dimensions", None, r"dimensions must be .*it is missing"),
        (PRESENT, "dimensions/y", None, r"dimensions has no y"),
        (PRESENT, "dimensions/y", [8e-9], r"dimensions\.y must be a number and a unit"),
        (PRESENT, "dimensions/z", [4e-8, "V"], r"dimensions\.z\[1\] must be a unit of length.*'V'"),
        (PRESENT, "dimensions/z", [0, "m"], r"dimensions\.z\[0\] must be positive"),
        (PRESENT, "position", None, r"position must be a list; it is missing"),
        (PRESENT, "position", [1, 2], r"position must be 3 numbers, one for each of x, y, z; got \[1, 2\]"),
        (PRESENT, "position/1", "2", r"position\[1\] \(y\) must be a number"),
        (PRESENT, "position/1", 10**400, r"position\[1\] \(y\) must be a number below"),
        (OLD, "navigation/pose", {}, r"navigation\.pose\.position must be"),
        (OLD, "navigation/pose/position/voxelSize", None, r"navigation\.pose\.position\.voxelSize must be a list"),
        (OLD, "navigation/pose/position/voxelSize", [4, 4, 0], r"voxelSize must be positive"),
        (OLD, "navigation/pose/position/voxelCoordinates", [1, 2], r"voxelCoordinates must be three numbers"),
        (OLD, "navigation/pose/position/voxelCoordinates/2", True, r"voxelCoordinates\[2\] must be a number"),
    ],
)
def test_malformed_places_name_the_part(state: Any, path: str, value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=r"^In the Neuroglancer state, .*" + named):
        read_place(changed(state, path, value))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("layers", None, r"layers must be a list; it is missing"),
        ("layers/1", "seg", r"layers\[1\] must be a layer"),
        ("layers/0/source", None, r"layers\[0\]\.source must be the URL"),
        ("layers/0/source", [], r"layers\[0\]\.source has no URL"),
        ("layers/0/source", [{"url": 5}], r"layers\[0\]\.source\[0\]\.url must be the URL"),
        ("layers/0/name", 5, r"layers\[0\]\.name must be text"),
        ("layers/1/segments", "1", r"layers\[1\]\.segments must be a list"),
        ("layers/1/segments/0", 8.6e17, r"layers\[1\]\.segments\[0\] must be an id in decimal digits"),
        ("layers/1/segments/0", str(2**64), r"layers\[1\]\.segments\[0\] must be at most"),
        ("layers/1/timestamp", "yesterday", r"layers\[1\]\.timestamp must be a number"),
        ("layers/1/transform", [1, 2], r"layers\[1\]\.transform\[0\] must be a list"),
        (
            "layers/0/source",
            {"url": "n5://h", "transform": {"matrix": [["1"]]}},
            r".*matrix\[0\]\[0\] must be a number",
        ),
    ],
)
def test_malformed_layers_name_the_part(path: str, value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=r"^In the Neuroglancer state, " + named):
        read_layers(changed(PRESENT, path, value))


def test_secrets_in_sources_are_not_shown() -> None:
    state = changed(PRESENT, "layers/0/source", {"link": "precomputed://https://me:secret@h/em"})
    state["layers"][0]["source"]["url"] = ["https://me:secret@h/em"]
    with pytest.raises(ValueError, match="source") as caught:
        read_layers(state)
    assert "secret" not in str(caught.value)
