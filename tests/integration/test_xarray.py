"""xarray objects of a client: blocks that both variables share, labels of plots, and the accessor ``em``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.http_server import FileServer
from support.programs import python
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, open_export
from imagery_dask.arrays.lazy import lazy_array, shared_block_edges
from imagery_dask.arrays.origins import source_of
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout
from imagery_dask.model.layer import Mip

IMAGE, IDS = (64, 64, 32), (32, 32, 32)
START = (16, -32, 4)
BOUNDS = [START, tuple(np.add(START, IMAGE).tolist())]


@pytest.fixture(scope="module")
def image() -> Any:
    return coordinate_volume(IMAGE, START, np.uint8)


@pytest.fixture(scope="module")
def ids() -> Any:
    return random_labels(IDS, n=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image: Any, ids: Any) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    half = (START[0] // 2, START[1] // 2, START[2])
    write_volume(folder / "em", image, resolution=(8, 8, 40), voxel_offset=START, chunk_size=(16, 16, 8))
    write_volume(
        folder / "ids", ids, resolution=(16, 16, 40), voxel_offset=half, chunk_size=(16, 8, 16),
        layer_type="segmentation",
    )  # fmt: skip
    return folder


def sources(root: Any) -> dict[str, str]:
    return {"image_source": f"{root}/em", "segmentation_source": f"{root}/ids"}


# ------------------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("block_bytes", [1, 2**15, 2**24])
def test_variables_of_a_dataset_share_blocks_that_read_each_chunk_once(
    folder: Path, image: Any, ids: Any, configure: Any, http_server_factory: Callable[..., FileServer], block_bytes: int
) -> None:
    configure("lazy.block_bytes", block_bytes)
    server = http_server_factory(folder)
    data = ImageryClient(**sources(server.url), cache_bytes=0).dataset(BOUNDS)
    assert data["image"].chunks == data["segmentation"].chunks
    assert set(data.chunks) == {"x", "y", "z"}
    server.reset()
    loaded = data.compute()
    paths = Counter(request.path for request in server.requests if not request.path.endswith("info"))
    assert set(paths.values()) == {1}
    assert len(paths) == 4 * 4 * 4 + 2 * 4 * 2
    np.testing.assert_array_equal(loaded["image"], image)
    np.testing.assert_array_equal(loaded["segmentation"], ids.repeat(2, axis=0).repeat(2, axis=1))


def cutout(voxel_nm: int, start: int, chunk: int, target: VoxelGrid, dtype: str) -> Cutout:
    """Return a cutout of a made-up volume that is as long along each axis."""
    grid = VoxelGrid.between((start,) * 3, (start + 4000,) * 3, (voxel_nm,) * 3)
    return Cutout("file:///nowhere", Mip(0, "0", grid, Vec3(chunk, chunk, chunk), "raw"), dtype, 1, target)


@given(
    nm=st.tuples(st.sampled_from([4, 8, 12]), st.sampled_from([4, 8, 16])), data=st.data(),
    chunks=st.tuples(st.sampled_from([16, 32, 48, 50]), st.sampled_from([16, 32])),
)  # fmt: skip
def test_shared_blocks_cut_no_chunk_where_that_is_possible(nm: Any, chunks: Any, data: st.DataObject) -> None:
    target = VoxelGrid.between((0, 0, 0), (data.draw(st.integers(1, 600)),) * 3, (4, 4, 4))
    starts = [data.draw(st.integers(-2, 2)) * chunk for chunk in chunks]
    cutouts = [
        cutout(*each, target, dtype) for *each, dtype in zip(nm, starts, chunks, ("uint8", "uint64"), strict=True)
    ]
    for edges, size in zip(shared_block_edges(cutouts), target.shape, strict=True):
        assert edges == sorted({0, *edges, size})
        lengths = [chunk * own // 4 for chunk, own in zip(chunks, nm, strict=True)]
        longest = max(lengths)
        assert len(edges) - 1 >= size // max(4 * longest, 512)  # not one block for all
        if longest % min(lengths) == 0:
            for start, length, own in zip(starts, lengths, nm, strict=True):
                assert all((edge - start * own // 4) % length == 0 for edge in edges[1:-1])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    low=st.tuples(*[st.integers(0, 20)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    block=st.sampled_from([1, 2**12]),
)
def test_any_region_has_the_voxels_of_its_cutouts(
    folder: Path, configure: Any, low: Any, size: Any, block: int
) -> None:
    configure("lazy.block_bytes", block)
    client = ImageryClient(**sources(folder))
    lower = np.add(START, low)
    data = client.dataset([lower, lower + size], convert_to_int64=True).compute()
    image, ids = client.image_and_segmentation_cutout([lower, lower + size])
    np.testing.assert_array_equal(data["image"].squeeze(), image)
    np.testing.assert_array_equal(data["segmentation"].squeeze(), ids)


def test_arrays_of_other_blocks_have_other_names(folder: Path, configure: Any) -> None:
    configure("lazy.block_bytes", 1)
    data = ImageryClient(**sources(folder)).dataset(BOUNDS)
    source = source_of(data["image"].data)
    assert source is not None
    own = lazy_array(source.cutout, squeeze=False)
    assert own.chunks != data["image"].chunks
    assert own.name != data["image"].data.name
    total = (own + data["image"].data).compute()
    np.testing.assert_array_equal(total, own.compute() * np.uint8(2))


def test_a_dataset_is_not_resampled_unless_asked(folder: Path) -> None:
    client = ImageryClient(**sources(folder), resolution=(4, 4, 40))
    bounds = np.multiply(BOUNDS, (2, 2, 1))
    assert tuple(client.dataset(bounds).sizes.values()) == IMAGE
    assert tuple(client.dataset(bounds, scale_to_bounds=True).sizes.values()) == (128, 128, 32)


# ------------------------------------------------------------------------------------------------------------- plots


def test_plots_are_labelled(folder: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot

    client = ImageryClient(**sources(folder))
    for array, text in ((client.image_volume(), "intensity"), (client.segmentation_volume(), "segment id")):
        plot = array.isel(z=3).plot.imshow(x="x", yincrease=False)
        assert (plot.axes.get_xlabel(), plot.axes.get_ylabel()) == ("x [nm]", "y [nm]")
        assert plot.colorbar.ax.get_ylabel() == text
        pyplot.close("all")


# ---------------------------------------------------------------------------------------------------- the accessor em


@pytest.fixture
def data(folder: Path) -> xr.Dataset:
    return ImageryClient(**sources(folder)).dataset(BOUNDS)


boxes = st.tuples(*(st.tuples(st.integers(-3, n - 1), st.integers(1, 40)) for n in IMAGE)).filter(
    lambda box: all(first + size > 0 for first, size in box)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=boxes)
def test_a_crop_is_the_cutout_of_its_bounds(data: xr.Dataset, box: Any) -> None:
    lower = np.add(START, [first for first, _ in box])
    upper = lower + [size for _, size in box]
    inside = tuple(slice(max(0, first), first + size) for first, size in box)
    expected = data.isel(dict(zip("xyz", inside, strict=True)))
    nm = data.em.crop(np.multiply([lower, upper], (8, 8, 40)))
    xr.testing.assert_identical(nm.coords.to_dataset(), expected.coords.to_dataset())
    assert data.em.crop([lower, upper], resolution=(8, 8, 40)).sizes == nm.sizes
    assert data["image"].em.crop([lower, upper], resolution=(8, 8, 40)).shape == expected["image"].shape
    assert nm.chunks  # nothing is read


def test_a_crop_outside_says_where_the_data_are(data: xr.Dataset) -> None:
    with pytest.raises(ValueError, match=r"no voxel of the data, .* \[132.0, -252.0, 180.0\] to \[636.0, 252.0, 1420"):
        data.em.crop(BOUNDS[:1] + [np.add(START, 1)])
    with pytest.raises(ValueError, match="bounds"):
        data.em.crop([(9, 9, 9), (1, 1, 1)])
    with pytest.raises(ValueError, match="no coordinate 'x'"):
        data.drop_vars("x").em.crop(BOUNDS)


def test_a_crop_is_exported_and_opened(data: xr.Dataset, tmp_path: Path) -> None:
    part = data.em.crop([(200, -200, 400), (400, 100, 1000)])
    report = part.em.to_zarr(tmp_path / "out.zarr", levels=2, progress=False)
    assert not report.failures
    xr.testing.assert_equal(open_export(tmp_path / "out.zarr", level=0).load(), part.compute())
    part["segmentation"].em.to_zarr(tmp_path / "ids.zarr", progress=False)
    opened = open_export(tmp_path / "ids.zarr", level=0)
    smaller = [(200, -200, 400), (300, 0, 800)]
    xr.testing.assert_equal(opened.em.crop(smaller).load(), part[["segmentation"]].em.crop(smaller).compute())


def test_show_draws_what_the_client_draws(folder: Path, data: xr.Dataset) -> None:
    client = ImageryClient(**sources(folder))
    own = data.em.show()
    plane = [(*START[:2], START[2] + 16), (*BOUNDS[1][:2], START[2] + 17)]
    expected = client.show(plane, image_mip=0, segmentation_mip=0)
    assert own._repr_png_() == expected._repr_png_()
    assert len(data.em.show("x", n=4).axes) >= 4
    part_of = data.em.crop([(200, -200, 400), (400, 100, 1000)])
    for part in (data["image"], data["segmentation"], data.compute(), part_of, part_of.isel(z=0)):
        assert part.em.show(outline=True)._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="axis"):
        data.em.show(axis=4)


def test_only_the_planes_shown_are_read(folder: Path, http_server_factory: Callable[..., FileServer]) -> None:
    server = http_server_factory(folder)
    data = ImageryClient(**sources(server.url), cache_bytes=0).dataset(BOUNDS)
    server.reset()
    data["image"].em.show()
    assert server.count(lambda request: not request.path.endswith("info")) == 4 * 4


def test_view_serves_the_data(data: xr.Dataset) -> None:
    with data.em.view(browser=False) as view:
        layers = view.viewer.state.to_json()["layers"]
    assert [layer["name"] for layer in layers] == ["image", "segmentation"]


def test_the_accessor_is_registered_when_an_object_is_made() -> None:
    program = (
        "import sys, imagery_dask; assert 'xarray' not in sys.modules\n"
        "import imagery_dask.xarrays.accessor, xarray; xarray.DataArray([1]).em; xarray.Dataset().em\n"
        "assert 'distributed' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    assert python("-c", program) == (0, "", "")
