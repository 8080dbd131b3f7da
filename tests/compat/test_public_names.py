"""Every public name of the released imageryclient is here with its parameters, or listed in docs/differences.md."""

from __future__ import annotations

import inspect
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import imageryclient
import imageryclient.composite
import imageryclient.imagery
import imageryclient.utils
import numpy as np
import pytest
from compat.test_signatures import EXTRAS, IMMUTABLE, parameters_of
from PIL import Image
from support.volumes import coordinate_volume, random_labels, write_volume

import imagery_dask
from imagery_dask import ImageryClient

DIFFERENCES = Path(__file__).parents[2] / "docs" / "differences.md"
#: Modules of imageryclient, and where their names are here.
MODULES: dict[ModuleType, Any] = {
    imageryclient: imagery_dask,
    imageryclient.imagery: imagery_dask,
    imageryclient.composite: imagery_dask.composite,
}


def names_of(module: ModuleType) -> dict[str, Any]:
    """Return the public names that a module of imageryclient defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", "").startswith("imageryclient") or isinstance(value, (str, float)))
    }


NAMES = [
    pytest.param(theirs, getattr(MODULES[module], name, None), name, id=f"{module.__name__}.{name}")
    for module in MODULES
    for name, theirs in names_of(module).items()
]
METHODS = [name for name in vars(imageryclient.ImageryClient) if not name.startswith("_")]


def check_parameters(ours: Any, theirs: Any, name: str) -> None:
    own = {key: value for key, value in parameters_of(ours).items() if key not in EXTRAS.get(name, set())}
    assert list(own.items()) == [(key, IMMUTABLE.get(key, value)) for key, value in parameters_of(theirs).items()]


@pytest.mark.parametrize(("theirs", "ours", "name"), NAMES)
def test_names_of_the_release(theirs: Any, ours: Any, name: str) -> None:
    assert ours is not None
    if inspect.isfunction(theirs):
        check_parameters(ours, theirs, name)
    elif not inspect.isclass(theirs):
        assert ours == theirs


@pytest.mark.parametrize("name", ["__init__", *METHODS])
def test_methods_and_properties_of_the_release(name: str) -> None:
    theirs, ours = (inspect.getattr_static(cls, name) for cls in (imageryclient.ImageryClient, ImageryClient))
    assert isinstance(ours, property) == isinstance(theirs, property)
    if not isinstance(theirs, property):
        check_parameters(ours, theirs, name)


def test_names_that_are_not_here_are_listed() -> None:
    modules = {name for name, value in vars(imageryclient).items() if isinstance(value, ModuleType)}
    missing = {name for name in modules if not isinstance(getattr(imagery_dask, name, None), ModuleType)}
    assert missing == {"imagery", "utils"}
    text = DIFFERENCES.read_text()
    assert all(f"`{name}`" in text for name in missing)
    assert {"rescale_to_bounds", "segmentation_masks"} <= names_of(imageryclient.utils).keys()
    assert "`imageryclient.utils`" in text


# --------------------------------------------------------------------------------------------------- what they do


def pictures() -> list[Any]:
    random = np.random.default_rng(2)
    transparent = Image.fromarray(random.integers(0, 256, (7, 9, 4), dtype=np.uint8))
    return [
        transparent, transparent.convert("RGB"), transparent.convert("L"), random.integers(0, 256, (5, 4), np.uint8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"spacing": 0}, {"direction": "vertical"}, {"direction": "vertical", "spacing": 3}]
)
@pytest.mark.parametrize("count", [1, 4])
def test_pictures_are_stacked_as_by_imageryclient(options: dict[str, Any], count: int) -> None:
    ours = imagery_dask.stack_images(pictures()[:count], **options)
    theirs = imageryclient.stack_images(pictures()[:count], **options)
    assert ours.mode == theirs.mode
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_stacking_no_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="no picture"):
        imagery_dask.stack_images([])
    with pytest.raises(ValueError, match="diagonal"):
        imagery_dask.stack_images(pictures(), direction="diagonal")


@pytest.mark.parametrize("options", [{}, {"h": 0.3, "l": 0.4, "s": 0.5}, {"palette": "hls"}, {"palette": "Set2"}])
def test_colors_equal_those_of_imageryclient(options: dict[str, Any]) -> None:
    masks = [np.zeros((2, 2))] * 5
    ours = imagery_dask.composite.discrete_colors(masks, **options)
    np.testing.assert_allclose(ours, imageryclient.composite.discrete_colors(masks, **options), atol=1e-12)
    by_id = {2**60 + n: mask for n, mask in enumerate(masks)}
    colors = imagery_dask.composite.discrete_colors(by_id, **options)
    expected = imageryclient.composite.discrete_colors(by_id, **options)
    assert list(colors) == list(expected)
    np.testing.assert_allclose(list(colors.values()), list(expected.values()), atol=1e-12)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("names")
    labels = random_labels((16, 16, 4), n=4)
    return {
        "image_source": write_volume(folder / "image", coordinate_volume((16, 16, 4), (0, 0, 0), np.uint8)),
        "segmentation_source": write_volume(folder / "labels", labels, layer_type="segmentation"),
    }


MOMENT = datetime(2024, 3, 1, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize("moment", [MOMENT, MOMENT.replace(tzinfo=None), MOMENT.timestamp()], ids=str)
def test_a_given_timestamp_is_returned(sources: dict[str, str], moment: Any) -> None:
    ours, theirs = (cls(**sources, timestamp=moment) for cls in (ImageryClient, imageryclient.ImageryClient))
    assert ours.timestamp == theirs.timestamp == moment


def test_timestamp_is_the_moment_of_the_cutouts(sources: dict[str, str]) -> None:
    before = time.time()
    assert before <= ImageryClient(**sources).timestamp <= time.time()  # type: ignore[arg-type]
    now = ImageryClient(**sources, timestamp="now")  # type: ignore[arg-type]
    assert before - 1 <= now.timestamp <= time.time()
    assert now.timestamp == now.timestamp
    assert ImageryClient(**sources, timestamp=MOMENT.isoformat()).timestamp == MOMENT.timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [None, "not-a-secret"])
def test_token(sources: dict[str, str], token: str | None) -> None:
    ours, theirs = (cls(**sources, auth_token=token) for cls in (ImageryClient, imageryclient.ImageryClient))
    assert ours.token == theirs.token == token
    assert "not-a-secret" not in repr(ours)
    with pytest.raises(AttributeError):
        ours.token = "other"
