"""More than `max_bytes` is refused before dask makes a task; slices, elementwise operations and exports are not."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import xarray as xr
from support.programs import python
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient, to_zarr
from imagery_dask.arrays import guards
from imagery_dask.arrays.guards import MOST_BLOCKS, max_bytes, missing_steps
from imagery_dask.errors import TooLargeError

SIDE = 40_000
#: Bytes that a million tasks exceed, many times.
NO_GRAPH = 60e6


def write_info(folder: Path, kind: str, dtype: str) -> str:
    """Write the info of a volume of a million blocks in eight mips, which has no chunks."""
    scales = [
        {
            "key": str(mip), "size": [SIDE >> mip, SIDE >> mip, SIDE // 4], "resolution": [8 << mip, 8 << mip, 40],
            "voxel_offset": [0, 0, 0], "chunk_sizes": [[64] * 3], "encoding": "raw",
        }
        for mip in range(8)
    ]  # fmt: skip
    folder.mkdir()
    info = {"type": kind, "data_type": dtype, "num_channels": 1, "scales": scales}
    (folder / "info").write_text(json.dumps(info))
    return f"precomputed://file://{folder}"


def large_client(folder: Path, **options: Any) -> ImageryClient:
    return ImageryClient(
        image_source=write_info(folder / "em", "image", "uint8"),
        segmentation_source=write_info(folder / "ids", "segmentation", "uint64"),
        max_bytes="1GB", **options,
    )  # fmt: skip


BOUNDS = [(0, 0, 0), (SIDE, SIDE, SIDE // 4)]
Steps = dict[str, Callable[[ImageryClient], Any]]


def total_of_block(block: Any) -> Any:
    return block.sum(keepdims=True)


#: What is refused in both modes of dask.
REFUSED: Steps = {
    "compute": lambda c: c.image_volume().compute(),
    "load": lambda c: c.image_volume().load(),
    "of the array": lambda c: c.image_volume().data.compute(),
    "dask.compute": lambda c: dask.compute(c.image_volume().data),
    "cutout": lambda c: c.image_cutout(BOUNDS).compute(),
    "dataset": lambda c: c.dataset(BOUNDS).compute(),
    "dask.compute of xarray": lambda c: dask.compute(c.image_volume()),
    "persist of the array": lambda c: c.image_volume().data.persist(),
    "mean of the array": lambda c: c.image_volume().data.mean().compute(),
    "largest id of the array": lambda c: (c.segmentation_volume().data > 3).max().compute(),
    "masks": lambda c: c.split_segmentation_cutout(BOUNDS).compute(),
    "ids": lambda c: c.unique_roots(BOUNDS),
}
#: What graphs refuse. Expressions of dask have no `__array__` and not all functions of numpy.
REFUSED_BY_GRAPHS: Steps = {
    "where the largest is": lambda c: c.image_volume().data.argmax(axis=0).compute(),
    "mean": lambda c: c.image_volume().mean().compute(),
    "mean along an axis": lambda c: c.image_volume().mean("z").compute(),
    "mean by numpy": lambda c: np.mean(c.image_cutout(BOUNDS)).compute(),
    "largest id": lambda c: c.segmentation_volume().max().compute(),
    "size of an object": lambda c: (c.segmentation_volume() == 5).sum().compute(),
    "means of a dataset": lambda c: c.dataset(BOUNDS).mean().compute(),
    "values": lambda c: c.image_volume().values,
    "array": lambda c: np.asarray(c.image_volume()),
    "array of the array": lambda c: np.asarray(c.image_volume().data),
    "persist": lambda c: c.image_volume().persist(),
    "transposed": lambda c: c.image_volume().T.values,
    "derived": lambda c: dask.compute(c.image_volume().data + 1, c.segmentation_volume().data > 5),
    "both layers": lambda c: c.image_volume().where(c.segmentation_volume() > 5, 0).compute(),
    "all of a dataset": lambda c: xr.Dataset({"em": c.image_volume(), "ids": c.segmentation_volume()}).compute(),
    "delayed": lambda c: c.image_volume().data.to_delayed(),
    "backwards": lambda c: c.image_volume()[::-1],
    "every 64th voxel": lambda c: c.image_volume().data[::64, ::64, ::64],
    "some planes": lambda c: c.image_volume().data[..., np.arange(0, SIDE // 4, 9)],
    "but one plane": lambda c: c.image_volume().isel(z=slice(1, None)),
    "joined": lambda c: xr.concat([c.image_volume(), c.image_volume()], "x"),
    "stacked": lambda c: np.stack([c.image_volume().data, c.image_volume().data]),
    "reshaped": lambda c: c.image_volume().data.ravel(),
    "distinct": lambda c: da.unique(c.segmentation_volume().data),
    "running sum": lambda c: c.image_volume().data.cumsum(axis=0),
    "own reduction": lambda c: da.reduction(c.image_volume().data, np.sum, np.sum, dtype=float),
    "own reduction by name": lambda c: da.reduction(
        x=c.image_volume().data, chunk=np.sum, aggregate=np.sum, dtype="u8"
    ),
    "of blocks": lambda c: c.image_volume().data.map_blocks(total_of_block, chunks=(1, 1, 1), dtype=int).compute(),
    "contraction": lambda c: da.einsum("xyz->", c.image_volume().data).compute(),
    "with neighbours": lambda c: da.map_overlap(np.copy, c.image_volume().data, depth=1, dtype="u1"),
    "coarser": lambda c: c.image_volume().coarsen(x=64, y=64, z=64, boundary="trim").mean(),
}
#: What is not refused, and makes no task of another block.
ALLOWED: Steps = {
    "slice": lambda c: c.image_volume().isel(x=slice(9, 90), y=slice(5, 80), z=3).compute(),
    "slice of a derived array": lambda c: (c.image_volume() + 1).isel(x=slice(9, 90), y=7).isel(z=slice(4)).compute(),
    "elementwise": lambda c: (c.image_volume().astype("float32") / 255 > 0.5).nbytes,
    "mean of a slice that is wide": lambda c: c.image_volume().data.astype("f8")[:1024, :1024, :800].mean().shape,
    "slices of some planes": lambda c: c.image_volume().data[:64, ::64, [5, 9]].compute(),
    "the whole": lambda c: c.image_volume().data[:, ...][...].shape,
    "mean of a slice": lambda c: c.image_volume()[:90, :80, :5].mean().compute(),
    "size of an object in a slice": lambda c: (c.segmentation_volume()[:90, :80, :5] == 5).sum().compute(),
    "largest of a slice": lambda c: c.image_volume().data[:90, :80, 5].argmax().compute(),
}


def peak_of(step: Callable[[ImageryClient], Any], client: ImageryClient) -> tuple[int, str]:
    """Return the bytes that a step takes, and the message of its refusal."""
    tracemalloc.start()
    try:
        step(client)
    except TooLargeError as error:
        return tracemalloc.get_traced_memory()[1], str(error)
    else:
        return tracemalloc.get_traced_memory()[1], ""
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def _no_limit_afterwards(configure: Any) -> None:
    configure("max_bytes", None)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> ImageryClient:
    return large_client(tmp_path_factory.mktemp("large"))


@pytest.fixture
def limited(configure: Any, client: ImageryClient) -> ImageryClient:
    configure("max_bytes", "1GB")
    assert client.image_volume().ndim == 3  # dask asks from the first array on
    return client


@pytest.mark.parametrize("name", REFUSED | REFUSED_BY_GRAPHS)
def test_whole_layers_are_refused_without_a_graph(limited: ImageryClient, name: str) -> None:
    peak, message = peak_of((REFUSED | REFUSED_BY_GRAPHS)[name], limited)
    assert "max_bytes is 1 GB" in message
    assert "imagery_dask.to_zarr" in message
    assert "ImageryClient(max_bytes=...)" in message
    assert peak < NO_GRAPH


@pytest.mark.parametrize("name", ALLOWED)
def test_parts_are_computed_without_a_graph_of_the_whole(limited: ImageryClient, name: str) -> None:
    ALLOWED[name](limited)  # imports what is imported once
    peak, message = peak_of(ALLOWED[name], limited)
    assert not message
    assert peak < NO_GRAPH


def test_dask_expressions_refuse_too(tmp_path: Path) -> None:
    result = python(__file__, tmp_path / "large", env={"DASK_ARRAY__QUERY_PLANNING": "True"})
    answers = json.loads(result.out.splitlines()[-1])
    assert set(answers) == set(REFUSED)
    for name, (peak, message) in answers.items():
        assert "max_bytes is 1 GB" in message, name
        assert peak < NO_GRAPH, name


def test_the_error_names_the_size_and_a_mip_that_fits(limited: ImageryClient) -> None:
    with pytest.raises(TooLargeError, match=r"16 TB of the image '.*/em' \(mip 0\).*Crop it, read mip 7 \(977 MB\), "):
        limited.image_volume().compute()
    with pytest.raises(TooLargeError, match=r"2 TB of the segmentation .* read a part of mip 7 \(7.81 GB\)"):
        limited.segmentation_volume(mip=3).compute()


def test_an_eager_client_refuses(tmp_path: Path) -> None:
    with pytest.raises(TooLargeError, match="16 TB"):
        large_client(tmp_path, lazy=False).image_cutout(BOUNDS)


# -------------------------------------------------------------------------------------------------------- the limit

SHAPE = (32, 32, 16)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    return {
        "image_source": write_volume(tmp_path / "em", coordinate_volume(SHAPE, dtype=np.uint8)),
        "segmentation_source": write_volume(tmp_path / "ids", random_labels(SHAPE, n=5), layer_type="segmentation"),
    }


@pytest.mark.parametrize(("given", "expected"), [(4096, 4096), ("4 kB", 4000), ("1GiB", 2**30), (0, 0), ("0", 0)])
def test_the_limit_is_given_to_a_client(sources: dict[str, str], given: Any, expected: int) -> None:
    ImageryClient(**sources, max_bytes=given)
    assert max_bytes() == expected
    ImageryClient(**sources)  # None leaves it
    assert max_bytes() == expected


@pytest.mark.parametrize("given", ["much", -1, 1.5j, "GB", True])
def test_what_is_no_limit_is_refused(sources: dict[str, str], given: Any) -> None:
    with pytest.raises(ValueError, match="max_bytes must be a size such as 500MB"):
        ImageryClient(**sources, max_bytes=given)


def test_the_limit_is_exact_and_zero_is_none(sources: dict[str, str]) -> None:
    size = int(np.prod(SHAPE))
    client = ImageryClient(**sources, max_bytes=size)
    volume = client.image_volume()
    assert volume.compute().nbytes == size
    assert volume.mean().compute() > 0  # 8-bit voxels are read, whatever the dtype of the sums
    with pytest.raises(TooLargeError):
        client.segmentation_volume().compute()
    ImageryClient(**sources, max_bytes=size - 1)
    for step in (volume.compute, volume.mean, lambda: volume.values, lambda: volume.astype("u1").compute()):
        with pytest.raises(TooLargeError):
            step()
    assert len(client.unique_roots([(0, 0, 0), SHAPE])) == 5  # block by block
    ImageryClient(**sources, max_bytes=0)
    assert volume.values.shape == SHAPE


def test_the_default_is_a_quarter_of_memory_or_in_the_environment() -> None:
    assert max_bytes() == psutil.virtual_memory().total // 4
    program = "from imagery_dask.arrays.guards import max_bytes; print(max_bytes())"
    assert python("-c", program, env={"IMAGERY_DASK_MAX_BYTES": "3 GB"}).out == "3000000000\n"


def test_masks_that_are_large_together_are_refused(tmp_path: Path) -> None:
    ids = np.arange(np.prod(SHAPE), dtype=np.uint64).reshape(SHAPE) % 40 + 2**60
    path = write_volume(tmp_path / "many", ids, layer_type="segmentation")
    client = ImageryClient(segmentation_source=path, max_bytes=39 * ids.size)
    client.segmentation_cutout([(0, 0, 0), SHAPE]).compute()
    masks = client.split_segmentation_cutout([(0, 0, 0), SHAPE])
    with pytest.raises(TooLargeError, match="655 kB of the segmentation"):
        masks.compute()
    assert ImageryClient(segmentation_source=path, max_bytes=40 * ids.size)
    assert len(masks.compute()) == 40


def test_exports_are_not_refused(sources: dict[str, str], tmp_path: Path) -> None:
    client = ImageryClient(**sources, max_bytes=100)
    for name, data in {
        "whole": client.image_volume(),
        "dataset": client.dataset([(0, 0, 0), SHAPE]),
        "derived": client.image_volume() + np.uint8(1),
        "slice": client.image_volume().isel(x=slice(3, 30)),
    }.items():
        report = to_zarr(data, tmp_path / f"{name}.zarr", levels=2, progress=False)
        assert not report.failures
    with pytest.raises(TooLargeError):
        client.image_volume().compute()


# --------------------------------------------------------------------------------------- functions of dask that ask


def test_every_function_of_dask_that_should_ask_is_found(client: ImageryClient) -> None:
    """A release of dask that renames one of them fails here; its cutouts work all the same, as the next test shows."""
    assert client.image_volume().ndim == 3
    assert missing_steps() == []


def test_steps_that_dask_has_renamed_are_skipped(monkeypatch: pytest.MonkeyPatch, client: ImageryClient) -> None:
    how = guards._STEPS["dask.array.core:Array.__getitem__"]
    gone = "dask.array.no_module.reduction", "dask.array.core:NoClass.sum", "dask.array.core:Array.no_method"
    monkeypatch.setattr(guards, "_STEPS", dict.fromkeys(gone, how))
    monkeypatch.setattr(guards, "_installed", {})
    assert client.image_volume()[:5, :5, 2].compute().shape == (5, 5)
    assert missing_steps() == list(gone)


OF_OTHERS = """
import pickle, sys
import dask, dask.array as da, numpy as np
if sys.argv[1:]:
    from imagery_dask.arrays import computing, guards
    guards.install()
    computing.install()
    assert not guards.missing_steps()
