"""Slices as PNG files: names, axes, colors, bit depths, and the number of computations of blocks."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import imageio.v2 as imageio
import numpy as np
import pytest
from cloudvolume import CloudVolume

from imagery_dask import ImageryClient, save_image_slices
from imagery_dask.render import save

ROOT = 864691135000000001


def volume(shape: tuple[int, ...] = (7, 5, 3), dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(1).integers(1, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(folder: Path, name: str) -> np.ndarray:
    return np.asarray(imageio.imread(folder / name))


def as_dask(array: np.ndarray) -> da.Array:
    return da.from_array(array, chunks=tuple(-(-n // 2) for n in array.shape))


KINDS = pytest.mark.parametrize("make", [np.asarray, as_dask], ids=["numpy", "dask"])


@KINDS
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_is_cut_along_an_axis(tmp_path: Path, make: Any, axis: int) -> None:
    image = volume()
    save_image_slices(str(tmp_path / "em"), "imagery", make(image), axis, "imagery")
    count = image.shape[axis]
    assert names(tmp_path) == {f"em_slice_{i}_imagery.png" for i in range(count)}
    for i in range(count):
        page = read(tmp_path, f"em_slice_{i}_imagery.png")
        # Grey values in three equal channels; columns are the first of the two remaining axes, rows the second.
        expected = np.take(image, i, axis=axis).T
        np.testing.assert_array_equal(page, np.stack([expected] * 3, axis=2))


@KINDS
@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1)])
def test_the_name_of_a_single_slice_has_no_number(tmp_path: Path, make: Any, shape: tuple[int, ...]) -> None:
    image = volume(shape)
    save_image_slices(str(tmp_path / "em"), "imagery", make(image), 2, "imagery")
    assert names(tmp_path) == {"em_imagery.png"}
    np.testing.assert_array_equal(read(tmp_path, "em_imagery.png")[..., 0], image.reshape(7, 5).T)


@KINDS
def test_16_bit_imagery_stays_16_bit(tmp_path: Path, make: Any) -> None:
    image = volume((7, 5, 2), "uint16")
    save_image_slices(str(tmp_path / "em"), "imagery", make(image), 2, "imagery")
    for i in range(2):
        page = read(tmp_path, f"em_slice_{i}_imagery.png")
        assert page.dtype == np.uint16
        np.testing.assert_array_equal(page, image[:, :, i].T)


@KINDS
@pytest.mark.parametrize("channels", [3, 4])
def test_color_imagery_is_saved_in_color(tmp_path: Path, make: Any, channels: int) -> None:
    image = volume((7, 5, 2, channels))
    save_image_slices(str(tmp_path / "em"), "imagery", make(image), 2, "imagery")
    assert names(tmp_path) == {"em_slice_0_imagery.png", "em_slice_1_imagery.png"}
    np.testing.assert_array_equal(read(tmp_path, "em_slice_1_imagery.png"), image[:, :, 1].swapaxes(0, 1))


@KINDS
@pytest.mark.parametrize(
    ("color", "rgba"),
    [
        (None, (255, 255, 255, 255)),
        ([10, 20, 30], (10, 20, 30, 255)),
        ((10, 20, 30, 40), (10, 20, 30, 40)),
        (np.array([1, 2, 3], dtype=np.uint8), (1, 2, 3, 255)),
    ],
)
def test_masks_are_transparent_where_they_are_false(tmp_path: Path, make: Any, color: Any, rgba: Any) -> None:
    mask = volume((6, 4, 2)) > 128
    save_image_slices(str(tmp_path / "seg"), f"root_id_{ROOT}", make(mask), 2, "mask", color=color)
    assert names(tmp_path) == {f"seg_slice_{i}_root_id_{ROOT}.png" for i in range(2)}
    page = read(tmp_path, f"seg_slice_1_root_id_{ROOT}.png")
    np.testing.assert_array_equal(page, np.where(mask[:, :, 1].T[..., np.newaxis], rgba, 0))


def test_only_verbose_prints_the_name_of_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image_slices(str(tmp_path / "em"), "imagery", volume(), 2, "imagery")
    assert capsys.readouterr().out == ""
    save_image_slices(str(tmp_path / "em"), "imagery", volume(), 2, "imagery", verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(f"em_slice_{i}_imagery.png" in line for i, line in enumerate(lines))


def test_options_reach_the_writer(tmp_path: Path) -> None:
    flat = np.zeros((200, 200), dtype=np.uint8)
    for level in (0, 9):
        save_image_slices(str(tmp_path / f"level{level}"), "imagery", flat, 2, "imagery", compress_level=level)
    sizes = [(tmp_path / f"level{level}_imagery.png").stat().st_size for level in (0, 9)]
    assert sizes[0] > 20 * sizes[1]


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (TypeError, ["'compres_level'", "compress_level"], {"compres_level": 1}),
        (ValueError, ["image_type", "'imagery' or 'mask'", "'image'"], {"image_type": "image"}),
        (ValueError, ["slice_axis", "got 3"], {"slice_axis": 3}),
        (ValueError, ["slice_axis", "got -1"], {"slice_axis": -1}),
        (ValueError, ["slice_axis", "got True"], {"slice_axis": True}),
        (ValueError, ["slice_axis", "'z'"], {"slice_axis": "z"}),
        (ValueError, ["x, y and z", "shape (9,)"], {"img": np.zeros(9, np.uint8)}),
        (TypeError, ["8 and 16 bit", "float64", "255"], {"img": np.zeros((4, 4))}),
        (TypeError, ["8 and 16 bit", "int64"], {"img": da.zeros((4, 4, 2), dtype=np.int64)}),
        (TypeError, ["RGB", "(4, 4, 2, 2)"], {"img": np.zeros((4, 4, 2, 2), np.uint8)}),
        (TypeError, ["RGB", "uint16"], {"img": np.zeros((4, 4, 2, 3), np.uint16)}),
        (ValueError, ["color", "(1, 2)"], {"image_type": "mask", "color": (1, 2)}),
        (ValueError, ["color", "256"], {"image_type": "mask", "color": (0, 0, 256)}),
        (ValueError, ["color", "-1"], {"image_type": "mask", "color": (0, -1, 0, 0)}),
    ],
)
def test_bad_input_writes_nothing(
    tmp_path: Path, error: type[Exception], words: list[str], changes: dict[str, Any]
) -> None:
    good = {"img": volume(), "slice_axis": 2, "image_type": "imagery"}
    with pytest.raises(error) as caught:
        save_image_slices(filename_prefix=str(tmp_path / "em"), filename_suffix="imagery", **good | changes)
    assert all(word in str(caught.value) for word in words)
    assert not names(tmp_path)


class CountedBlocks:
    """A dask array that counts how often each of its blocks is computed."""

    def __init__(self, values: np.ndarray, chunks: tuple[int, ...]) -> None:
        self.computed: Counter[tuple[int, ...]] = Counter()
        lock = threading.Lock()

        def count(block: np.ndarray, block_id: tuple[int, ...] | None = None) -> np.ndarray:
            with lock:
                self.computed[block_id or ()] += 1
            return block

        self.array = da.from_array(values, chunks=chunks).map_blocks(count, dtype=values.dtype, meta=values[:0, :0, :0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_block_is_computed_once(tmp_path: Path, axis: int) -> None:
    counted = CountedBlocks(volume((12, 10, 9)), (5, 4, 4))
    with dask.config.set(scheduler="synchronous"):
        save_image_slices(str(tmp_path / "em"), "imagery", counted.array, axis, "imagery")
    assert len(names(tmp_path)) == counted.array.shape[axis]
    assert len(counted.computed) == 3 * 3 * 3
    assert set(counted.computed.values()) == {1}


def test_slabs_are_computed_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a slice is written, no block of a later slab has been computed, so that memory holds one slab."""
    counted = CountedBlocks(volume((6, 6, 9)), (3, 6, 3))
    computed_at: list[int] = []
    write = save._write

    def record(*args: Any) -> None:
        computed_at.append(sum(counted.computed.values()))
        write(*args)

    monkeypatch.setattr(save, "_write", record)
    save_image_slices(str(tmp_path / "em"), "imagery", counted.array, 2, "imagery")
    assert computed_at == [2, 2, 2, 4, 4, 4, 6, 6, 6]


