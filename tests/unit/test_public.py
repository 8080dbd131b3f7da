"""Public names are listed and documented, and the examples in docstrings are correct."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import imagery_dask
from imagery_dask import ImageryClient

PUBLIC = [
    "ImageryClient", "add_version", "bounds_from_center", "bounds_from_neuroglancer", "composite_overlay",
    "create_versions", "downsample", "open_export", "open_versions", "plan_version", "remove_version", "root_ids_of",
    "save_image_slices", "stack_images", "to_png", "to_precomputed", "to_zarr", "verify_export", "verify_versions",
    "verify_volume",
]  # fmt: skip
# Methods of imageryclient, and ours: whole layers, datasets, lookups of objects, plans.
METHODS = {
    "image_bbox_size_from_dimensions", "segmentation_bbox_size_from_dimensions", "image_cutout", "segmentation_cutout",
    "split_segmentation_cutout", "image_and_segmentation_cutout", "save_imagery", "save_segmentation_masks",
    "save_image_and_segmentation_masks", "image_volume", "segmentation_volume", "dataset",
    "unique_roots", "root_at", "remap", "plan_export", "show", "orthoviews", "browse",
    "from_neuroglancer", "neuroglancer_url", "view",
}  # fmt: skip
PROPERTIES = {
    "image_cv", "segmentation_cv", "image_source", "segmentation_source", "resolution", "timestamp", "token",
}  # fmt: skip

# Modules that import what only some installations have.
OPTIONAL = {"imagery_dask.sampling.torch_patches": "torch"}


def modules() -> list[str]:
    return [name for _, name, _ in pkgutil.walk_packages(imagery_dask.__path__, "imagery_dask.")]


def documented() -> list[tuple[str, Any]]:
    """Return every public function, class and method of the client, with its name."""
    top = [(name, getattr(imagery_dask, name)) for name in imagery_dask.__all__]
    return top + [(f"ImageryClient.{name}", getattr(ImageryClient, name)) for name in sorted(METHODS)]


def test_public_names_of_the_package() -> None:
    assert sorted(imagery_dask.__all__) == PUBLIC
    assert all(hasattr(imagery_dask, name) for name in PUBLIC)


def test_the_reference_has_every_public_name() -> None:
    pages = Path(__file__).parents[2] / "docs" / "reference"
    listed = (pages / "functions.md").read_text().partition("members:")[2]
    assert ["ImageryClient", *re.findall(r"- (\w+)", listed)] == PUBLIC


def test_public_names_of_the_client() -> None:
    own = {name for name in dir(ImageryClient) if not name.startswith("_")}
    assert own == METHODS | PROPERTIES


@pytest.mark.parametrize("name", modules())
def test_every_module_exports_existing_documented_names(name: str) -> None:
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    module = importlib.import_module(name)
    assert module.__doc__
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    for public in listed:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public} has no docstring"


@pytest.mark.parametrize(("name", "value"), documented())
def test_parameters_are_documented(name: str, value: Any) -> None:
    parameters = [parameter for parameter in inspect.signature(value).parameters.values() if parameter.name != "self"]
    text = inspect.getdoc(value) or ""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+$|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{name} has no section 'Parameters'"
    listed: list[str] = []
    for line in section[1].splitlines():
        heading = re.match(r"(\*{0,2}\w[\w, *]*?)(?: : .+)?$", line)
        if heading:
            listed += [part.strip().lstrip("*") for part in heading[1].split(",")]
    assert sorted(listed) == sorted(parameter.name for parameter in parameters)


@pytest.mark.parametrize(("name", "value"), documented())
def test_results_are_documented(name: str, value: Any) -> None:
    if inspect.isclass(value):
        return
    returns = inspect.signature(value).return_annotation
    has_section = bool(re.search(r"^Returns\n-+\n\S", inspect.getdoc(value) or "", re.MULTILINE))
    assert has_section == (returns not in (None, "None")), f"{name} returns {returns}"


@pytest.mark.parametrize(("name", "value"), documented())
def test_docstrings_have_no_unfilled_placeholder(name: str, value: Any) -> None:
    text = inspect.getdoc(value) or ""
    assert not re.search(r"\{\w+\}(?![_.\w])", re.sub(r"``[^`]*``", "", text)), (
        f"{name} has an unfilled placeholder in its docstring"
    )
    assert text.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_properties_are_documented(name: str) -> None:
    assert inspect.getdoc(inspect.getattr_static(ImageryClient, name))


def modules_with_examples() -> Iterator[str]:
    folder = Path(imagery_dask.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        if ">>> " in path.read_text():
            yield ".".join(("imagery_dask", *path.relative_to(folder).with_suffix("").parts))


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_in_docstrings_are_correct(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_no_default_is_mutable() -> None:
    for name, value in documented():
        for parameter in inspect.signature(value).parameters.values():
            assert not isinstance(parameter.default, (list, dict, set)), f"{name}({parameter.name}=...)"


@pytest.mark.parametrize(("name", "value"), documented())
def test_a_typo_in_a_keyword_is_a_type_error(name: str, value: Any) -> None:
    signature = inspect.signature(value)
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    if rest:
        text = inspect.getdoc(value) or ""
        accepted = ("imageio.imwrite", "arguments of the writer", "arguments of `ImageryClient`")
        assert any(words in text for words in accepted)  # tests of these functions pass a typo
        return
    with pytest.raises(TypeError, match="bbox_sise"):
        signature.bind_partial(bbox_sise=(1, 1))
