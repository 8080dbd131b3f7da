"""Slices of every kind of input are written pixel for pixel and under the right names, and each chunk is read once."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import imageio.v2 as imageio
import numpy as np
import pytest
import xarray as xr
from distributed import Client
from numpy.typing import NDArray
from support.settings import Configure
from support.streams import without_dashboard
from support.volumes import coordinate_volume, delete_chunks, fib25, random_labels, write_volume

from imagery_dask import ImageryClient, to_png
from imagery_dask.cli import main
from imagery_dask.errors import AccessRefusedError, BlockFailedError
from imagery_dask.render.palettes import colors_of
from imagery_dask.storage.atomic_files import Files

if TYPE_CHECKING:
    from support.buckets import S3Server

SHAPE = (96, 80, 40)
OFFSET = (-32, 48, -16)
STOP = tuple(a + n for a, n in zip(OFFSET, SHAPE, strict=True))
BOUNDS = [[-20, 60, -12], [50, 110, 18]]
PART = np.s_[12:82, 12:62, 4:34]
#: Number of chunks of 32 x 32 x 16 that BOUNDS touch.
CHUNKS = 3 * 2 * 3


@dataclass(frozen=True)
class World:
    """Volumes on disk and their voxels."""

    folder: Path
    image: NDArray[np.uint8]
    deep: NDArray[np.uint16]
    ids: NDArray[np.uint64]

    @property
    def client(self) -> ImageryClient:
        return ImageryClient(
            image_source=f"file://{self.folder}/image", segmentation_source=f"file://{self.folder}/ids"
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    image, deep = (coordinate_volume(SHAPE, OFFSET, dtype) for dtype in (np.uint8, np.uint16))
    ids = random_labels(SHAPE, n=24, above_2_63=True)
    write_volume(folder / "image", image, voxel_offset=OFFSET)
    write_volume(folder / "deep", deep, voxel_offset=OFFSET)
    write_volume(
        folder / "ids", ids, voxel_offset=OFFSET, layer_type="segmentation", encoding="compressed_segmentation"
    )
    return World(folder, image, deep, ids)


@pytest.fixture(autouse=True)
def _several_blocks(configure: Configure) -> None:
    configure("export.block_bytes", 2**15)
    configure("export.small_block_bytes", 2**15)


def listing(folder: Path) -> list[str]:
    """Return the names of pictures and tables, without the hidden folder of records beside them."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".receipts") if folder.exists() else []


def picture(path: Path) -> NDArray[Any]:
    return np.asarray(imageio.imread(path))


def plane(data: NDArray[Any], index: int, axis: int) -> NDArray[Any]:
    return np.take(data, index, axis=axis).swapaxes(0, 1)


def distinct(ids: NDArray[Any]) -> list[int]:
    return [int(value) for value in np.unique(ids) if value]


# ------------------------------------------------------------------------------------------------------------ imagery


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("layer", ["image", "deep"])
def test_imagery_of_a_cutout_is_exact(tmp_path: Path, world: World, threads: Client, layer: str, axis: int) -> None:
    client = ImageryClient(image_source=f"file://{world.folder}/{layer}")
    report = to_png(client.image_cutout(BOUNDS), tmp_path / "em", slice_axis=axis, cluster=threads, progress=False)
    assert report.blocks > 1
    assert (report.ok, report.counts.chunks, report.counts.missing) == (True, CHUNKS, 0)
    expected = getattr(world, layer)[PART]
    assert report.voxels == expected.size
    assert listing(tmp_path) == sorted(f"em_slice_{i}_imagery.png" for i in range(expected.shape[axis]))
    for i in range(expected.shape[axis]):
        page = picture(tmp_path / f"em_slice_{i}_imagery.png")
        np.testing.assert_array_equal(page, plane(expected, i, axis), strict=True)


def test_imagery_equals_that_of_save_imagery(tmp_path: Path, world: World, threads: Client) -> None:
    world.client.save_imagery(str(tmp_path / "old"), BOUNDS, slice_axis=1)
    to_png(world.client.image_cutout(BOUNDS), tmp_path / "new", slice_axis="y", cluster=threads, progress=False)
    for i in range(50):
        old, new = (picture(tmp_path / f"{name}_slice_{i}_imagery.png") for name in ("old", "new"))
        np.testing.assert_array_equal(old, np.repeat(new[..., np.newaxis], 3, axis=2))


