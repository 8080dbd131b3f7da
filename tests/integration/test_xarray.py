"""xarray objects of a client: blocks that both variables share, labels of plots, and the accessor ``em``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.http_server import FileServer
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient
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
