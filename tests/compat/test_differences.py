"""Intended differences from the released imageryclient: one test for each section of docs/differences.md."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask.array as da
import imageryclient
import imageryclient.imagery
import numpy as np
import pytest
from compat.worlds import IMAGE_NM, LABELS_NM, World, make_world
from numpy.typing import NDArray
from PIL import Image
from support.http_server import Fault, FileServer
from support.volumes import coordinate_volume, delete_chunks, write_volume

import imagery_dask
from imagery_dask.errors import AccessRefusedError, MissingChunkError, SourceNotFoundError

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "differences.md"

#: A box inside the image, 16 x 12 x 3 voxels of 8 x 8 x 40 nm.
BOUNDS = [[44, 28, 9], [60, 40, 12]]
#: A box inside the image, one voxel along z.
FLAT = [[44, 28, 9], [60, 40, 10]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (40, 24, 8))


def under_centres(
    volume: NDArray[Any], start: Sequence[int], own_nm: Sequence[float], bounds: Any, nm: Sequence[float]
) -> NDArray[Any]:
    """Return the voxels of `volume` at the centres of the voxels of size `nm` within `bounds`; 0 outside the volume."""
    out = volume
    for axis in range(3):
        ratio = Fraction(str(nm[axis])) / Fraction(str(own_nm[axis]))
        targets = range(bounds[0][axis], bounds[1][axis])
        index = np.array([int((target + Fraction(1, 2)) * ratio // 1) - start[axis] for target in targets])
        inside = (index >= 0) & (index < volume.shape[axis])
        out = out.take(np.where(inside, index, 0), axis=axis)
        out = out * inside.reshape([-1 if other == axis else 1 for other in range(3)])
    return out


def picture(path: Path) -> tuple[str, NDArray[Any]]:
    with Image.open(path) as opened:
        return opened.mode, np.array(opened)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_document_names_exactly_these_tests() -> None:
    named = re.findall(r"`(test_\w+)`", DOCUMENT.read_text())
    tests = {name for name in globals() if name.startswith("test_")} - {"test_the_document_names_exactly_these_tests"}
    # Differences that need a CAVE server, hostile servers or damaged files, and overlays, are tested elsewhere.
    other_files = set(Path(__file__).parents[1].rglob("test_*.py")) - {Path(__file__)}
    others = "".join(file.read_text() for file in other_files)
    elsewhere = {name for name in named if name not in tests and f"def {name}(" in others}
    assert sorted(set(named) - elsewhere) == sorted(tests)
    assert len(named) == len(set(named))


# --------------------------------------------------------------------------- which voxels


def test_scale_to_bounds_none_rescales_without_a_mip(world: World) -> None:
    ours, released = world.ours, world.released
    assert ours.segmentation_cutout(BOUNDS).shape == (16, 12, 3)
    assert released.segmentation_cutout(BOUNDS).shape == (8, 6, 3)
    assert ours.split_segmentation_cutout(BOUNDS).shape == (16, 12, 3)

    coarse = {"bounds": [[11, 7, 9], [15, 10, 12]], "resolution": (32, 32, 40)}
    assert ours.image_cutout(**coarse).shape == (4, 3, 3)
    assert released.image_cutout(**coarse).shape == (16, 12, 3)
    assert [cut.shape for cut in ours.image_and_segmentation_cutout(**coarse)] == [(4, 3, 3), (4, 3, 3)]

    # With a mip, or a size in pixels of a mip, nothing is rescaled, as in the release.
    assert ours.segmentation_cutout(BOUNDS, mip=0).shape == released.segmentation_cutout(BOUNDS, mip=0).shape
    sized = ours.segmentation_cutout(BOUNDS[0], image_size=(6, 4))
    assert sized.shape == (6, 4) == released.segmentation_cutout(BOUNDS[0], image_size=(6, 4)).shape
    for mips in ({"image_mip": 1}, {"segmentation_mip": 0}, {"image_mip": 0, "segmentation_mip": 0}):
        pair = [client.image_and_segmentation_cutout(**coarse, **mips) for client in (ours, released)]
        assert [cut.shape for cut in pair[0]] == [cut.shape for cut in pair[1]]


@pytest.mark.parametrize("nm", [(24, 24, 40), (2, 2, 40), (3, 5, 30), (4.3, 9.7, 40), (16, 8, 120)])
def test_resampling_is_anchored_in_the_world(world: World, nm: tuple[float, ...]) -> None:
    start = np.floor(np.array([50, 34, 10]) * IMAGE_NM / nm).astype(int)
    bounds = np.array([start, start + [17, 13, 5]])
    options = {"resolution": nm, "scale_to_bounds": True}
    for cut, volume, own_nm, first in (
        (world.ours.image_cutout, world.image, IMAGE_NM, world.start),
        (world.ours.segmentation_cutout, world.labels, LABELS_NM, (20, 12, 8)),
    ):
        whole = cut(bounds, **options).compute()
        np.testing.assert_array_equal(whole, under_centres(volume, first, own_nm, bounds, nm))
        for axis in range(3):
            meet = bounds[0, axis] + 2
            below, above = bounds.copy(), bounds.copy()
            below[1, axis] = above[0, axis] = meet
            pieces = [cut(part, **options) for part in (below, above)]
            np.testing.assert_array_equal(np.concatenate(pieces, axis=axis), whole)


def test_release_is_anchored_in_the_cutout(world: World) -> None:
    options = {"resolution": (24, 24, 40), "scale_to_bounds": True}
    left, right, whole = [[15, 10, 9], [23, 20, 12]], [[23, 10, 9], [29, 20, 12]], [[15, 10, 9], [29, 20, 12]]
    for client, seamless in ((world.ours, True), (world.released, False)):
        cuts = [np.asarray(client.image_cutout(bounds, **options)) for bounds in (left, right, whole)]
        assert np.array_equal(np.concatenate(cuts[:2]), cuts[2]) == seamless


def test_any_piece_of_a_pair_is_part_of_the_whole(world: World) -> None:
    options = {"image_mip": 0, "segmentation_mip": 1}  # 8 and 32 nm
    whole = [np.asarray(cut) for cut in world.ours.image_and_segmentation_cutout(BOUNDS, **options)]
    for x in (44, 45, 47):
        piece = [[x, 29, 9], [x + 2, 32, 12]]  # smaller than a voxel of the segmentation
        image, labels = world.ours.image_and_segmentation_cutout(piece, **options)
        np.testing.assert_array_equal(image, whole[0][x - 44 : x - 42, 1:4])
        np.testing.assert_array_equal(labels, whole[1][x - 44 : x - 42, 1:4])


def test_one_voxel_wide_cutouts_are_scaled(world: World) -> None:
    whole = world.ours.image_cutout(BOUNDS).compute()
    for axis in range(3):
        thin = np.array(BOUNDS)
        thin[1, axis] = thin[0, axis] + 1
        ours = world.ours.image_cutout(thin, scale_to_bounds=True).compute()
        released = world.released.image_cutout(thin, scale_to_bounds=True)
        np.testing.assert_array_equal(ours, whole.take(0, axis=axis))
        assert np.array_equal(ours, released) == (axis == 2)  # the release takes shape and voxels of the wrong axes


def test_image_size_is_exact(world: World) -> None:
    def shapes(center: Sequence[int], **options: Any) -> list[tuple[int, ...]]:
        return [client.image_cutout(center, **options).shape for client in (world.ours, world.released)]

    assert shapes((30, 20, 10), image_size=(9, 13, 3), resolution=(16, 16, 40)) == [(9, 13, 3), (8, 12, 3)]
    assert shapes((90, 60, 10), image_size=(11, 11), resolution=(4.3, 9.7, 40)) == [(11, 11), (10, 11)]
    # The release rounds both corners towards 0, and they lie on both sides of it.
    assert shapes((0, 0, 10), image_size=(7, 7), mip=1) == [(7, 7), (6, 6)]
    with pytest.raises(ValueError, match="image_size must be whole numbers of pixels"):
        world.ours.image_cutout((60, 40, 10), image_size=(9.5, 13))


def test_fractional_bounds_far_away_are_exact(tmp_path: Path) -> None:
    start = (2**24 + 1, 2**24 + 1, 8)
    image = coordinate_volume((16, 16, 4), start, np.uint8)
    ours, released = both(image_source=write_volume(tmp_path / "far", image, voxel_offset=start), segmentation=False)
    bounds = np.array([start, np.add(start, (5, 5, 3))], dtype=float)
    np.testing.assert_array_equal(ours.image_cutout(bounds), image[:5, :5, :3])
    assert not np.array_equal(released.image_cutout(bounds), image[:5, :5, :3])
    np.testing.assert_array_equal(released.image_cutout(bounds.astype(int)), image[:5, :5, :3])


def test_bounds_on_voxel_edges_are_exact(tmp_path: Path) -> None:
    image = coordinate_volume((1100, 1, 1), dtype=np.uint8)
    path = write_volume(tmp_path / "v", image, resolution=(4.4, 4.4, 40), chunk_size=(64, 1, 1))
    ours, released = both(image_source=path, segmentation=False, resolution=(1, 1, 1))
    for lower in (4400, 30.8):
        bounds, first = [[lower, 0, 0], [lower + 44, 4.4, 40]], round(lower / 4.4)
        exact = ours.image_cutout(bounds, scale_to_bounds=False)
        np.testing.assert_array_equal(exact, image[first : first + 10, 0, 0])
    bounds = [[4400, 0, 0], [4444, 5, 40]]
    np.testing.assert_array_equal(released.image_cutout(bounds, scale_to_bounds=False), image[999:1009, 0, 0])


def test_resolution_image_is_that_of_the_first_mip(world: World) -> None:
    released, ours = world.both(image_mip=1, segmentation_mip=1)
    assert (tuple(ours.resolution), tuple(released.resolution)) == ((8, 8, 40), (16, 16, 40))
    released, ours = world.both(resolution="segmentation", segmentation_mip=1)
    assert (tuple(ours.resolution), tuple(released.resolution)) == ((16, 16, 40), (32, 32, 40))


def test_every_placeholder_mip_is_recognised(tmp_path: Path) -> None:
    image = coordinate_volume((32, 32, 4), dtype=np.uint8)
    path = write_volume(tmp_path / "image", image, mips=2, placeholder_mip=True)  # the key is placeholder_8_8_40
    ours, released = both(image_source=path, segmentation=False)
    assert (tuple(ours.resolution), tuple(released.resolution)) == ((16, 16, 40), (8, 8, 40))
    assert ours.image_cutout([[0, 0, 0], [8, 8, 2]]).compute().any()
    with pytest.raises(ValueError, match="mip 0 .* placeholder"):
        ours.image_cutout([[0, 0, 0], [8, 8, 2]], mip=0)


# --------------------------------------------------------------------------- ids


def test_ids_beyond_int64_are_an_error(tmp_path: Path) -> None:
    labels = np.full((16, 16, 4), 2**63 - 1, dtype=np.uint64)
    labels[8:] = huge = 2**63 + 5
    path = write_volume(tmp_path / "labels", labels, layer_type="segmentation", chunk_size=(8, 8, 4))
    ours, released = both(segmentation_source=path, imagery=False, resolution="segmentation")
    bounds, half = [[0, 0, 0], [16, 16, 4]], [[0, 0, 0], [8, 16, 4]]

    lazy = ours.segmentation_cutout(bounds)
    assert lazy.dtype == np.int64
    with pytest.raises(OverflowError, match=f"{huge}.*convert_to_int64=False"):
        lazy.compute()
    assert released.segmentation_cutout(bounds).min() == huge - 2**64  # a wrong id, without an error

    np.testing.assert_array_equal(ours.segmentation_cutout(half), labels[:8].astype(np.int64))
    np.testing.assert_array_equal(ours.segmentation_cutout(bounds, convert_to_int64=False), labels)
    assert list(ours.split_segmentation_cutout(bounds)) == [2**63 - 1, huge]
    assert sorted(released.split_segmentation_cutout(bounds)) == [huge - 2**64, 2**63 - 1]


def test_resized_labels_are_exact(world: World) -> None:
    bounds = [[40, 24, 8], [136, 104, 32]]
    exact = world.labels.repeat(2, axis=0).repeat(2, axis=1)
    ours = world.ours.segmentation_cutout(bounds, scale_to_bounds=True).compute()
    released = world.released.segmentation_cutout(bounds, scale_to_bounds=True)
    np.testing.assert_array_equal(ours, exact)
    assert (released[exact != 0] != exact[exact != 0]).mean() > 0.4
    assert len(np.unique(released)) <= len(world.ids) // 2 + 1  # ids that differ by 1 have become equal

    pair = [client.image_and_segmentation_cutout(bounds, 0, 0)[1] for client in (world.ours, world.released)]
    np.testing.assert_array_equal(pair[0], exact)
    assert not np.array_equal(pair[1], exact)


def test_no_root_ids_means_no_objects(world: World, tmp_path: Path) -> None:
    ours = world.ours
    labels = ours.segmentation_cutout(BOUNDS, root_ids=[])
    assert labels.shape == (16, 12, 3)
    assert not labels.compute().any()
    assert dict(ours.split_segmentation_cutout(BOUNDS, root_ids=[])) == {}
    assert not ours.image_and_segmentation_cutout(BOUNDS, root_ids=[])[1].compute().any()
    assert not ours.segmentation_volume(root_ids=[]).data.any().compute()
    ours.save_segmentation_masks(str(tmp_path / "picture"), BOUNDS, root_ids=[])
    assert names(tmp_path) == []
    # The release does the same for flat segmentations.
    assert not world.released.segmentation_cutout(BOUNDS, root_ids=[]).any()


def test_root_ids_are_any_collection_of_integers(world: World) -> None:
    ids = world.ids[:3]
    expected = world.released.segmentation_cutout(BOUNDS, root_ids=ids, mip=0)
    for collection in (tuple(ids), set(ids), np.array(ids, dtype=np.uint64), dict.fromkeys(ids).keys()):
        np.testing.assert_array_equal(world.ours.segmentation_cutout(BOUNDS, collection, mip=0), expected)
    for refused in (tuple(ids), np.array(ids, dtype=np.uint64)):
        with pytest.raises(TypeError):
            world.released.segmentation_cutout(BOUNDS, refused, mip=0)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ([float(2**60 + 256)], TypeError),
        (np.array([1.5e18]), TypeError),
        (["1152921504606847232"], TypeError),
        ([None], TypeError),
        (1152921504606847232, TypeError),
        ([True], ValueError),
        ([-1], ValueError),
        ([2**64], ValueError),
        ("everything", ValueError),
    ],
)
def test_invalid_root_ids_are_errors_at_the_call(world: World, bad: Any, error: type[Exception]) -> None:
    for call in (
        world.ours.segmentation_cutout,
        world.ours.split_segmentation_cutout,
        world.ours.image_and_segmentation_cutout,
    ):
        with pytest.raises(error, match="root_ids"):
            call(BOUNDS, root_ids=bad)
    if isinstance(bad, list) and isinstance(bad[0], float):
        # The release finds nothing and raises nothing.
        assert not world.released.segmentation_cutout(BOUNDS, root_ids=bad).any()


def test_timestamp_of_a_flat_segmentation_changes_nothing(world: World) -> None:
    moment = datetime(2023, 5, 6, tzinfo=UTC)
    plain = world.ours.segmentation_cutout(BOUNDS)
    _, pinned = world.both(timestamp=moment)
    for cut in (world.ours.segmentation_cutout(BOUNDS, timestamp=moment), pinned.segmentation_cutout(BOUNDS)):
        assert cut.name == plain.name  # the same graph, not only equal values
    assert list(pinned.split_segmentation_cutout(BOUNDS)) == list(world.ours.split_segmentation_cutout(BOUNDS))


# --------------------------------------------------------------------------- what calls return and accept


def test_cutouts_are_lazy(tmp_path: Path) -> None:
    image = coordinate_volume((64, 64, 32), dtype=np.uint8)
    path = write_volume(tmp_path / "image", image)
    client = imagery_dask.ImageryClient(image_source=path, missing="error")
    delete_chunks(path, 0, lambda start: True)
    cutout = client.image_cutout([[0, 0, 0], [64, 64, 32]])  # a read would raise here
    assert isinstance(cutout, da.Array)
    assert (cutout.shape, cutout.dtype) == ((64, 64, 32), np.uint8)
    with pytest.raises(MissingChunkError):
        cutout[5, 5, 5].compute()


def test_masks_are_a_lazy_mapping_of_bool(world: World) -> None:
    masks = world.ours.split_segmentation_cutout(BOUNDS, mip=0)
    released = world.released.split_segmentation_cutout(BOUNDS, mip=0)
    assert isinstance(masks, Mapping)
    first = next(iter(released))
    mask = masks[first]  # reads nothing, since the ids are not known yet
    assert "not read yet" in repr(masks)
    assert isinstance(mask, da.Array)
    assert (mask.dtype, released[first].dtype) == (bool, np.int64)
    np.testing.assert_array_equal(mask, released[first])

    absent = 2**60 + 1
    assert not masks[absent].compute().any()  # any id is accepted before the ids are known
    assert list(masks) == list(released)
    assert [type(root_id) for root_id in masks] == [int] * len(masks)
    with pytest.raises(KeyError):
        masks[absent]


def test_layer_that_a_client_lacks_is_an_error(world: World, tmp_path: Path) -> None:
    released, ours = world.both(segmentation=False)
    assert ours.segmentation_cv is released.segmentation_cv is None
    assert released.segmentation_cutout(BOUNDS).shape == (0,)
    with pytest.raises(ValueError, match="without segmentation.*segmentation_source"):
        ours.segmentation_cutout(BOUNDS)
    with pytest.raises(ValueError, match="without segmentation"):
        ours.split_segmentation_cutout(BOUNDS)
    with pytest.raises(ValueError, match="without segmentation"):
        ours.image_and_segmentation_cutout(BOUNDS)
    with pytest.raises(ValueError, match="without segmentation"):
        ours.segmentation_bbox_size_from_dimensions((4, 4))
    with pytest.raises(ValueError, match="without segmentation"):
        ours.save_segmentation_masks(str(tmp_path / "picture"), BOUNDS)

    released, ours = world.both(imagery=False, resolution="segmentation")
    assert ours.image_cv is released.image_cv is None
    assert released.image_cutout(BOUNDS).shape == (0,)
    with pytest.raises(ValueError, match="without imagery.*image_source"):
        ours.image_cutout(BOUNDS)
    with pytest.raises(ValueError, match="without imagery"):
        ours.save_image_and_segmentation_masks(str(tmp_path / "picture"), BOUNDS)
    assert names(tmp_path) == []


def test_one_source_makes_a_client_of_one_layer(world: World) -> None:
    for source, first in (("image_source", 8), ("segmentation_source", 16)):
        path = world.sources[source]
        assert imagery_dask.ImageryClient(**{source: path}).resolution[0] == first
        with pytest.raises(TypeError):
            imageryclient.ImageryClient(**{source: path})
    with pytest.raises(ValueError, match="A client needs at least one layer"):
        imagery_dask.ImageryClient()
    with pytest.raises(ValueError, match="A client needs at least one layer"):
        imagery_dask.ImageryClient(**world.sources, imagery=False, segmentation=False)


def test_no_default_is_mutable(world: World) -> None:
    saves = [client.save_segmentation_masks for client in (world.ours, world.released)]
    assert [inspect.signature(save).parameters["segmentation_colormap"].default for save in saves] == [None, {}]
    public: list[Callable[..., Any]] = [getattr(imagery_dask, name) for name in imagery_dask.__all__]
    public += [getattr(imagery_dask.ImageryClient, name) for name in dir(imagery_dask.ImageryClient) if name[0] != "_"]
    for function in public:
        if callable(function):
            for parameter in inspect.signature(function).parameters.values():
                assert not isinstance(parameter.default, (dict, list, set, np.ndarray)), (function, parameter)


# --------------------------------------------------------------------------- bad input


def test_inverted_bounds_are_an_error(world: World) -> None:
    inverted = [[60, 28, 9], [44, 40, 12]]
    assert world.released.image_cutout(inverted).shape == (16, 12, 3)
    for call in (world.ours.image_cutout, world.ours.segmentation_cutout, world.ours.image_and_segmentation_cutout):
        with pytest.raises(ValueError, match="bounds are inverted or empty along x"):
            call(inverted)


def test_two_corners_and_a_size_are_an_error(world: World) -> None:
    assert world.released.image_cutout(BOUNDS, bbox_size=(4, 4, 2)).shape == (4, 4, 2)  # around the lower corner
    for size in ({"bbox_size": (4, 4, 2)}, {"image_size": (4, 4, 2)}):
        with pytest.raises(ValueError, match="the center, since a size is given"):
            world.ours.image_cutout(BOUNDS, **size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bounds": [[44, 28, np.nan], [60, 40, 12]]}, "finite"),
        ({"bounds": [[44, 28], [60, 40]]}, "2 x 3"),
        ({"bounds": [44, 28, 9]}, "bbox_size or image_size"),
        ({"bounds": [[44, 28, 9], [44, 40, 12]]}, "empty along x"),
        ({"bounds": [[44, 28, 9], [45, 40, 12]], "mip": 1}, "cover no voxel along x"),
        ({"bounds": [44, 28, 9], "bbox_size": (4, 4), "image_size": (4, 4)}, "not both"),
        ({"bounds": [44, 28, 9], "bbox_size": (4, -4)}, "bbox_size must be positive"),
        ({"bounds": [44, 28, 9], "bbox_size": (4, 4, 1, 1)}, "bbox_size must be 2 or 3 numbers"),
        ({"bounds": BOUNDS, "resolution": (8, 8, 0)}, "resolution must be positive"),
        ({"bounds": BOUNDS, "resolution": (8, 8)}, "resolution must be three numbers"),
        ({"bounds": BOUNDS, "mip": 3}, "mip 3 does not exist .* mips 0 to 2"),
        ({"bounds": BOUNDS, "mip": -1}, "mip -1 does not exist"),
    ],
)
def test_bad_requests_are_value_errors_at_the_call(
    world: World, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        world.ours.image_cutout(**arguments)
    with pytest.raises(ValueError, match=message):
        world.ours.save_imagery(str(tmp_path / "picture"), **arguments)
    assert names(tmp_path) == []


def test_bad_clients_are_errors_at_the_call(world: World, tmp_path: Path) -> None:
    image, labels = world.sources["image_source"], world.sources["segmentation_source"]
    with pytest.raises(ValueError, match="not a segmentation"):
        imagery_dask.ImageryClient(segmentation_source=image)
    with pytest.raises(ValueError, match="mip 9 does not exist"):
        imagery_dask.ImageryClient(image_source=image, image_mip=9)
    with pytest.raises(ValueError, match="resolution"):
        imagery_dask.ImageryClient(image_source=image, resolution="finest")
    with pytest.raises(ValueError, match="resolution"):
        imagery_dask.ImageryClient(segmentation_source=labels, resolution="image")
    with pytest.raises(ValueError, match="missing"):
        imagery_dask.ImageryClient(image_source=image, missing="ignore")
    with pytest.raises(SourceNotFoundError, match="no info file"):
        imagery_dask.ImageryClient(image_source=f"file://{tmp_path}/nothing")


def test_unknown_keyword_is_a_type_error(world: World, tmp_path: Path) -> None:
    world.released.save_imagery(str(tmp_path / "released"), FLAT[:1] + [[60, 40, 11]], compres_level=1)
    assert len(names(tmp_path)) == 2
    with pytest.raises(TypeError, match="compres_level"):
        world.ours.save_imagery(str(tmp_path / "ours"), BOUNDS, compres_level=1)
    with pytest.raises(TypeError, match="slice_axs"):
        world.ours.save_segmentation_masks(str(tmp_path / "ours"), BOUNDS, slice_axs=1)
    assert len(names(tmp_path)) == 2


# --------------------------------------------------------------------------- pictures


def test_16_bit_imagery_is_16_bit_png(tmp_path: Path) -> None:
    image = coordinate_volume((32, 24, 3), dtype=np.uint16)
    ours, released = both(image_source=write_volume(tmp_path / "image", image), segmentation=False)
    (tmp_path / "png").mkdir()
    for name, client in (("ours", ours), ("released", released)):
        client.save_imagery(str(tmp_path / "png" / name), [[0, 0, 0], [32, 24, 3]])
    for z in range(3):
        mode, pixels = picture(tmp_path / "png" / f"ours_slice_{z}_imagery.png")
        assert mode.startswith("I")
        np.testing.assert_array_equal(pixels, image[:, :, z].T)
        mode, pixels = picture(tmp_path / "png" / f"released_slice_{z}_imagery.png")
        assert mode == "RGB"
        np.testing.assert_array_equal(pixels[:, :, 0], image[:, :, z].T % 256)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint32, np.uint64])
def test_imagery_that_png_cannot_hold_is_an_error(world: World, tmp_path: Path, dtype: Any) -> None:
    pixels = np.full((4, 4, 2), 300, dtype=dtype)
    with pytest.raises(TypeError, match="8 and 16 bit"):
        world.ours.save_imagery(str(tmp_path / "ours"), precomputed_image=pixels)
    assert names(tmp_path) == []


def test_flat_cutouts_can_be_saved(world: World, tmp_path: Path) -> None:
    prefix = str(tmp_path / "picture")
    with pytest.raises(IndexError):
        world.released.save_imagery(prefix, FLAT)
    world.ours.save_imagery(prefix, FLAT)
    world.ours.save_segmentation_masks(prefix, FLAT, mip=0)
    whole = world.released.image_cutout(FLAT)
    np.testing.assert_array_equal(picture(tmp_path / "picture_imagery.png")[1][:, :, 1], whole.T)
    masks = world.released.split_segmentation_cutout(FLAT, mip=0)
    assert names(tmp_path) == sorted(["picture_imagery.png", *(f"picture_root_id_{root}.png" for root in masks)])
    for root, mask in masks.items():
        np.testing.assert_array_equal(picture(tmp_path / f"picture_root_id_{root}.png")[1][:, :, 3], 255 * mask.T)
    # A cutout one voxel wide along x, sliced along x, gives a picture of y and z.
    world.ours.save_imagery(str(tmp_path / "side"), [[44, 28, 9], [45, 40, 12]], slice_axis=0)
    assert picture(tmp_path / "side_imagery.png")[1].shape == (3, 12, 3)


@pytest.mark.parametrize("slices", [1, 2])
def test_color_imagery_is_saved_in_color(tmp_path: Path, slices: int) -> None:
    image = np.stack([coordinate_volume((32, 24, 3), (channel, 0, 0), np.uint8) for channel in range(3)], axis=3)
    client = imagery_dask.ImageryClient(image_source=write_volume(tmp_path / "image", image))
    (tmp_path / "png").mkdir()
    client.save_imagery(str(tmp_path / "png" / "picture"), [[0, 0, 0], [32, 24, slices]])
    parts = [f"slice_{z}_" for z in range(slices)] if slices > 1 else [""]
    assert names(tmp_path / "png") == [f"picture_{part}imagery.png" for part in parts]
    for z, part in enumerate(parts):
        mode, pixels = picture(tmp_path / "png" / f"picture_{part}imagery.png")
        assert mode == "RGB"
        np.testing.assert_array_equal(pixels, image[:, :, z].swapaxes(0, 1))


def test_bad_slice_axis_and_colors_are_errors(world: World, tmp_path: Path) -> None:
    prefix = str(tmp_path / "picture")
    for axis in (-1, 3, True):
        with pytest.raises(ValueError, match="slice_axis"):
            world.ours.save_imagery(prefix, BOUNDS, slice_axis=axis)
        with pytest.raises(ValueError, match="slice_axis"):
            world.ours.save_segmentation_masks(prefix, BOUNDS, slice_axis=axis)
    for color in ((256, 0, 0), (1, 2), (-1, 0, 0)):
        with pytest.raises(ValueError, match="color"):
            world.ours.save_segmentation_masks(prefix, BOUNDS, segmentation_colormap={world.ids[0]: color})
        with pytest.raises(ValueError, match="color"):
            world.ours.save_image_and_segmentation_masks(prefix, BOUNDS, segmentation_colormap={world.ids[0]: color})
    assert names(tmp_path) == []


def test_region_without_objects_keeps_its_imagery(world: World, tmp_path: Path) -> None:
    # Imagery of 32 nm is resized to the segmentation's 16 nm; no listed object is in the box.
    options = {"image_mip": 2, "segmentation_mip": 0, "root_ids": [2**60 + 1], "split_segmentations": True}
    image, masks = world.ours.image_and_segmentation_cutout(BOUNDS, **options)
    assert (image.shape, len(masks)) == ((8, 6, 3), 0)
    released, none = world.released.image_and_segmentation_cutout(BOUNDS, **options)
    assert (released.shape, none) == ((1, 1, 1), {})


# --------------------------------------------------------------------------- reading


def test_refused_access_is_an_error(tmp_path: Path, http_server_factory: Callable[..., FileServer]) -> None:
    image = np.full((32, 32, 4), 7, dtype=np.uint8)
    write_volume(tmp_path / "image", image)
    server = http_server_factory(tmp_path, faults=lambda path, n: Fault(403) if "8_8_40" in path else None)
    ours, released = both(image_source=f"precomputed://{server.url}/image", segmentation=False)
    bounds = [[0, 0, 0], [32, 32, 4]]
    with pytest.raises(AccessRefusedError, match="image"):
        ours.image_cutout(bounds).compute()
    assert not released.image_cutout(bounds).any()  # 0 in the release


def test_bounds_outside_the_volume_are_an_error(world: World) -> None:
    outside, client = [[4000, 4000, 9], [4016, 4012, 12]], imagery_dask.ImageryClient(**world.sources)
    assert not world.released.image_cutout(outside).any()
    with pytest.raises(ValueError, match="lie outside the image"):
        client.image_cutout(outside)
    assert not world.ours.image_cutout(outside).compute().any()  # outside="fill"


def test_missing_chunks_can_be_an_error(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.sources["image_source"].partition("file://")[2], tmp_path / "image")
    path = f"precomputed://file://{tmp_path / 'image'}"
    delete_chunks(path, 0, lambda start: True)
    ours, released = both(image_source=path, segmentation=False)
    assert not ours.image_cutout(BOUNDS).compute().any()
    assert not released.image_cutout(BOUNDS).any()
    strict = imagery_dask.ImageryClient(image_source=path, missing="error").image_cutout(BOUNDS)
    with pytest.raises(MissingChunkError, match="missing='fill'"):
        strict.compute()


def test_buckets_are_read_natively_with_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from imagery_dask.sources.requests.transport import reachable_path

    google, amazon = "precomputed://gs://bucket/layer", "precomputed://s3://bucket/layer"
    assert reachable_path(google) == "precomputed://https://storage.googleapis.com/bucket/layer"
    assert reachable_path(amazon) == "precomputed://https://s3.amazonaws.com/bucket/layer"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "key.json")
    assert reachable_path(google) == google
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    assert reachable_path(amazon) == amazon
    for path in ("precomputed://https://host/layer", "precomputed://file:///layer"):
        assert reachable_path(path) == path


def both(**arguments: Any) -> tuple[imagery_dask.ImageryClient, imageryclient.ImageryClient]:
    return imagery_dask.ImageryClient(**arguments), imageryclient.ImageryClient(**arguments)