def test_worker_processes_write_absolute_names(tmp_path: Path, world: World, processes: Client) -> None:
    data = world.client.image_cutout(BOUNDS)
    report = to_png(data, f"{tmp_path}/deep/er/em", names="absolute", cluster=processes, progress=False)
    assert report.counts.chunks == CHUNKS
    expected = world.image[PART]
    files = listing(tmp_path / "deep" / "er")
    assert [int(name.rpartition("_z")[2].removesuffix(".png")) for name in files] == list(range(-12, 18))
    for i, name in enumerate(files):
        np.testing.assert_array_equal(picture(tmp_path / "deep" / "er" / name), expected[:, :, i].T)


@pytest.mark.parametrize("axis", [0, 2])
def test_tiles_join_to_the_plane(tmp_path: Path, world: World, threads: Client, axis: int) -> None:
    data = world.client.image_cutout(BOUNDS)
    report = to_png(data, tmp_path / "em", slice_axis=axis, tile=40, cluster=threads, progress=False)
    assert report.counts.chunks == CHUNKS, "chunks were read more than once"
    expected = world.image[PART]
    columns, rows = ((0, 1), (1, 2))[axis == 0]
    letters = "xyz"
    for i in range(expected.shape[axis]):
        page = np.zeros(plane(expected, i, axis).shape, np.uint8)
        tiles = list(tmp_path.glob(f"em_slice_{i}_imagery_*.png"))
        assert len(tiles) > 1
        for path in tiles:
            row, column = path.stem.split("_")[-2:]
            assert row[0] + column[0] == letters[rows] + letters[columns]
            part = picture(path)
            page[int(row[1:]) :][: part.shape[0], int(column[1:]) :][:, : part.shape[1]] = part
        np.testing.assert_array_equal(page, plane(expected, i, axis))


def test_absolute_tiles_are_named_by_voxel(tmp_path: Path, world: World, threads: Client) -> None:
    data = world.client.image_cutout([[-20, 60, 3], [50, 110, 4]])
    to_png(data, tmp_path / "em", names="absolute", tile=64, cluster=threads, progress=False)
    assert listing(tmp_path) == ["em_imagery_z000003_y000060_x-000020.png", "em_imagery_z000003_y000060_x000032.png"]
    assert picture(tmp_path / "em_imagery_z000003_y000060_x000032.png").shape == (50, 18)


def test_a_single_slice_has_no_number(tmp_path: Path, world: World, threads: Client) -> None:
    to_png(world.client.image_cutout([[-20, 60, 3], [50, 110, 4]]), tmp_path / "em", cluster=threads, progress=False)
    assert listing(tmp_path) == ["em_imagery.png"]


def test_tiff_slices_are_exact(tmp_path: Path, world: World, threads: Client) -> None:
    data = ImageryClient(image_source=f"file://{world.folder}/deep").image_cutout(BOUNDS)
    to_png(data, tmp_path / "em", format="tiff", names="absolute", cluster=threads, progress=False)
    files = listing(tmp_path)
    assert files[0] == "em_imagery_000000_z-000012.tif"
    for i, name in enumerate(files):
        np.testing.assert_array_equal(picture(tmp_path / name), world.deep[PART][:, :, i].T, strict=True)


