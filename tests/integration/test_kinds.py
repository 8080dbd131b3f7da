"""Ids are never averaged, whatever layer or array they come from, unless the caller says that they are intensities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import LocalCluster
from numpy.typing import NDArray
from support.volumes import write_volume

from imagery_dask import ImageryClient, to_precomputed, to_zarr
from imagery_dask.cli import main

SHAPE = (20, 18, 10)
BOUNDS = ((0, 0, 0), SHAPE)
PLACE = {"resolution_nm": (8, 8, 40), "translation_nm": (4, 4, 20)}
IDS = ["uint32", "uint64", "int32"]


def ids_of(dtype: str) -> NDArray[Any]:
    """Return ids near the upper limit of a dtype, none the mean of others."""
    limit = np.iinfo(dtype).max
    steps = np.random.default_rng(3).integers(0, 2**20 if limit > 2**20 else limit // 2, SHAPE)
    return (limit - 3 * steps.astype(np.uint64)).astype(dtype) if limit > 2**20 else (limit - steps).astype(dtype)


def volume(folder: Path, voxels: NDArray[Any], layer_type: str = "image") -> str:
    return write_volume(folder / f"{layer_type}-{voxels.dtype}", voxels, layer_type=layer_type, chunk_size=(8, 8, 8))


def level(writer: str, url: Path, index: int = 1) -> NDArray[Any]:
    """Return a level of a store as x, y, z."""
    if writer == "to_zarr":
        return np.asarray(zarr.open_array(url / str(index), mode="r")[:]).T
    client = ImageryClient(image_source=str(url))
    return np.asarray(client.image_volume(mip=index).data.compute(scheduler="synchronous"))


INPUTS: dict[str, Callable[[str], Any]] = {
    "cutout": lambda path: ImageryClient(image_source=path).image_cutout(BOUNDS),
    "volume": lambda path: ImageryClient(image_source=path).image_volume(),
    "dataset": lambda path: ImageryClient(image_source=path).dataset(BOUNDS),
    "computed": lambda path: ImageryClient(image_source=path).image_volume() + 0,
    "segmentation": lambda path: ImageryClient(segmentation_source=path, as_segmentation=True).segmentation_volume(),
}


@pytest.mark.parametrize("writer", [to_zarr, to_precomputed], ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("dtype", IDS)
def test_levels_of_an_image_layer_hold_only_ids_of_the_source(
    tmp_path: Path, dtype: str, given: str, writer: Any
) -> None:
    ids = ids_of(dtype)
    writer(INPUTS[given](volume(tmp_path, ids)), tmp_path / "o", levels=2, progress=False)
    url = tmp_path / "o"
    np.testing.assert_array_equal(level(writer.__name__, url, 0), ids)
    assert np.isin(level(writer.__name__, url), ids).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64"])
def test_a_segmentation_given_as_imagery_is_not_averaged(tmp_path: Path, dtype: str) -> None:
    ids = ids_of(dtype)
    path = volume(tmp_path, ids, "segmentation")
    to_zarr(ImageryClient(image_source=path).image_volume(), tmp_path / "o", levels=2, progress=False)
    assert np.isin(level("to_zarr", tmp_path / "o"), ids).all()


@pytest.mark.parametrize("writer", [to_zarr, to_precomputed], ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("given", ["cutout", "numpy", "dask", "variable", "client"])
def test_wide_integers_that_are_an_image_have_means(tmp_path: Path, given: str, writer: Any) -> None:
    image = ids_of("uint32")
    path, options = volume(tmp_path, image), {"kind": "image"}
    data: Any = {
        "cutout": lambda: ImageryClient(image_source=path).image_cutout(BOUNDS),
        "numpy": lambda: image,
        "dask": lambda: da.from_array(image, chunks=8),
        "variable": lambda: ImageryClient(image_source=path).dataset(BOUNDS),
        "client": lambda: ImageryClient(image_source=path, image_kind="image").image_volume(),
    }[given]()
    options = {} if given == "client" else {"kind": {"image": "image"}} if given == "variable" else options
    options |= PLACE if given in ("numpy", "dask") else {}
    writer(data, tmp_path / "o", levels=2, progress=False, **options)
    url = tmp_path / "o"
    means = image.astype(np.uint64).reshape(10, 2, 9, 2, 10).sum(axis=(1, 3)) // 4
    np.testing.assert_array_equal(level(writer.__name__, url), means)


def test_small_integers_that_are_ids_have_no_means(tmp_path: Path) -> None:
    ids = ids_of("uint8")
    for data in (ids, xr.DataArray(ids, dims=("x", "y", "z"), name="parts")):
        to_zarr(data, tmp_path / "o", levels=2, kind="segmentation", overwrite=True, progress=False, **PLACE)
        assert np.isin(level("to_zarr", tmp_path / "o"), ids).all()


@pytest.mark.parametrize("dtype", IDS)
def test_ids_of_an_image_layer_are_resized_by_picking(tmp_path: Path, dtype: str) -> None:
    ids = ids_of(dtype)
    client = ImageryClient(image_source=volume(tmp_path, ids))
    for resolution in ((4, 4, 40), (16, 16, 40), (12, 7, 33)):
        bounds = ((0, 0, 0), (10, 9, 10))
        assert np.isin(client.image_cutout(bounds, resolution=resolution, scale_to_bounds=True), ids).all()
        for call in (client.image_cutout, client.dataset):
            with pytest.raises(ValueError, match="order=1 interpolates.*image_kind='image'"):
                call(bounds, resolution=resolution, scale_to_bounds=True, order=1)
    image = ImageryClient(image_source=client.image_source, image_kind="image")
    assert image.image_cutout(((0, 0, 0), (10, 9, 10)), resolution=(16, 16, 40), order=1).compute().any()


def test_an_image_layer_is_opened_as_segmentation(tmp_path: Path) -> None:
    ids = ids_of("uint64")
    path, narrow = volume(tmp_path, ids), volume(tmp_path, ids_of("uint16"))
    with pytest.raises(ValueError, match=r"not a segmentation.*as_segmentation=True \(--as-segmentation\)"):
        ImageryClient(segmentation_source=narrow)
    client = ImageryClient(segmentation_source=path, as_segmentation=True)
    np.testing.assert_array_equal(client.segmentation_cutout(BOUNDS, convert_to_int64=False), ids)
    assert set(client.unique_roots(BOUNDS)) == set(np.unique(ids).tolist())
    with pytest.raises(ValueError, match="float32 with 1 channels, and ids are integers"):
        ImageryClient(segmentation_source=volume(tmp_path, np.zeros(SHAPE, np.float32)), as_segmentation=True)
    for arguments in ({"image_source": path, "as_segmentation": True}, {"segmentation_source": narrow}):
        with pytest.raises(ValueError, match="segmentation"):
            ImageryClient(**arguments)
    with pytest.raises(ValueError, match="image_source"):
        ImageryClient(segmentation_source=path, as_segmentation=True, image_kind="image")
    with pytest.raises(ValueError, match="image_kind must be 'image' or 'segmentation'"):
        ImageryClient(image_source=path, image_kind="labels")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("labels", "kind must be 'image' or 'segmentation'"),
        ({"image": "ids"}, "kind of image must be"),
        ({"imgae": "image"}, "kind names"),
        ("image", "is a segmentation, and ids have no mean"),
    ],
)
def test_impossible_kinds_are_refused(tmp_path: Path, kind: Any, words: str) -> None:
    path = volume(tmp_path, ids_of("uint64"), "segmentation")
    data = ImageryClient(segmentation_source=path).segmentation_volume()
    for writer in (to_zarr, to_precomputed):
        with pytest.raises(ValueError, match=words):
            writer(data, tmp_path / "o", kind=kind)
    with pytest.raises(ValueError, match="ids are integers; the image is float32"):
        to_zarr(np.zeros(SHAPE, np.float32), tmp_path / "o", kind="segmentation")
    with pytest.raises(ValueError, match="a mask, and ids have no mean"):
        to_zarr(np.zeros(SHAPE, bool), tmp_path / "o", kind="image")
    both = ImageryClient(image_source=path, segmentation_source=path).dataset(BOUNDS)
    with pytest.raises(ValueError, match="kind of a dataset names its variables"):
        to_zarr(both, tmp_path / "o", kind="segmentation")
    assert not (tmp_path / "o").exists()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["imagery-dask", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    return call


@pytest.mark.long
def test_the_command_line_says_what_layers_are(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ids_of("uint64")
    path, narrow = volume(tmp_path, ids), volume(tmp_path, ids_of("uint16"))
    region = ("--bounds", 0, 0, 0, *SHAPE, "--levels", 2)
    image, labels = ("--image-source", path, *region), ("--segmentation-source", path, *region)
    with LocalCluster(processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as started:
        cluster = ("--cluster", started.scheduler_address)
        assert run("export", "zarr", tmp_path / "ids", *image, *cluster) == 0
        assert run("export", "zarr", tmp_path / "ids", *image, *cluster, "--image-kind", "image") == 2
        assert "kind was" in capsys.readouterr().err
        assert run("export", "zarr", tmp_path / "labels", "--segmentation-source", narrow, *region, *cluster) == 2
        assert "--as-segmentation" in capsys.readouterr().err
        assert run("export", "zarr", tmp_path / "labels", *labels, *cluster, "--as-segmentation") == 0
        plan = tmp_path / "plan.json"
        options = ("--image-kind", "image", "--samples", 1, "--save", plan)
        assert run("plan", "zarr", tmp_path / "means", *image, *options) == 0
        assert json.loads(plan.read_text())["options"]["kind"] == {"image": "image"}
        assert run("export", "--plan", plan, *cluster) == 0
    assert np.isin(level("to_zarr", tmp_path / "ids"), ids).all()
    assert np.isin(level("to_zarr", tmp_path / "labels"), ids).all()
    assert np.isin(level("to_zarr", tmp_path / "means"), ids).mean() < 0.1
    assert run("verify", "--all", tmp_path / "means") == 0
