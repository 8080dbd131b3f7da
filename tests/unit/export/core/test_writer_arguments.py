"""Writers, option classes, plans and the command line have the same options with the same defaults."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import pytest

from imagery_dask import downsample, to_png, to_precomputed, to_zarr
from imagery_dask.cli.cmd_downsample import downsample as downsample_command
from imagery_dask.cli.cmd_export import export
from imagery_dask.cli.formats import FORMATS
from imagery_dask.export.core.run_options import RunOptions
from imagery_dask.export.core.writer_arguments import RUN_PROSE, flags_of
from imagery_dask.export.downsampling.downsample_options import DownsampleOptions
from imagery_dask.export.images.image_options import ImageOptions
from imagery_dask.export.precomputed.precomputed_options import PrecomputedOptions
from imagery_dask.export.zarr.zarr_options import ZarrOptions
from imagery_dask.serialization import to_json

WRITERS: dict[str, tuple[Callable[..., Any], type[Any]]] = {
    "zarr": (to_zarr, ZarrOptions),
    "precomputed": (to_precomputed, PrecomputedOptions),
    "png": (to_png, ImageOptions),
    "downsample": (downsample, DownsampleOptions),
}
ID = 2**60 + 1


def defaults_of(options: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(options)}


@pytest.mark.parametrize("name", WRITERS)
def test_keywords_of_a_writer_are_those_of_its_options_and_of_runs(name: str) -> None:
    writer, options = WRITERS[name]
    keywords = {
        parameter.name: parameter.default
        for parameter in inspect.signature(writer).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    of_run = {key: default for key, default in defaults_of(RunOptions).items() if key in RUN_PROSE}
    if name == "png":
        del of_run["block_mib"]
    assert keywords == defaults_of(options) | of_run


@pytest.mark.parametrize("name", [*(form.name for form in FORMATS), "downsample"])
def test_flags_have_the_defaults_and_help_of_the_options(name: str) -> None:
    command = downsample_command if name == "downsample" else export.commands[name]
    flags = {parameter.name: parameter for parameter in command.params}
    for field in dataclasses.fields(WRITERS[name][1]):
        for prefix, flag in flags_of(field.metadata).items():
            option = flags[f"{prefix}_{field.name}".strip("_")]
            assert isinstance(option, click.Option)
            assert option.help == flag.help
            expected = field.default if flag.default is None else flag.default
            assert option.default == expected or option.default == str(expected)


@pytest.mark.parametrize(
    "options",
    [
        ZarrOptions(),
        ZarrOptions(chunks=np.array([32, 16, 8]), shards=[64, 64, 64], levels=3, resolution_nm=(8, 8, 40.5)),
        PrecomputedOptions(encoding={"image": "jpeg"}, quality=80, compress=None, translation_nm=np.zeros(3)),
    ],
)
def test_options_of_volumes_return_from_json(options: Any) -> None:
    content = json.loads(json.dumps(to_json(options)))
    again = type(options)(**content)
    assert again == options
    assert to_json(again) == content


@pytest.mark.parametrize(
    "options",
    [
        ImageOptions(),
        ImageOptions(what="masks", slice_axis="x", root_ids=[ID, 7], colors={ID: (1, 2, 3)}, tile=64),
        ImageOptions(window=(0, 255), bits=16, names="absolute", voxel_offset=np.array([-1, 0, 2])),
    ],
)
def test_options_of_images_return_from_json(options: ImageOptions) -> None:
    content = json.loads(json.dumps(to_json(options)))
    again = ImageOptions.from_json(content)
    assert again == options
    assert to_json(again) == content
    assert again.keep in (None, (7, ID))


def test_the_json_of_options_keeps_its_keys() -> None:
    assert to_json(ZarrOptions(chunks=(4, 4, 4))) == {
        "chunks": [4, 4, 4], "shards": "auto", "levels": 1, "codec": "auto", "ome_version": "0.5",
        "resolution_nm": None, "translation_nm": None,
    }  # fmt: skip
    assert to_json(PrecomputedOptions(encoding={"image": "raw"})) == {
        "encoding": {"image": "raw"}, "chunks": None, "levels": 1, "compress": "auto", "quality": None,
        "resolution_nm": None, "translation_nm": None,
    }  # fmt: skip
    assert to_json(ImageOptions(what="masks", slice_axis="y", root_ids=[ID], colors={ID: (1, 2, 3)})) == {
        "what": "masks", "slice_axis": 1, "names": "reference", "format": "png", "root_ids": [str(ID)],
        "colors": {str(ID): [1, 2, 3, 255]}, "window": None, "bits": 8, "tile": None, "alpha": 0.2, "outline": False,
        "merge_outline": True, "width": 10, "voxel_offset": None, "max_files": 1_000_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "given", "error", "words"),
    [
        (ZarrOptions, {"chunks": (4, 4)}, ValueError, ["chunks", "(4, 4)"]),
        (ZarrOptions, {"shards": (64, 64, 64), "ome_version": "0.4"}, ValueError, ["0.4", "shards=None"]),
        (ZarrOptions, {"codec": "lz4"}, ValueError, ["codec", "'lz4'"]),
        (ZarrOptions, {"levels": 0}, ValueError, ["levels", "0"]),
        (ZarrOptions, {"resolution_nm": (8, 8, 0)}, ValueError, ["resolution_nm", "(8, 8, 0)"]),
        (PrecomputedOptions, {"compress": "zip"}, ValueError, ["compress", "'zip'"]),
        (PrecomputedOptions, {"encoding": 3}, ValueError, ["encoding", "3"]),
        (ImageOptions, {"root_ids": [5]}, ValueError, ["root_ids", "what='imagery'"]),
        (ImageOptions, {"window": (5, 5)}, ValueError, ["low < high", "5"]),
        (ImageOptions, {"tile": 0}, ValueError, ["tile", "0"]),
        (ImageOptions, {"what": "overlay", "width": 0}, ValueError, ["width", "0"]),
        (ImageOptions, {"what": "labels", "colors": {1: (1, 2, 3)}}, ValueError, ["colors", "overlay"]),
        (ImageOptions, {"titel": 4}, TypeError, ["titel"]),
    ],
)
def test_options_are_validated_when_made(
    options: type[Any], given: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        options(**given)
    assert all(word in str(caught.value) for word in words)


def test_options_are_frozen() -> None:
    for _, options in WRITERS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            next(iter([options()])).levels = 2
