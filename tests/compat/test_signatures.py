"""The public calls have imageryclient's parameters in its order, with its defaults; ours follow as keyword-only."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageryclient
import imageryclient.imagery
import numpy as np
import pytest
from compat.imageryclient_signatures import CONSTRUCTOR, FUNCTIONS, KEYWORDS, METHODS, PROPERTIES, REQUIRED, Parameters
from support.volumes import coordinate_volume, random_labels, write_volume

import imagery_dask

TEXT = Path(__file__).resolve().parents[3] / "shared" / "reference" / "imageryclient-api.txt"

CALLS: dict[str, Parameters] = {"__init__": CONSTRUCTOR, **METHODS, **FUNCTIONS}
#: Parameters that our calls have in addition to those of imageryclient.
EXTRAS = {
    "__init__": {
        "missing",
        "version",
        "stale_roots",
        "max_requests",
        "image_kind",
        "as_segmentation",
        "outside",
        "cache_bytes",
        "lazy",
        "max_bytes",
    },
    "image_cutout": {"order"},
    "image_and_segmentation_cutout": {"order", "stop_layer"},
    "segmentation_cutout": {"stop_layer"},
    "split_segmentation_cutout": {"stop_layer"},
}
#: Defaults that differ from imageryclient's; see docs/differences.md.
IMMUTABLE = {"segmentation_colormap": None}

BOUNDS = [[40, 24, 8], [52, 34, 10]]


def our_call(name: str) -> Callable[..., Any]:
    """Return the function of a name in the table; methods are unbound."""
    owner = imagery_dask if name in FUNCTIONS else imagery_dask.ImageryClient
    call: Callable[..., Any] = getattr(owner, name)
    return call


def parameters_of(call: Callable[..., Any]) -> Parameters:
    """Return the parameters of a function in the form of the table, without `self`."""
    return {
        name: KEYWORDS
        if parameter.kind is parameter.VAR_KEYWORD
        else REQUIRED
        if parameter.default is parameter.empty
        else parameter.default
        for name, parameter in inspect.signature(call).parameters.items()
        if name != "self"
    }


def test_the_table_equals_the_documentation_of_imageryclient() -> None:
    if not TEXT.is_file():
        pytest.skip("needs ../shared/reference/imageryclient-api.txt (not part of the repository)")
    lines = TEXT.read_text().splitlines()
    calls = {}
    for line in lines:
        if match := re.match(r"(\w+)(\(.*\))$", line):
            function = ast.parse(f"def {match[1]}{match[2]}: ...").body[0]
            assert isinstance(function, ast.FunctionDef)
            arguments = function.args
            assert not arguments.posonlyargs
            assert not arguments.kwonlyargs
            assert arguments.vararg is None
            names = [argument.arg for argument in arguments.args]
            defaults = [ast.literal_eval(default) for default in arguments.defaults]
            parsed = dict(zip(names, [REQUIRED] * (len(names) - len(defaults)) + defaults, strict=True))
            calls[match[1]] = parsed | ({arguments.kwarg.arg: KEYWORDS} if arguments.kwarg else {})
    table = {"ImageryClient": CONSTRUCTOR, **METHODS, **FUNCTIONS}
    assert [(name, list(calls[name].items())) for name in sorted(calls)] == [
        (name, list(table[name].items())) for name in sorted(table)
    ]
    properties = sorted(match[1] for line in lines if (match := re.match(r"(\w+) property$", line)))
    assert properties == list(PROPERTIES)


@pytest.mark.parametrize("name", CALLS)
def test_parameters_equal_those_of_imageryclient(name: str) -> None:
    extras = EXTRAS.get(name, set())
    own = {key: value for key, value in parameters_of(our_call(name)).items() if key not in extras}
    expected = {key: IMMUTABLE.get(key, value) for key, value in CALLS[name].items()}
    assert list(own.items()) == list(expected.items())


@pytest.mark.parametrize("name", CALLS)
def test_extra_parameters_are_keyword_only_and_optional(name: str) -> None:
    parameters = inspect.signature(our_call(name)).parameters
    extras = [parameter for key, parameter in parameters.items() if key not in {"self", *CALLS[name]}]
    assert {parameter.name for parameter in extras} == EXTRAS.get(name, set())
    for parameter in extras:
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty
    for key in CALLS[name]:
        kind = parameters[key].kind
        assert kind is (inspect.Parameter.VAR_KEYWORD if key == "kwargs" else inspect.Parameter.POSITIONAL_OR_KEYWORD)


@pytest.mark.parametrize("name", CALLS)
def test_the_table_equals_the_release(name: str) -> None:
    owner = imageryclient.imagery if name in FUNCTIONS else imageryclient.ImageryClient
    released = parameters_of(getattr(owner, name))
    assert list(released.items()) == list(CALLS[name].items())


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_cannot_be_set(name: str, client: imagery_dask.ImageryClient) -> None:
    assert getattr(client, name) is not None
    with pytest.raises(AttributeError):
        setattr(client, name, None)


def test_public_names() -> None:
    assert {"ImageryClient", "bounds_from_center", "save_image_slices"} <= set(imagery_dask.__all__)
    assert all(hasattr(imagery_dask, name) for name in imagery_dask.__all__)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("signatures")
    image = coordinate_volume((32, 24, 4), (40, 24, 8), np.uint8)
    labels = random_labels((32, 24, 4), n=4)
    return {
        "image_source": write_volume(folder / "image", image, voxel_offset=(40, 24, 8)),
        "segmentation_source": write_volume(
            folder / "labels", labels, voxel_offset=(40, 24, 8), layer_type="segmentation"
        ),
    }


@pytest.fixture(scope="module")
def client(sources: dict[str, str]) -> imagery_dask.ImageryClient:
    return imagery_dask.ImageryClient(**sources)


def valid_arguments(name: str, folder: Path) -> dict[str, Any]:
    """Return arguments with which a call succeeds."""
    possible = {
        "bounds": BOUNDS,
        "image_size": (8, 6),
        "ctr": (4, 4, 4),
        "filename_prefix": str(folder / "picture"),
        "filename_suffix": "suffix",
        "img": np.zeros((4, 4, 2), dtype=np.uint8),
        "slice_axis": 2,
        "image_type": "imagery",
    }
    # Methods that write files need bounds, although the signature has a default.
    wanted = [key for key, default in CALLS[name].items() if default is REQUIRED or key == "bounds"]
    return {key: possible[key] for key in wanted}


def typos(names: list[str]) -> list[str]:
    """Misspell each name in three ways, except where the result is a name itself."""
    wrong = {variant for name in names for variant in (name[:-1], f"{name}s", name.replace("_", "")) if variant}
    return sorted(wrong - set(names))


@pytest.mark.parametrize("name", [*METHODS, *FUNCTIONS])
def test_typo_in_a_keyword_is_a_type_error(name: str, client: imagery_dask.ImageryClient, tmp_path: Path) -> None:
    call = our_call(name) if name in FUNCTIONS else getattr(client, name)
    arguments = valid_arguments(name, tmp_path)
    names = [key for key, value in parameters_of(our_call(name)).items() if value is not KEYWORDS]
    options = ["compress_level", "optimize"] if "kwargs" in CALLS[name] else []
    for typo in typos(names + options):
        with pytest.raises(TypeError, match=typo):
            call(**arguments, **{typo: None})
    assert list(tmp_path.iterdir()) == []
    call(**arguments)  # the typo was the only error


def test_typo_in_the_constructor_is_a_type_error(sources: dict[str, str]) -> None:
    for typo in typos([*CONSTRUCTOR, *EXTRAS["__init__"]]):
        with pytest.raises(TypeError, match=typo):
            imagery_dask.ImageryClient(**sources, **{typo: None})


def test_typo_in_a_call_with_computed_data_is_a_type_error(client: imagery_dask.ImageryClient, tmp_path: Path) -> None:
    prefix, pixels = str(tmp_path / "picture"), np.zeros((4, 4, 2), dtype=np.uint8)
    with pytest.raises(TypeError, match="compres_level"):
        client.save_imagery(prefix, precomputed_image=pixels, compres_level=1)
    with pytest.raises(TypeError, match="compres_level"):
        client.save_segmentation_masks(prefix, precomputed_masks={7: pixels}, compres_level=1)
    with pytest.raises(TypeError, match="compres_level"):
        client.save_image_and_segmentation_masks(prefix, precomputed_data=(pixels, {7: pixels}), compres_level=1)
    assert list(tmp_path.iterdir()) == []