one = da.from_array(np.arange(48.0).reshape(6, 8), chunks=(2, 3), name="given")
for array in [
    one.sum(), one.argmax(axis=0), one.rechunk(5), one[::-1, 2:7], one[[1, 3]], one[one > 5], one.cumsum(axis=0),
    one.reshape(-1), da.stack([one, one]), da.concatenate([one, one[1:]]), da.overlap.overlap(one, 1, "none"),
    da.reduction(one, np.sum, np.sum, dtype=float),
    da.reductions.reduction(x=one, chunk=np.sum, aggregate=np.sum, dtype=float),
]:
    print(array.name, sorted(map(str, array.dask)), array.compute().tolist())
print(da.sum(np.ones(3)).compute(), pickle.loads(pickle.dumps(da.reduction)) is da.reduction)
print(dask.compute(one[1], [one[:, 2]], None, {"a": one}), dask.compute(), pickle.dumps(dask.compute))
print(len(pickle.dumps(one.rechunk(5)[::-1].sum())), pickle.loads(pickle.dumps(da.stack)) is da.stack)
"""


def test_arrays_of_others_are_as_they_are_without_guards() -> None:
    plain, guarded = python("-c", OF_OTHERS), python("-c", OF_OTHERS, "guarded")
    assert plain.code == 0, plain.error
    assert guarded.out == plain.out, guarded.error


def test_large_graphs_of_others_stay_symbolic(client: ImageryClient) -> None:
    assert client.image_volume().ndim == 3
    large = da.ones((2**18 + 1,), chunks=1)
    assert large.npartitions > MOST_BLOCKS
    assert large.sum().dask.layers[large.name] is large.dask.layers[large.name]


if __name__ == "__main__":
    large = Path(sys.argv[1])
    large.mkdir()
    in_expressions = large_client(large)
    sys.stdout.write(json.dumps({name: peak_of(step, in_expressions) for name, step in REFUSED.items()}))