def test_slabs_do_not_exceed_the_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = volume((8, 8, 7))
    monkeypatch.setattr(save, "_slab_bytes", lambda: 2 * 64)
    shapes: list[tuple[int, ...]] = []
    compute = da.Array.compute

    def record(self: da.Array, *args: Any, **kwargs: Any) -> Any:
        shapes.append(self.shape)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(da.Array, "compute", record)
    save_image_slices(str(tmp_path / "em"), "imagery", da.from_array(image, chunks=(8, 8, 7)), 2, "imagery")
    assert shapes == [(8, 8, 2), (8, 8, 2), (8, 8, 2), (8, 8, 1)]
    np.testing.assert_array_equal(read(tmp_path, "em_slice_6_imagery.png")[..., 0], image[:, :, 6].T)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_slices_are_views(axis: int, order: Any) -> None:
    """Cutouts are in Fortran order, and np.take would copy the whole cutout for each slice."""
    image = np.array(volume(), order=order)
    assert all(np.shares_memory(pixels, image) for _, pixels in save._slices(image, axis, image.shape[axis]))


def test_our_encoder_and_imageio_give_the_same_pixels(tmp_path: Path) -> None:
    """Without options we encode the files, with options imageio does."""
    image = volume((70, 50, 2))
    for name, options in (("own", {}), ("imageio", {"compress_level": 3})):
        save_image_slices(str(tmp_path / name), "imagery", image, 2, "imagery", **options)
        save_image_slices(str(tmp_path / name), "mask", image > 99, 2, "mask", color=(1, 2, 3, 4), **options)
    for rest in ("slice_0_imagery.png", "slice_1_imagery.png", "slice_0_mask.png", "slice_1_mask.png"):
        own, other = read(tmp_path, f"own_{rest}"), read(tmp_path, f"imageio_{rest}")
        np.testing.assert_array_equal(own, other, strict=True)