@pytest.mark.parametrize("form", ["numpy", "dask", "xarray", "sliced", "color"])
def test_arrays_of_every_kind_are_written(tmp_path: Path, world: World, threads: Client, form: str) -> None:
    expected = world.image[PART]
    data: Any = {
        "numpy": lambda: expected,
        "dask": lambda: da.from_array(expected, chunks=(13, 50, 7)),
        "xarray": lambda: xr.DataArray(expected.T, dims=("z", "y", "x")),
        "sliced": lambda: world.client.image_volume()[PART],
        "color": lambda: np.stack([expected, expected // 2, 255 - expected], axis=3),
    }[form]()
    to_png(data, tmp_path / "em", cluster=threads, progress=False)
    assert len(listing(tmp_path)) == 30
    wanted = data if form == "color" else expected
    for i in range(30):
        page = picture(tmp_path / f"em_slice_{i}_imagery.png")
        np.testing.assert_array_equal(page, wanted[:, :, i].swapaxes(0, 1))


def test_absolute_names_of_a_sliced_volume_are_its_voxels(tmp_path: Path, world: World, threads: Client) -> None:
    data = world.client.image_volume()[PART][:, :, -2:]
    to_png(data, tmp_path / "em", names="absolute", cluster=threads, progress=False)
    assert listing(tmp_path) == ["em_imagery_z000016.png", "em_imagery_z000017.png"]
    to_png(world.image, tmp_path / "np", names="absolute", voxel_offset=(0, 0, 7), cluster=threads, progress=False)
    assert "np_imagery_z000046.png" in listing(tmp_path)


@pytest.mark.parametrize("bits", [8, 16])
def test_floats_are_scaled_by_a_window(tmp_path: Path, threads: Client, bits: Any) -> None:
    data = np.random.default_rng(0).normal(size=(20, 30, 4)).astype(np.float32)
    to_png(data, tmp_path / "em", window=(-1, 2.5), bits=bits, cluster=threads, progress=False)
    top = 2**bits - 1
    for i in range(4):
        expected = np.rint(np.clip((data[:, :, i].astype(float) + 1) / 3.5, 0, 1) * top).T
        np.testing.assert_array_equal(picture(tmp_path / f"em_slice_{i}_imagery.png"), expected)


def test_missing_chunks_are_counted(tmp_path: Path, world: World, threads: Client) -> None:
    path = write_volume(tmp_path / "volume", world.image, voxel_offset=OFFSET)
    (gone,) = delete_chunks(path, 0, lambda start: start == (0, 48, 0))
    report = to_png(
        ImageryClient(image_source=path).image_volume(), tmp_path / "out" / "em", cluster=threads, progress=False
    )
    assert report.counts.missing == 1
    expected = world.image.copy()
    expected[gone] = 0
    np.testing.assert_array_equal(picture(tmp_path / "out" / "em_slice_20_imagery.png"), expected[:, :, 20].T)


def test_failed_blocks_are_named(tmp_path: Path, world: World, threads: Client) -> None:
    path = write_volume(tmp_path / "volume", world.image, voxel_offset=OFFSET)
    delete_chunks(path, 0, lambda start: start[2] == 0)
    data = ImageryClient(image_source=path, missing="error").image_volume()
    with pytest.raises(BlockFailedError, match=r"1 of 3 blocks failed.*slices z1 ") as caught:
        to_png(data, tmp_path / "out" / "em", cluster=threads, progress=False)
    assert caught.value.report.done == 2
    assert len(listing(tmp_path / "out")) == 24


# --------------------------------------------------------------------------------------------------- masks and labels


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("listed", [False, True])
def test_masks_are_written_for_each_root(
    tmp_path: Path, world: World, threads: Client, axis: int, listed: bool
) -> None:
    bounds = [[-8, 60, -6], [8, 80, 6]]
    ids = world.ids[24:40, 12:32, 10:22]
    roots = [*distinct(ids)[1:4], 2**64 - 5] if listed else distinct(ids)
    colors = {roots[1]: (9, 8, 7), roots[2]: (1, 2, 3, 4)}
    report = to_png(
        world.client.segmentation_cutout(bounds, convert_to_int64=False), tmp_path / "seg", what="masks",
        slice_axis=axis, root_ids=roots if listed else "all", colors=colors, cluster=threads, progress=False,
    )  # fmt: skip
    assert report.counts.chunks == 2 * 1 * 2
    count = ids.shape[axis]
    assert listing(tmp_path) == sorted(f"seg_slice_{i}_root_id_{root}.png" for i in range(count) for root in roots)
    for root in roots:
        color = {roots[1]: (9, 8, 7, 255), roots[2]: (1, 2, 3, 4)}.get(root, (255,) * 4)
        for i in range(count):
            inside = (plane(ids, i, axis) == np.uint64(root))[..., np.newaxis]
            page = picture(tmp_path / f"seg_slice_{i}_root_id_{root}.png")
            np.testing.assert_array_equal(page, np.where(inside, color, 0))


def test_masks_equal_those_of_save_segmentation_masks(tmp_path: Path, world: World, threads: Client) -> None:
    bounds = [[-20, 60, -12], [-4, 80, -6]]
    (tmp_path / "a").mkdir()
    world.client.save_segmentation_masks(str(tmp_path / "a" / "seg"), bounds)
    cutout = world.client.segmentation_cutout(bounds, convert_to_int64=False)
    to_png(cutout, tmp_path / "b" / "seg", what="masks", cluster=threads, progress=False)
    assert listing(tmp_path / "a") == listing(tmp_path / "b")
    for name in listing(tmp_path / "a"):
        np.testing.assert_array_equal(picture(tmp_path / "a" / name), picture(tmp_path / "b" / name))


def table(path: Path) -> dict[int, int]:
    with path.open() as file:
        return {int(row["id"]): int(row["value"]) for row in csv.DictReader(file)}


def unpacked(page: NDArray[Any]) -> NDArray[Any]:
    return page if page.ndim == 2 else page.astype(np.uint32) @ np.array([65_536, 256, 1], np.uint32)


def check_labels(folder: Path, ids: NDArray[np.uint64], axis: int = 2) -> dict[int, int]:
    """Check that every id can be read back through the one table; return the table."""
    values = table(folder / "seg_labels.csv")
    assert values[0] == 0
    assert len(set(values.values())) == len(values)
    back = np.zeros(max(values.values()) + 1, np.uint64)
    for root, value in values.items():
        back[value] = root
    for i in range(ids.shape[axis]):
        page = picture(folder / f"seg_slice_{i}_labels.png")
        np.testing.assert_array_equal(back[unpacked(page)], plane(ids, i, axis))
    return values


@pytest.mark.parametrize("axis", [1, 2])
def test_labels_of_all_ids_are_exact(tmp_path: Path, world: World, processes: Client, axis: int) -> None:
    cutout = world.client.segmentation_cutout(BOUNDS, convert_to_int64=False)
    report = to_png(cutout, tmp_path / "seg", what="labels", slice_axis=axis, cluster=processes, progress=False)
    assert report.counts.chunks == CHUNKS
    ids = world.ids[PART]
    assert max(distinct(ids)) > 2**63
    values = check_labels(tmp_path, ids, axis)
    assert sorted(values) == [0, *distinct(ids)]
    assert picture(tmp_path / "seg_slice_0_labels.png").dtype == np.uint16


def test_labels_of_listed_ids_are_exact(tmp_path: Path, world: World, threads: Client) -> None:
    ids = world.ids[PART]
    roots = distinct(ids)[3:6]
    cutout = world.client.segmentation_cutout(BOUNDS, root_ids=roots, convert_to_int64=False)
    to_png(cutout, tmp_path / "seg", what="labels", cluster=threads, progress=False)
    check_labels(tmp_path, np.where(np.isin(ids, np.array(roots, np.uint64)), ids, 0))
    whole = world.client.segmentation_cutout(BOUNDS, convert_to_int64=False)
    to_png(whole, tmp_path / "b" / "seg", what="labels", root_ids=roots[:2], cluster=threads, progress=False)
    values = check_labels(tmp_path / "b", np.where(np.isin(ids, np.array(roots[:2], np.uint64)), ids, 0))
    assert values == {0: 0, roots[0]: 1, roots[1]: 2}


@pytest.mark.parametrize("count", [65_535, 65_536])
def test_many_labels_are_packed(tmp_path: Path, threads: Client, count: int) -> None:
    ids = np.zeros(256 * 257, np.uint64)
    ids[:count] = 2**60 + 3 * np.arange(count, dtype=np.uint64)
    ids = ids.reshape(256, 257, 1).repeat(2, axis=2)
    to_png(ids, tmp_path / "seg", what="labels", cluster=threads, progress=False)
    check_labels(tmp_path, ids)
    assert picture(tmp_path / "seg_slice_0_labels.png").ndim == (2 if count == 65_535 else 3)


def test_an_overwritten_table_fits_its_new_labels(tmp_path: Path, world: World, threads: Client) -> None:
    for part in (np.s_[:20, :20, :3], np.s_[20:40, 20:40, 10:13]):
        ids = world.ids[part]
        to_png(ids, tmp_path / "seg", what="labels", overwrite=True, cluster=threads, progress=False)
        check_labels(tmp_path, ids)


# ----------------------------------------------------------------------------------------------------------- overlays


def test_an_overlay_shows_objects_in_color(tmp_path: Path, world: World, threads: Client) -> None:
    data = world.client.dataset(BOUNDS)
    report = to_png(data, tmp_path / "both", what="overlay", alpha=1.0, cluster=threads, progress=False)
    assert report.counts.chunks == 2 * CHUNKS
    ids, image = world.ids[PART], world.image[PART]
    for i in range(30):
        page = picture(tmp_path / f"both_slice_{i}_overlay.png")[..., :3]
        background = plane(ids, i, 2) == 0
        np.testing.assert_array_equal(page[background], plane(image, i, 2)[background][:, np.newaxis].repeat(3, 1))
        expected = colors_of(plane(ids, i, 2))
        assert np.abs(page.astype(int) - expected)[~background].max() <= 2


def test_tiles_of_an_overlay_equal_the_whole(tmp_path: Path, world: World, threads: Client) -> None:
    data = world.client.dataset(BOUNDS)
    to_png(data, tmp_path / "whole", what="overlay", cluster=threads, progress=False)
    to_png(data, tmp_path / "tile", what="overlay", tile=40, cluster=threads, progress=False)
    check_tiles(tmp_path)


@pytest.mark.parametrize("merge", [True, False])
def test_outlines_in_tiles_equal_those_of_the_whole(tmp_path: Path, world: World, threads: Client, merge: bool) -> None:
    from imagery_dask.render import overlays

    data = world.client.dataset(BOUNDS)
    roots = distinct(world.ids[PART])
    options: dict[str, Any] = {"outline": True, "merge_outline": merge, "width": 3, "alpha": 0.5}
    options |= {"root_ids": roots[:6], "colors": {roots[0]: (255, 0, 0)}}
    common = options | {"what": "overlay", "cluster": threads, "progress": False}
    to_png(data, tmp_path / "whole", **common)
    to_png(data, tmp_path / "tile", tile=40, **common)
    check_tiles(tmp_path)
    ids = np.where(np.isin(world.ids[PART], np.array(roots[:6], np.uint64)), world.ids[PART], 0)
    del options["root_ids"]
    expected = overlays.overlay_page(ids[:, :, 9], world.image[PART][:, :, 9], **options)
    np.testing.assert_array_equal(picture(tmp_path / "whole_slice_9_overlay.png"), expected)
    to_png(data.drop_vars("image"), tmp_path / "alone", **common)
    expected = overlays.overlay_page(ids[:, :, 9], None, **options)
    np.testing.assert_array_equal(picture(tmp_path / "alone_slice_9_overlay.png"), expected)


def check_tiles(folder: Path) -> None:
    for i in range(30):
        whole = picture(folder / f"whole_slice_{i}_overlay.png")
        for path in folder.glob(f"tile_slice_{i}_overlay_*.png"):
            row, column = (int(part[1:]) for part in path.stem.split("_")[-2:])
            part = picture(path)
            np.testing.assert_array_equal(part, whole[row:, column:][: part.shape[0], : part.shape[1]])


# ------------------------------------------------------------------------------------------------------------ targets


def test_pictures_are_written_to_s3_and_protected(world: World, s3_server: S3Server, processes: Client) -> None:
    s3_server.create_bucket("pictures")
    prefix = "s3://pictures/some/folder/seg"
    ids = world.ids[:40, :30, :3]
    with s3_server.environment():
        options = {"what": "labels", "cluster": None, "progress": False}
        to_png(ids, prefix, **options)
        files = Files.at("s3://pictures/some/folder")
        names = sorted(name for name in files.names() if ".receipts/" not in name)
        assert names == ["seg_labels.csv", *(f"seg_slice_{i}_labels.png" for i in range(3))]
        page = np.asarray(imageio.imread(files.get("seg_slice_2_labels.png")))
        np.testing.assert_array_equal(np.array([0, *distinct(ids)], np.uint64)[page], ids[:, :, 2].T)
        with pytest.raises(FileExistsError, match=r"seg_labels.csv exists already in s3://pictures/some/folder"):
            to_png(ids[:-1], prefix, **options)
        assert to_png(ids, prefix, **options).before == 1  # the same export is complete already
        to_png(ids, prefix, overwrite=True, **options)
        to_png(world.image[:, :, :2], prefix, cluster=None, progress=False)  # of other names


def test_pictures_in_memory_are_written_by_this_process_only(threads: Client, processes: Client, world: World) -> None:
    to_png(world.image, "memory://pictures/em", cluster=threads, progress=False)
    files = Files.at("memory://pictures")
    assert len(list(files.names("em"))) == 40
    page = np.asarray(imageio.imread(files.get("em_slice_5_imagery.png")))
    np.testing.assert_array_equal(page, world.image[:, :, 5].T)
    with pytest.raises(ValueError, match="memory://elsewhere is in the memory of this process"):
        to_png(world.image, "memory://elsewhere/em", cluster=processes, progress=False)


def test_a_bucket_that_refuses_is_an_error(world: World, s3_server: S3Server) -> None:
    s3_server.create_bucket("locked")
    with s3_server.environment(AWS_SECRET_ACCESS_KEY="guess"), pytest.raises(OSError, match="s3://locked"):
        to_png(world.image, "s3://locked/em", overwrite=True, progress=False)


@pytest.mark.long
def test_slices_of_fib25_are_exact(tmp_path: Path, processes: Client) -> None:
    em = fib25()
    offset = (-130, 2_000, 77)
    options: dict[str, Any] = {"resolution": (10, 10, 10), "voxel_offset": offset, "chunk_size": (64, 64, 64)}
    client = ImageryClient(
        image_source=write_volume(tmp_path / "image", em.image, **options),
        segmentation_source=write_volume(
            tmp_path / "ids", em.supervoxel, layer_type="segmentation", encoding="compressed_segmentation", **options
        ),
    )
    report = to_png(
        client.image_volume(), tmp_path / "em" / "fib", names="absolute", slice_axis="x", cluster=processes,
        progress=False,
    )  # fmt: skip
    assert (report.ok, report.counts.chunks) == (True, 4**3)
    for i in (0, 63, 64, 249):
        rank = f"{i:06d}"
        value = i - 130
        name = f"fib_imagery_{rank}_x{'-' if value < 0 else ''}{abs(value):06d}.png"
        np.testing.assert_array_equal(picture(tmp_path / "em" / name), em.image[i].T)
    volume = client.segmentation_volume()[:, :, 100:110]
    report = to_png(volume, tmp_path / "seg" / "seg", what="labels", cluster=processes, progress=False)
    check_labels(tmp_path / "seg", em.supervoxel[:, :, 100:110])


# ------------------------------------------------------------------------------------------------------------ refusals

FLOATS = np.zeros((4, 4, 3))
COUNTED = np.arange(48, dtype=np.uint64).reshape(4, 4, 3)
IDS = np.full((4, 4, 3), 2**60 + 1, np.uint64)


@pytest.mark.parametrize(
    ("data", "options", "error", "messages"),
    [
        (FLOATS, {}, TypeError, ["float64", "--window"]),
        (FLOATS, {"window": (1, 0)}, ValueError, ["low < high"]),
        (FLOATS, {"window": 3}, ValueError, ["window", "3"]),
        (FLOATS, {"bits": 16}, ValueError, ["bits=16", "window"]),
        (FLOATS, {"window": (0, 1), "bits": 12}, ValueError, ["8 or 16"]),
        (np.zeros((4, 4, 3, 2), np.uint8), {}, TypeError, ["RGB"]),
        (IDS, {"what": "pictures"}, ValueError, ["what", "'pictures'"]),
        (IDS, {"what": "labels", "slice_axis": "t"}, ValueError, ["slice_axis", "'t'"]),
        (IDS, {"what": "labels", "format": "jpeg"}, ValueError, ["format", "'jpeg'"]),
        (IDS, {"what": "labels", "names": "short"}, ValueError, ["names", "'short'"]),
        (IDS, {"what": "labels", "names": "absolute"}, ValueError, ["voxel_offset"]),
        (IDS, {"what": "labels", "names": "absolute", "voxel_offset": (1, 2)}, ValueError, ["voxel_offset", "(1, 2)"]),
        (IDS, {"what": "labels", "colors": {2**60 + 1: (1, 2, 3)}}, ValueError, ["labels", "colors"]),
        (IDS, {"what": "masks", "colors": {0: (1, 2, 3)}}, ValueError, ["colors", "0 cannot be there"]),
        (IDS.astype(np.uint32), {"what": "masks", "colors": {2**60: (1, 2, 3)}}, ValueError, ["cannot be there"]),
        (
            IDS, {"what": "masks", "root_ids": [2**60 + 1], "colors": {2**60 + 2: (1, 2, 3)}},
            ValueError, [f"{2**60 + 2} cannot be there", "root_ids does not list"],
        ),
        (IDS, {"what": "masks", "colors": {2**60 + 1: (1, 2)}}, ValueError, ["color", "(1, 2)"]),
        (IDS, {"what": "masks", "root_ids": [1.5]}, TypeError, ["root_ids", "1.5"]),
        (IDS, {"what": "overlay", "alpha": 2}, ValueError, ["alpha"]),
        (IDS, {"what": "overlay", "outline": True, "width": 0}, ValueError, ["width"]),
        (IDS, {"what": "labels", "window": (0, 1)}, ValueError, ["window"]),
        (FLOATS, {"what": "masks"}, TypeError, ["integer ids", "float64"]),
        (IDS.astype(np.uint8), {"root_ids": [5]}, ValueError, ["root_ids"]),
        (xr.Dataset({"image": (("x", "y", "z"), IDS)}), {"what": "masks"}, ValueError, ["'segmentation'"]),
        (IDS.astype(np.uint8), {"max_files": 2}, ValueError, ["3 files", "--max-files"]),
        (IDS.astype(np.uint8), {"max_files": 11, "tile": 2}, ValueError, ["12 files", "4 tiles"]),
        (IDS, {"what": "masks", "max_files": 2}, ValueError, ["3 files"]),
        (IDS, {"what": "masks", "max_files": 5, "root_ids": [1, 2]}, ValueError, ["6 files"]),
        (COUNTED, {"what": "masks", "max_files": 50}, ValueError, ["141 files"]),
        (IDS.astype(np.uint8), {"tile": 0}, ValueError, ["tile", "0"]),
        (IDS.astype(np.uint8), {"max_files": 0}, ValueError, ["max_files"]),
        ([1, 2], {}, TypeError, ["list"]),
    ],
)  # fmt: skip
def test_invalid_input_writes_nothing(
    tmp_path: Path, threads: Client, data: Any, options: dict[str, Any], error: type[Exception], messages: list[str]
) -> None:
    with pytest.raises(error) as caught:
        to_png(data, tmp_path / "out" / "em", cluster=threads, progress=False, **options)
    assert all(message in str(caught.value) for message in messages), str(caught.value)
    assert not listing(tmp_path)


def test_prefixes_that_cannot_be_written_are_refused(tmp_path: Path, threads: Client) -> None:
    image = IDS.astype(np.uint8)
    (tmp_path / "file").write_text("text")
    for prefix, error, message in [
        (tmp_path / "file" / "em", OSError, "file"),
        (f"{tmp_path}/", ValueError, "prefix"),
        ("s3://bucket", ValueError, "prefix"),
        ("", ValueError, "prefix"),
        (7, TypeError, "prefix"),
        ("/proc/nothing/em", OSError, "Cannot write"),
    ]:
        with pytest.raises(error, match=message):
            to_png(image, prefix, cluster=threads, progress=False)
    assert listing(tmp_path) == ["file"]


def test_existing_files_are_overwritten_on_request_only(tmp_path: Path, threads: Client) -> None:
    image = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    (tmp_path / "em_slice_2_imagery.png").write_text("precious")
    (tmp_path / "em_notes.txt").write_text("more")
    with pytest.raises(FileExistsError, match=r"em_slice_2_imagery.png exists already.*--overwrite"):
        to_png(image, tmp_path / "em", cluster=threads, progress=False)
    assert listing(tmp_path) == ["em_notes.txt", "em_slice_2_imagery.png"]
    to_png(image, tmp_path / "em", overwrite=True, cluster=threads, progress=False)
    np.testing.assert_array_equal(picture(tmp_path / "em_slice_2_imagery.png"), image[:, :, 2].T)
    assert (tmp_path / "em_notes.txt").read_text() == "more"
    assert len(listing(tmp_path)) == 4
    ids = IDS + np.arange(3, dtype=np.uint64)
    (tmp_path / f"em_slice_1_root_id_{2**60 + 2}.png").write_text("precious")
    with pytest.raises(FileExistsError, match=f"root_id_{2**60 + 2}"):
        to_png(ids, tmp_path / "em", what="masks", cluster=threads, progress=False)
    assert len(listing(tmp_path)) == 5


def test_a_slab_larger_than_a_worker_is_refused(tmp_path: Path, threads: Client) -> None:
    big = da.zeros((2**20, 2**20, 64), chunks=(2**10, 2**10, 64), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"1,048,576x1,048,576x64 voxels.*--tile"):
        to_png(big, tmp_path / "em", cluster=threads, progress=False)
    assert not listing(tmp_path)


def test_refused_access_ends_the_export(
    tmp_path: Path, world: World, threads: Client, http_server_factory: Any
) -> None:
    from support.http_server import Fault

    server = http_server_factory(world.folder, faults=lambda path, n: Fault(403) if "8_8_40" in path else None)
    client = ImageryClient(segmentation_source=f"precomputed://{server.url}/ids")
    for options in ({"what": "labels"}, {"what": "masks", "root_ids": [5]}):
        with pytest.raises(AccessRefusedError, match="refused"):
            to_png(client.segmentation_volume(), tmp_path / "seg", cluster=threads, progress=False, **options)
    assert not listing(tmp_path)


# -------------------------------------------------------------------------------------------------------- command line

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], threads: Client) -> Run:
    def call(*arguments: Any) -> tuple[int, str, str]:
        address = ("--cluster", threads.scheduler.address)
        monkeypatch.setattr(sys, "argv", ["imagery-dask", "export", "png", *map(str, (*arguments, *address))])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, without_dashboard(captured.err)

    return call


