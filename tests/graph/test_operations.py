"""Operations of xarray and dask on lazy cutouts give what they give on CloudVolume's voxels in memory.

xarray requires one type of chunked arrays in all variables of an operation; dask's own type is that of cutouts, their
slices and all that is made of them.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from cloudvolume import CloudVolume
from support.programs import python
from support.volumes import write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.arrays.origins import source_of
from imagery_dask.config import config

SHAPE = (20, 18, 10)
START = (-6, 4, 3)
BOUNDS = [list(START), [a + n for a, n in zip(START, SHAPE, strict=True)]]
FIRST_ID = 864691135000000001
ID = FIRST_ID + 3
DIMS = ("x", "y", "z")
# Bytes of blocks: one for each storage chunk, and one for the whole.
BLOCKS = {"many blocks": 1, "one block": 2**24}

Data = Any


# ------------------------------------------------------------------------------------------ operations of xarray

XARRAY: dict[str, Callable[[xr.Dataset], Data]] = {
    "load": lambda ds: ds.load(),
    "load beside a mask": lambda ds: ds.assign(cell=ds.segmentation > 0).load(),
    "compute beside a mask": lambda ds: ds.assign(cell=ds.segmentation == ID),
    "compute beside a slice": lambda ds: ds.assign(plane=ds.image.isel(z=3)),
    "compute beside a sum": lambda ds: ds.assign(sum=ds.image.sum("z")),
    "compute beside a cast": lambda ds: ds.assign(wide=ds.image.astype("uint16")),
    "persist": lambda ds: ds.persist(),
    "persist beside a mask": lambda ds: ds.assign(cell=ds.segmentation > ID).persist(),
    "persist a slice": lambda ds: ds.isel(x=slice(2, 15), z=4).persist(),
    "persist a slice of a slice": lambda ds: ds.isel(x=slice(2, 15)).isel(x=slice(1, 9, 3), y=2).persist(),
    "unify chunks": lambda ds: ds.assign(cell=ds.segmentation > 0).unify_chunks(),
    "unify chunks of two": lambda ds: xr.unify_chunks(ds.image, ds.segmentation > 0)[1],
    "chunk": lambda ds: ds.chunk(x=7, y=5, z=10),
    "chunk auto": lambda ds: ds.chunk("auto"),
    "chunk beside another": lambda ds: ds.assign(other=ds.image.chunk(x=3)),
    "copy": lambda ds: ds.copy(deep=True).assign(cell=ds.segmentation > 0),
    "one plane": lambda ds: ds.isel(z=3),
    "a box": lambda ds: ds.isel(x=slice(3, 17), y=slice(2, 9), z=slice(1, 8)),
    "steps, also backwards": lambda ds: ds.isel(x=slice(None, None, 3), y=slice(15, 2, -4), z=slice(None, None, -1)),
    "one voxel": lambda ds: ds.isel(x=-1, y=2, z=4),
    "nothing": lambda ds: ds.isel(x=slice(7, 7)),
    "a list": lambda ds: ds.isel(x=[1, 5, 2], z=0),
    "lists of two axes": lambda ds: ds.isel(x=[1, 5, 2], y=[0, 7]),
    "points": lambda ds: ds.isel(x=xr.DataArray([1, 5, 2], dims="p"), y=xr.DataArray([0, 7, 3], dims="p")),
    "a mask of an axis": lambda ds: ds.isel(x=np.arange(SHAPE[0]) % 3 == 0),
    "nearest centres": lambda ds: ds.sel(x=[0.0, 33.0], y=70.0, method="nearest"),
    "a range of centres": lambda ds: ds.sel(x=slice(0, 60)),
    "head": lambda ds: ds.head(x=5, z=2),
    "tail": lambda ds: ds.tail(y=5),
    "thin": lambda ds: ds.thin(x=4, y=3),
    "transpose": lambda ds: ds.transpose("z", "y", "x"),
    "a slice of a transpose": lambda ds: ds.transpose("z", "y", "x").isel(y=slice(3, 9), x=2),
    "stack": lambda ds: ds.stack(voxel=DIMS).reset_index("voxel", drop=True),
    "broadcast": lambda ds: xr.broadcast(ds.isel(z=0).drop_vars("z"), ds.image.drop_vars(DIMS))[0],
    "expand": lambda ds: ds.expand_dims(t=2),
    "squeeze": lambda ds: ds.isel(z=[4]).squeeze(),
    "roll": lambda ds: ds.roll(x=3),
    "shift": lambda ds: ds.image.shift(x=2, fill_value=0),
    "pad": lambda ds: ds.pad(x=(2, 1), constant_values=0),
    "sort": lambda ds: ds.sortby("x", ascending=False),
    "where": lambda ds: ds.image.where(ds.segmentation == ID, 0),
    "where of ids": lambda ds: ds.segmentation.where(ds.image > 100, 0),
    "function where": lambda ds: xr.where(ds.segmentation > ID, ds.image, 0),
    "is in": lambda ds: ds.segmentation.isin([FIRST_ID, ID]),
    "clip": lambda ds: ds.image.clip(50, 200),
    "fill": lambda ds: ds.image.where(ds.image > 100).fillna(-1),
    "sum": lambda ds: ds.image.sum(),
    "mean": lambda ds: ds.image.mean(("x", "y")),
    "standard deviation": lambda ds: ds.image.std("z"),
    "smallest": lambda ds: ds.min(),
    "largest": lambda ds: ds.max("x"),
    "any": lambda ds: (ds.segmentation == ID).any("z"),
    "all": lambda ds: (ds.segmentation > 0).all("x"),
    "count": lambda ds: ds.count("y"),
    "where the largest is": lambda ds: ds.image.argmax("z"),
    "median": lambda ds: ds.image.chunk(z=-1).median("z") if ds.chunks else ds.image.median("z"),
    "quantile": lambda ds: (ds.chunk(z=-1) if ds.chunks else ds).image.quantile(0.25, "z"),
    "cumulative sum": lambda ds: ds.image.cumsum("x"),
    "differences": lambda ds: ds.image.astype("int16").diff("y"),
    "coarsen": lambda ds: ds.image.coarsen(x=2, y=3).mean(),
    "coarsen to largest": lambda ds: ds.segmentation.coarsen(x=4, boundary="trim").max(),
    "rolling": lambda ds: ds.image.rolling(x=3, min_periods=1).mean(),
    "construct": lambda ds: ds.image.rolling(x=2).construct("w", fill_value=0),
    "weighted": lambda ds: ds.image.weighted((ds.segmentation > ID).astype(float)).mean(("x", "y")),
    "group by": lambda ds: ds.image.groupby(xr.DataArray(np.arange(SHAPE[2]) % 2, dims="z", name="odd")).mean(),
    "bins": lambda ds: ds.image.groupby_bins("x", 2).max(),
    "product": lambda ds: xr.dot(ds.image.astype("int64"), (ds.segmentation > ID).astype("int64"), dim="x"),
    "concatenation": lambda ds: xr.concat([ds.image, ds.image.isel(x=slice(0, 3))], "x"),
    "concatenation of pieces": lambda ds: xr.concat([ds.isel(x=slice(0, 9)), ds.isel(x=slice(9, None))], "x"),
    "merge": lambda ds: xr.merge([ds, (ds.segmentation > 0).rename("cell")]),
    "combination": lambda ds: xr.combine_by_coords(
        [ds.isel(y=slice(0, 5)), ds.isel(y=slice(5, None))], combine_attrs="override"
    ),
    "alignment": lambda ds: xr.align(ds.image.isel(x=slice(0, 9)), ds.segmentation > 0, join="inner")[1],
    "reindexing": lambda ds: ds.reindex(x=ds.x[::2], fill_value=0),
    "to array": lambda ds: ds.assign(segmentation=ds.segmentation > 0).to_array(),
    "to dataset": lambda ds: ds.segmentation.isel(z=slice(0, 2)).drop_vars("z").to_dataset("z"),
    "map": lambda ds: ds.map(np.fliplr),
    "map blocks": lambda ds: xr.map_blocks(_plus_one, ds),
    "apply": lambda ds: xr.apply_ufunc(np.add, ds.image, ds.image, dask="allowed"),
    "apply in parallel": lambda ds: xr.apply_ufunc(
        _masked, ds.image, ds.segmentation, dask="parallelized", output_dtypes=[ds.image.dtype]
    ),
    "apply beside a mask": lambda ds: xr.apply_ufunc(
        _masked, ds.image, ds.segmentation > ID, dask="parallelized", output_dtypes=[ds.image.dtype]
    ),
    "apply along an axis": lambda ds: xr.apply_ufunc(
        _spread, (ds.chunk(z=-1) if ds.chunks else ds).image, input_core_dims=[["z"]], dask="parallelized",
        output_dtypes=["uint8"],
    ),
    "a function of numpy": lambda ds: np.sqrt(ds.image.astype("float64")),
    "arithmetic": lambda ds: (ds.image.astype("int16") - 7) * 2 + ds.image,
    "ids": lambda ds: ds.segmentation ^ np.uint64(5),
    "comparison of variables": lambda ds: ds.segmentation.isel(x=0) < ds.segmentation.isel(x=1),
    "a variable": lambda ds: xr.DataArray(ds.segmentation.variable, dims=DIMS),
    "equality": lambda ds: xr.Dataset({"equal": ds.equals(ds.assign(image=ds.image + np.uint8(0)))}),
    "tree": lambda ds: _tree(ds).compute()["derived"].to_dataset(),
    "tree that is loaded": lambda ds: _tree(ds).load()["derived"].to_dataset(),
    "tree that is persisted": lambda ds: _tree(ds).persist()["derived"].to_dataset(),
    "pickle": lambda ds: pickle.loads(pickle.dumps(ds.assign(cell=ds.segmentation > 0))),
    "dask.compute": lambda ds: dask.compute(ds, ds.image > 7)[0],
    "dask.persist": lambda ds: dask.persist(ds.assign(cell=ds.segmentation > 0).isel(z=2))[0],
    "dask.optimize": lambda ds: dask.optimize(ds.assign(cell=ds.segmentation > 0).isel(z=2))[0],
}  # fmt: skip


def _plus_one(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign(image=ds.image + np.uint8(1))


def _masked(image: Any, labels: Any) -> Any:
    return np.where(labels > 0, image, 0).astype(image.dtype)


def _spread(image: Any) -> Any:
    return image.max(axis=-1) - image.min(axis=-1)


def _tree(ds: xr.Dataset) -> xr.DataTree:
    derived = ds.assign(cell=ds.segmentation > 0)
    return xr.DataTree.from_dict({"/": ds.drop_vars(DIMS), "/derived": derived.drop_vars(DIMS)})


# -------------------------------------------------------------------------------------------- operations of dask

Arrays = tuple[Any, Any]
#: Functions of an image and of ids, and of the module of their type.
DASK: dict[str, Callable[[Any, Any, Any], Any]] = {
    "whole": lambda np_, em, ids: ids,
    "plane": lambda np_, em, ids: ids[:, :, 3],
    "chain of slices": lambda np_, em, ids: ids[2:15][:, 3:12, ::2][3:8, ::-2][..., 1],
    "a new axis": lambda np_, em, ids: ids[3:6, None, 4],
    "new axes": lambda np_, em, ids: em[None, :, 2, ..., None],
    "integers of numpy": lambda np_, em, ids: ids[np.int64(-2), ..., np.uint8(1)],
    "nothing": lambda np_, em, ids: ids[7:7],
    "a list": lambda np_, em, ids: ids[[1, 5, 2]],
    "a list and a slice": lambda np_, em, ids: ids[[1, 5, 2], 2:9],
    "a mask of an axis": lambda np_, em, ids: ids[np.arange(SHAPE[0]) % 2 == 1],
    "sum with itself": lambda np_, em, ids: em + em[::-1],
    "mask": lambda np_, em, ids: em * (ids == ID),
    "where": lambda np_, em, ids: np_.where(ids > ID, ids, 0),
    "logic": lambda np_, em, ids: (ids > ID) & (em < 200) | ~(ids == FIRST_ID),
    "shift of bits": lambda np_, em, ids: ids >> np.uint64(3),
    "division": lambda np_, em, ids: em // np.uint8(7),
    "cast": lambda np_, em, ids: em.astype(np.float32) / 3,
    "sum": lambda np_, em, ids: em.sum(),
    "sum along axes": lambda np_, em, ids: em.sum(axis=(0, 2)),
    "sum of ids": lambda np_, em, ids: ids.sum(axis=0),
    "mean": lambda np_, em, ids: em.mean(axis=1),
    "deviation": lambda np_, em, ids: em.std(),
    "extremes": lambda np_, em, ids: ids.max(axis=0) - ids.min(axis=0),
    "largest, kept axes": lambda np_, em, ids: ids.max(axis=2, keepdims=True),
    "where the largest is": lambda np_, em, ids: em.argmax(axis=0),
    "any": lambda np_, em, ids: (ids == ID).any(axis=2),
    "cumulative sum": lambda np_, em, ids: np_.cumsum(em, axis=0),
    "differences": lambda np_, em, ids: np_.diff(em.astype("int16"), axis=0),
    "gradient": lambda np_, em, ids: np_.gradient(em.astype("float64"), axis=1),
    "histogram": lambda np_, em, ids: np_.histogram(em, bins=8, range=(0, 256))[0],
    "transpose": lambda np_, em, ids: ids.T,
    "a slice of a transpose": lambda np_, em, ids: ids.T[2:5, :, 1],
    "swapped axes": lambda np_, em, ids: np_.swapaxes(ids, 0, 1),
    "moved axis": lambda np_, em, ids: np_.moveaxis(em, 2, 0),
    "flip": lambda np_, em, ids: np_.flip(em, 1),
    "rotation": lambda np_, em, ids: np_.rot90(em),
    "roll": lambda np_, em, ids: np_.roll(ids, 4, axis=0),
    "flat": lambda np_, em, ids: ids.ravel(),
    "reshaped": lambda np_, em, ids: ids.reshape(SHAPE[0], SHAPE[1] * SHAPE[2]),
    "repeated": lambda np_, em, ids: np_.repeat(ids, 2, axis=0),
    "tiles": lambda np_, em, ids: np_.tile(em, (1, 1, 2)),
    "padded": lambda np_, em, ids: np_.pad(em, 2),
    "reflected": lambda np_, em, ids: np_.pad(em, 1, mode="reflect"),
    "stack": lambda np_, em, ids: np_.stack([em, em * 2]),
    "concatenation": lambda np_, em, ids: np_.concatenate([ids, ids[:3]], axis=0),
    "product of matrices": lambda np_, em, ids: np_.tensordot(em.astype("int64"), em.astype("int64"), axes=([2], [2])),
    "einsum": lambda np_, em, ids: np_.einsum("xyz,xyz->z", em.astype("int64"), em.astype("int64")),
    "round": lambda np_, em, ids: np_.round(em / 7),
    "clip": lambda np_, em, ids: np_.clip(em, 50, 100),
    "is in": lambda np_, em, ids: np_.isin(ids, [FIRST_ID, ID]),
    "unique": lambda np_, em, ids: np_.unique(ids),
    "a function of numpy": lambda np_, em, ids: np.exp2(em / 100),
}  # fmt: skip

#: Functions that only dask has, and the same of numpy.
DASK_ONLY: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "rechunk": (lambda ids: ids.rechunk((7, 5, 10)), lambda ids: ids),
    "rechunk of a slice": (lambda ids: ids[2:9, ::2].rechunk(3), lambda ids: ids[2:9, ::2]),
    "map blocks": (lambda ids: ids.map_blocks(np.negative, dtype=ids.dtype), np.negative),
    "map overlap": (
        lambda ids: da.map_overlap(np.sort, ids, depth=0, boundary="none", dtype=ids.dtype, axis=2)
        if len(ids.chunks[2]) == 1 else ids.rechunk({2: -1}).map_blocks(np.sort, dtype=ids.dtype),
        lambda ids: np.sort(ids, axis=2),
    ),
    "a block": (lambda ids: ids.blocks[0, 0, 0][:8, :8, :4], lambda ids: ids[:8, :8, :4]),
    "a delayed block": (lambda ids: ids.to_delayed()[0, 0, 0].compute()[:8, :8, :4], lambda ids: ids[:8, :8, :4]),
    "delayed": (lambda ids: da.from_delayed(dask.delayed(np.asarray)(ids), ids.shape, ids.dtype), lambda ids: ids),
    "coarsen": (lambda ids: da.coarsen(np.max, ids, {0: 2, 1: 2}), lambda ids: _pairs(ids)),
    "topk": (lambda ids: da.topk(ids, 2, axis=0), lambda ids: np.sort(ids, axis=0)[::-1][:2]),
    "store": (lambda ids: _stored(ids), lambda ids: ids),
    "persisted": (lambda ids: ids.persist(), lambda ids: ids),
    "a persisted slice": (lambda ids: ids[2:7, 3].persist(), lambda ids: ids[2:7, 3]),
    "persisted by dask": (lambda ids: dask.persist(ids[2:7, 3], ids)[0], lambda ids: ids[2:7, 3]),
    "optimized": (lambda ids: dask.optimize(ids[2:7, 3] + 1)[0], lambda ids: ids[2:7, 3] + 1),
    "pickled": (lambda ids: pickle.loads(pickle.dumps(ids)), lambda ids: ids),
    "a pickled slice": (lambda ids: pickle.loads(pickle.dumps(ids[::2, 3])), lambda ids: ids[::2, 3]),
    "a copy": (lambda ids: ids.copy(), lambda ids: ids),
    "array": (lambda ids: np.asarray(ids), lambda ids: ids),
    "array of a slice": (lambda ids: np.asarray(ids[:, 2]), lambda ids: ids[:, 2]),
    "several at once": (lambda ids: dask.compute(ids, ids[0] > ID, ids[:, 1])[1], lambda ids: ids[0] > ID),
}  # fmt: skip


def _pairs(ids: Any) -> Any:
    return ids.reshape(SHAPE[0] // 2, 2, SHAPE[1] // 2, 2, SHAPE[2]).max(axis=(1, 3))


def _stored(ids: Any) -> Any:
    target = np.zeros(ids.shape, ids.dtype)
    da.store(ids, target)
    return target


# ------------------------------------------------------------------------------------------------------- the tests


def write_volumes(folder: Path) -> tuple[str, str]:
    """Write an image and ids above 2**53, of the same shape."""
    random = np.random.default_rng(5)
    image = random.integers(0, 256, SHAPE, dtype=np.uint8)
    ids = random.choice(np.array([0, *range(FIRST_ID, FIRST_ID + 6)], dtype=np.uint64), SHAPE)
    written = [
        write_volume(folder / kind, data, voxel_offset=START, chunk_size=(16, 8, 8), layer_type=kind)
        for kind, data in (("image", image), ("segmentation", ids))
    ]
    return written[0], written[1]


def lazy_dataset(paths: tuple[str, str], blocks: str) -> xr.Dataset:
    with config.set({"lazy.block_bytes": BLOCKS[blocks]}):
        return ImageryClient(image_source=paths[0], segmentation_source=paths[1]).dataset(BOUNDS)


def eager_dataset(paths: tuple[str, str], lazy: xr.Dataset) -> xr.Dataset:
    """Return the same dataset, of the voxels that CloudVolume downloads."""
    voxels = {
        name: np.ascontiguousarray(CloudVolume(path, progress=False)[:, :, :])[..., 0]
        for name, path in zip(("image", "segmentation"), paths, strict=True)
    }
    return lazy.assign({name: lazy[name].copy(data=array) for name, array in voxels.items()})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_volumes(tmp_path_factory.mktemp("operations"))


@pytest.fixture(scope="module", params=["many blocks", pytest.param("one block", marks=pytest.mark.long)])
def lazy(request: pytest.FixtureRequest, paths: tuple[str, str]) -> xr.Dataset:
    return lazy_dataset(paths, request.param)


@pytest.fixture(scope="module")
def eager(paths: tuple[str, str], lazy: xr.Dataset) -> xr.Dataset:
    return eager_dataset(paths, lazy)


@pytest.fixture(params=["threads", pytest.param("distributed", marks=pytest.mark.long)])
def scheduler(request: pytest.FixtureRequest) -> Iterator[None]:
    with ExitStack() as stack:
        if request.param == "distributed":
            stack.enter_context(request.getfixturevalue("threads").as_current())
        else:
            stack.enter_context(dask.config.set(scheduler="threads"))
        yield


def same(result: Any, expected: Any) -> None:
    """Assert that two results are equal, with their types; floating-point numbers to 1e-5."""
    result, expected = np.asarray(result), np.asarray(expected)
    assert result.dtype == expected.dtype
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(result, expected, rtol=1e-5)
    else:
        np.testing.assert_array_equal(result, expected)


def check_xarray(lazy: xr.Dataset, eager: xr.Dataset, name: str) -> None:
    expected = XARRAY[name](eager.copy())
    result = XARRAY[name](lazy.copy())
    result = result.compute()
    assert result.sizes == expected.sizes
    if isinstance(expected, xr.DataArray):
        result, expected = result.to_dataset(name="result"), expected.to_dataset(name="result")
    assert set(result.variables) == set(expected.variables)
    for variable in expected.variables:
        assert result[variable].dims == expected[variable].dims
        same(result[variable].values, expected[variable].values)


def check_dask(lazy: xr.Dataset, eager: xr.Dataset, name: str) -> None:
    (result,) = dask.compute(DASK[name](da, lazy.image.data, lazy.segmentation.data))
    same(result, DASK[name](np, eager.image.data, eager.segmentation.data))


def check_dask_alone(lazy: xr.Dataset, eager: xr.Dataset, name: str) -> None:
    function, of_numpy = DASK_ONLY[name]
    (result,) = dask.compute(function(lazy.segmentation.data))
    same(result, of_numpy(eager.segmentation.data))


CHECKS = [
    *((check_xarray, name) for name in XARRAY),
    *((check_dask, name) for name in DASK),
    *((check_dask_alone, name) for name in DASK_ONLY),
]


@pytest.mark.parametrize(("check", "name"), CHECKS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.usefixtures("scheduler")
def test_operations(
    lazy: xr.Dataset, eager: xr.Dataset, check: Callable[[xr.Dataset, xr.Dataset, str], None], name: str
) -> None:
    check(lazy, eager, name)


class Voxels:
    """An array-like of which dask knows as much as of a cutout."""

    def __init__(self, voxels: Any) -> None:
        self.voxels, self.shape, self.dtype, self.ndim = voxels, voxels.shape, voxels.dtype, voxels.ndim

    def __getitem__(self, key: Any) -> Any:
        return self.voxels[key]


def only_cutouts_fail(folder: Path) -> list[str]:
    """Return the operations that dask can do with plain arrays, but not with cutouts, in the mode of this process."""
    paths = write_volumes(folder)
    lazy = lazy_dataset(paths, "many blocks")
    eager = eager_dataset(paths, lazy)
    variables = {}
    for name in ("image", "segmentation"):
        voxels, chunks = Voxels(eager[name].values), lazy[name].data.chunks
        meta = np.empty((0, 0, 0), voxels.dtype)
        variables[name] = lazy[name].copy(
            data=da.from_array(voxels, chunks, asarray=False, inline_array=True, meta=meta)
        )
    plain = lazy.assign(variables)

    def fails(check: Callable[..., None], dataset: xr.Dataset, name: str) -> bool:
        try:
            check(dataset, eager, name)
        except Exception:
            return True
        return False

    computed = [(check, name) for check, name in CHECKS if not fails(check, plain, name)]
    assert len(computed) > 50
    return [name for check, name in computed if fails(check, lazy, name)]


@pytest.mark.long
def test_cutouts_as_expressions_do_what_plain_arrays_do(tmp_path: Path) -> None:
    """dask has not implemented all operations for its array expressions, which it chooses when it is imported."""
    done = python("-W", "ignore", __file__, tmp_path, env={"DASK_ARRAY__QUERY_PLANNING": "True"})
    assert (done.code, done.out.strip().splitlines()[-1:]) == (0, ["True []"]), done.error


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize("method", ["compute", "load", "persist"])
def test_cutouts_in_datasets_of_the_user(paths: tuple[str, str], eager: xr.Dataset, method: str) -> None:
    """Arrays of every method of the client are of one type, with their slices and what is made of them."""
    client = ImageryClient(image_source=paths[0], segmentation_source=paths[1])
    ids = client.segmentation_cutout(BOUNDS, convert_to_int64=False)
    arrays = {
        "image": client.image_cutout(BOUNDS), "ids": ids, "slice": ids[:, :, ::-1], "derived": ids > ID,
        "mask": client.split_segmentation_cutout(BOUNDS)[ID], "pair": client.image_and_segmentation_cutout(BOUNDS)[0],
        "volume": client.image_volume().data,
    }  # fmt: skip
    assert {type(array) for array in arrays.values()} == {da.Array}
    result = getattr(xr.Dataset({name: (DIMS, array) for name, array in arrays.items()}), method)()
    image, labels = eager.image.values, eager.segmentation.values
    expected = {
        "image": image, "ids": labels, "slice": labels[:, :, ::-1], "derived": labels > ID, "mask": labels == ID,
        "pair": image, "volume": image,
    }  # fmt: skip
    for name, voxels in expected.items():
        same(result[name].values, voxels)


@pytest.mark.parametrize("changed", ["assigned", "assigned by a mask", "result of a function"])
def test_an_array_that_is_changed_in_place_is_no_cutout(
    paths: tuple[str, str], eager: xr.Dataset, changed: str
) -> None:
    array = lazy_dataset(paths, "many blocks").segmentation.data
    expected = eager.segmentation.values.copy()
    for voxels in (array, expected):
        if changed == "assigned":
            voxels[2:5, 3] = 7
        elif changed == "assigned by a mask":
            voxels[voxels == ID] = 7
        else:
            np.add(voxels, np.uint64(1), out=voxels)
    assert source_of(array) is None
    same(array.compute(), expected)
    same(np.asarray(array), expected)
    same(lazy_dataset(paths, "many blocks").segmentation.data.compute(), eager.segmentation.values)


def test_files_of_xarray(lazy: xr.Dataset, eager: xr.Dataset, tmp_path: Path) -> None:
    def derived(ds: xr.Dataset) -> xr.Dataset:
        return ds.assign(cell=(ds.segmentation == ID).astype("uint8")).drop_attrs()

    derived(lazy).to_zarr(tmp_path / "out.zarr", zarr_format=2, consolidated=False)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "out.zarr", consolidated=False).load(), derived(eager))

    def small(ds: xr.Dataset) -> xr.Dataset:
        return xr.Dataset({"image": ds.image.astype("int16"), "cell": (ds.segmentation == ID).astype("int8")})

    small(lazy).drop_attrs().to_netcdf(tmp_path / "out.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "out.nc", engine="scipy") as opened:
        xr.testing.assert_equal(opened.load(), small(eager))


def test_exports_of_datasets_read_from_the_source(
    lazy: xr.Dataset, eager: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset that was combined with others, copied or persisted still has the cutouts, and their provenance."""
    import zarr

    from imagery_dask.export.core.inputs import ComputeBlock

    combined = lazy.assign(cell=lazy.segmentation > 0)
    for name, ds in {"copy": combined.copy(deep=True)[["image", "segmentation"]], "persisted": lazy.persist()}.items():
        assert all(source_of(ds[variable].data) is not None for variable in ("image", "segmentation")), name
    monkeypatch.setattr(ComputeBlock, "__call__", None)  # computes graphs
    assert to_zarr(combined[["image", "segmentation"]], tmp_path / "out.zarr", progress=False).ok
    root = zarr.open_group(tmp_path / "out.zarr")
    same(np.asarray(root["0"]).T, eager.image.values)
    same(np.asarray(root["labels/segmentation/0"]).T, eager.segmentation.values)
    for group in (root, root["labels/segmentation"]):
        assert group.attrs["imagery_dask"]["mip"] == 0


if __name__ == "__main__":
    sys.stdout.write(f"{da.array_expr_enabled()} {only_cutouts_fail(Path(sys.argv[1]))}\n")