# ------------------------------------------------------------------------------------- methods of the client


def write_volume(folder: Path, data: np.ndarray, kind: str) -> str:
    channels = data.shape[3] if data.ndim == 4 else 1
    info = CloudVolume.create_new_info(
        channels, kind, data.dtype.name, "raw", [8, 8, 40], [3, 4, 5], list(data.shape[:3]), chunk_size=[4, 4, 2]
    )
    cloud_volume = CloudVolume(f"file://{folder}", info=info, progress=False)
    cloud_volume.commit_info()
    cloud_volume.commit_provenance()
    cloud_volume[cloud_volume.bounds.to_slices()] = data
    return f"precomputed://file://{folder}"


BOUNDS = [[3, 4, 5], [11, 10, 9]]


def labels() -> np.ndarray:
    ids = np.zeros((8, 6, 4), dtype=np.uint64)
    ids[:4, :, :] = ROOT
    ids[5:, :3, 2:] = 2**63 + 9  # begins in the third slice
    return ids


@pytest.mark.parametrize("precomputed", [True, False])
def test_masks_of_a_cutout_and_computed_masks_give_the_same_files(tmp_path: Path, precomputed: bool) -> None:
    ids = labels()
    client = ImageryClient(imagery=False, segmentation_source=write_volume(tmp_path / "volume", ids, "segmentation"))
    (tmp_path / "out").mkdir()
    roots = (ROOT, 2**63 + 9)
    masks = {root: ids == np.uint64(root) for root in roots} if precomputed else None
    client.save_segmentation_masks(
        str(tmp_path / "out" / "seg"), BOUNDS, precomputed_masks=masks, segmentation_colormap={ROOT: (9, 8, 7, 6)}
    )
    assert names(tmp_path / "out") == {f"seg_slice_{z}_root_id_{root}.png" for z in range(4) for root in roots}
    for root, color in zip(roots, [(9, 8, 7, 6), (255, 255, 255, 255)], strict=True):
        for z in range(4):
            page = read(tmp_path / "out", f"seg_slice_{z}_root_id_{root}.png")
            inside = np.equal(ids[:, :, z].T, np.uint64(root))
            np.testing.assert_array_equal(page, np.where(inside[..., np.newaxis], color, 0))


@pytest.mark.parametrize("depth", [1, 2])
def test_a_color_cutout_is_saved_in_color(tmp_path: Path, depth: int) -> None:
    image = volume((8, 6, 4, 3))
    client = ImageryClient(segmentation=False, image_source=write_volume(tmp_path / "volume", image, "image"))
    (tmp_path / "out").mkdir()
    client.save_imagery(str(tmp_path / "out" / "em"), [[3, 4, 5], [11, 10, 5 + depth]])
    numbers = [f"_slice_{z}" for z in range(depth)] if depth > 1 else [""]
    assert names(tmp_path / "out") == {f"em{number}_imagery.png" for number in numbers}
    for z, number in enumerate(numbers):
        np.testing.assert_array_equal(read(tmp_path / "out", f"em{number}_imagery.png"), image[:, :, z].swapaxes(0, 1))