def both(world: World) -> tuple[str, ...]:
    return (
        "--image-source", f"file://{world.folder}/image", "--segmentation-source", f"file://{world.folder}/ids",
        "--bounds", *(str(value) for corner in BOUNDS for value in corner),
    )  # fmt: skip


def test_the_command_line_writes_every_kind_of_picture(tmp_path: Path, world: World, run: Run) -> None:
    code, text, error = run(tmp_path / "em", *both(world), "--names", "absolute", "--slice-axis", "y", "--tile", 64)
    assert (code, error) == (0, "")
    assert f"{CHUNKS} storage chunks read" in text
    assert len(listing(tmp_path)) == 50 * 2
    ids = world.ids[PART]
    code, text, error = run(tmp_path / "seg" / "seg", *both(world), "--what", "labels", "--names", "reference")
    assert (code, error) == (0, "")
    check_labels(tmp_path / "seg", ids)
    roots = distinct(ids)[:2]
    colors = tmp_path / "colors.csv"
    colors.write_text(f"{roots[0]},255,0,0\n{roots[1]},0,255,0,128\n")
    code, text, error = run(
        tmp_path / "masks" / "m", *both(world), "--what", "masks", "--root-ids", ",".join(map(str, roots)), "--colors",
        colors,
    )  # fmt: skip
    assert (code, error) == (0, "")
    page = picture(tmp_path / "masks" / f"m_slice_07_root_id_{roots[1]}.png")
    inside = (np.uint64(roots[1]) == ids[:, :, 7].T)[..., np.newaxis]
    np.testing.assert_array_equal(page, np.where(inside, (0, 255, 0, 128), 0))
    code, text, error = run(tmp_path / "o" / "o", *both(world), "--what", "overlay", "--alpha", 0.5, "--format", "tiff")
    assert (code, error) == (0, "")
    assert len(listing(tmp_path / "o")) == 30


def test_the_command_line_resumes_pictures_with_the_names_that_they_were_begun_with(
    tmp_path: Path, world: World, run: Run, threads: Client
) -> None:
    client = ImageryClient(
        image_source=f"file://{world.folder}/image", segmentation_source=f"file://{world.folder}/ids"
    )
    data = client.dataset(BOUNDS, scale_to_bounds=False)
    before = to_png(data, tmp_path / "em", names="reference", cluster=threads, progress=False)
    listed = listing(tmp_path)
    code, _, error = run(tmp_path / "em", *both(world))
    assert (code, error) == (0, "")
    assert listing(tmp_path) == listed
    assert run(tmp_path / "new", *both(world))[0] == 0
    new = sorted(name for name in listing(tmp_path) if name.startswith("new"))
    assert new == [f"new_slice_{index:02d}_imagery.png" for index in range(len(listed))]
    assert run(tmp_path / "em", *both(world), "--overwrite")[0] == 0
    assert "em_slice_00_imagery.png" in listing(tmp_path)
    assert before.blocks > 0


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--what", "picture"], ["--what", "picture"]),
        (["--slice-axis", "t"], ["--slice-axis"]),
        (["--window", "3"], ["--window", "LOW,HIGH"]),
        (["--window", "3,1"], ["low < high"]),
        (["--bits", "16"], ["window"]),
        (["--tile", "0"], ["--tile"]),
        (["--format", "bmp"], ["--format"]),
        (["--max-files", "29"], ["30 files", "--max-files"]),
        (["--what", "masks", "--max-files", "29"], ["--max-files"]),
        (["--what", "masks", "--colors", "/nowhere"], ["--colors", "/nowhere"]),
        (["--what", "masks", "--root-ids", "5", "--colors", "COLORS"], ["cannot be there"]),
        (["--what", "labels", "--colors", "COLORS"], ["labels", "colors"]),
        (["--what", "overlay", "--alpha", "3"], ["alpha"]),
    ],
)
def test_invalid_options_exit_with_2_and_write_nothing(
    tmp_path: Path, world: World, run: Run, arguments: list[str], messages: list[str]
) -> None:
    colors = tmp_path / "colors.csv"
    colors.write_text(f"{2**60},1,2,3\n")
    arguments = [str(colors) if word == "COLORS" else word for word in arguments]
    code, text, error = run(tmp_path / "out" / "em", *both(world), *arguments)
    assert (code, text) == (2, "")
    assert all(message in error for message in messages), error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("Error")]) == 1
    assert not (tmp_path / "out").exists()


def test_other_arguments_for_existing_pictures_exit_with_2(tmp_path: Path, world: World, run: Run) -> None:
    assert run(tmp_path / "em", *both(world))[0] == 0
    before = (tmp_path / "em_slice_03_imagery.png").stat().st_mtime_ns
    code, text, error = run(tmp_path / "em", *both(world))
    assert code == 0
    assert "0 were left to do" in text
    code, text, error = run(tmp_path / "em", *both(world), "--window", "0,200")
    assert (code, text) == (2, "")
    assert "--overwrite" in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "em_slice_03_imagery.png").stat().st_mtime_ns == before
    assert run(tmp_path / "em", *both(world), "--window", "0,200", "--overwrite")[0] == 0
