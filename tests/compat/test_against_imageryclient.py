"""Random requests give the results of the released imageryclient, except for the differences in docs/differences.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import dask.array as da
import imageryclient.imagery
import numpy as np
import pytest
from cloudvolume.exceptions import SubvoxelVolumeError
from compat.worlds import World, make_world
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import imagery_dask

Request = dict[str, Any]

#: Resolutions of bounds: those of the mips, finer, coarser, and some of which no voxel size is a multiple. With others,
#: such as 9.7, the release loses voxels at edges.
RESOLUTIONS = [
    None, (8, 8, 40), [16, 16, 40], (32, 32, 40), (4, 4, 20), (8.0, 8.0, 80.0), (4.3, 9.5, 40), (9.5, 4.3, 33.3),
    np.array([5, 12, 45]),
]  # fmt: skip


@pytest.fixture(scope="module", params=[(43, 25, 7), (-50, -33, -9)], ids=["positive offset", "negative offset"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), request.param)


# --------------------------------------------------------------------------- requests


@st.composite
def boxes(draw: st.DrawFn, resolution: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the lower corner and the size of a box inside, across or outside the image, in `resolution`.

    The corner is relative to the image's first voxel; `placed` adds the voxel offset.
    """
    unit_nm = np.array([8, 8, 40]) if resolution is None else np.asarray(resolution, dtype=float)
    lower_nm = [draw(st.integers(-20, 100)) * 8, draw(st.integers(-20, 84)) * 8, draw(st.integers(-4, 25)) * 40]
    size_nm = [draw(st.integers(1, 40)) * 8, draw(st.integers(1, 40)) * 8, draw(st.integers(1, 8)) * 40]
    lower = np.floor(np.array(lower_nm) / unit_nm).astype(np.int64)
    size = np.maximum(1, np.round(np.array(size_nm) / unit_nm)).astype(np.int64)
    return lower, size


@st.composite
def requests(draw: st.DrawFn, mips: int, sizes: bool = True) -> tuple[Request, Request]:
    """Draw a request without rescaling: a description of its bounds, and its other arguments."""
    resolution = draw(st.sampled_from(RESOLUTIONS))
    lower, size = draw(boxes(resolution))
    mip = draw(st.sampled_from([None, *range(mips)]))
    scale = draw(st.sampled_from([None, False])) if mip is not None else False
    other = {"resolution": resolution, "mip": mip, "scale_to_bounds": scale}
    kind = draw(st.sampled_from(["corners", "quarters", "center", "flat center"]))
    # CloudVolume converts fractional corners to float32, which holds quarters exactly.
    quarter = draw(st.sampled_from([0, 0.25, 0.5, 0.75]))
    if kind in ("corners", "quarters"):
        fraction = quarter if kind == "quarters" else 0
        return {"lower": lower + fraction, "upper": lower + size + fraction}, other
    chosen = size.tolist() if kind == "center" else size[:2].tolist()
    if quarter and kind == "center":
        chosen[0] += quarter
    return {"center": lower + size // 2}, other | {"bbox_size": draw(st.sampled_from([tuple, list, np.array]))(chosen)}


def placed(world: World, how: Request, resolution: Any) -> Any:
    """Return the bounds (or center) of a drawn request, with the image's offset."""
    unit_nm = np.array([8.0, 8.0, 40.0]) if resolution is None else np.asarray(resolution, dtype=float)
    origin = np.floor(np.array(world.start) * [8, 8, 40] / unit_nm).astype(np.int64)
    if "center" in how:
        return (how["center"] + origin).tolist()
    return np.array([how["lower"] + origin, how["upper"] + origin]).tolist()


# --------------------------------------------------------------------------- comparison


def released_or_error(call: Callable[[], Any], ours: Callable[[], Any]) -> Any:
    """Return the result of the release, or None after asserting that our call raises if the release raises."""
    try:
        return call()
    except SubvoxelVolumeError:
        with pytest.raises(ValueError, match="cover no voxel|inverted or empty"):
            ours()
        return None


def assert_same(ours: da.Array, released: NDArray[Any]) -> None:
    assert isinstance(ours, da.Array)
    computed = ours.compute()
    assert ours.shape == computed.shape == released.shape
    assert ours.dtype == computed.dtype == released.dtype
    np.testing.assert_array_equal(computed, released)


def assert_same_masks(ours: Mapping[int, da.Array], released: Mapping[int, NDArray[Any]]) -> None:
    assert list(ours) == list(released)
    for root_id, mask in ours.items():
        assert mask.dtype == bool
        assert mask.shape == released[root_id].shape
        np.testing.assert_array_equal(mask.compute(), released[root_id])


# --------------------------------------------------------------------------- cutouts


@settings(max_examples=60)
@given(request=requests(mips=3))
def test_image_cutouts_are_equal(world: World, request: tuple[Request, Request]) -> None:
    how, arguments = request
    bounds = placed(world, how, arguments["resolution"])

    def ours() -> da.Array:
        return world.ours.image_cutout(bounds, **arguments)

    released = released_or_error(lambda: world.released.image_cutout(bounds, **arguments), ours)
    if released is not None:
        assert_same(ours(), released)


@st.composite
def root_choices(draw: st.DrawFn) -> Any:
    """Draw None, 'all', or positions in the list of ids, of which the last is an absent id."""
    kind = draw(st.sampled_from(["all", None, "list"]))
    return draw(st.lists(st.integers(0, 12), max_size=6)) if kind == "list" else kind


def root_ids(world: World, choice: Any) -> Any:
    ids = [*world.ids, 2**60 + 1]
    return [ids[index] for index in choice] if isinstance(choice, list) else choice


@settings(max_examples=60)
@given(request=requests(mips=2), choice=root_choices(), convert=st.booleans())
def test_segmentation_cutouts_are_equal(
    world: World, request: tuple[Request, Request], choice: Any, convert: bool
) -> None:
    how, arguments = request
    bounds = placed(world, how, arguments["resolution"])
    arguments |= {"root_ids": root_ids(world, choice), "convert_to_int64": convert}

    def ours() -> da.Array:
        return world.ours.segmentation_cutout(bounds, **arguments)

    released = released_or_error(lambda: world.released.segmentation_cutout(bounds, **arguments), ours)
    if released is not None:
        assert_same(ours(), released)


@settings(max_examples=20)
@given(request=requests(mips=2), choice=root_choices(), include_null_root=st.booleans())
def test_masks_are_equal(world: World, request: tuple[Request, Request], choice: Any, include_null_root: bool) -> None:
    how, arguments = request
    bounds = placed(world, how, arguments["resolution"])
    arguments |= {"root_ids": root_ids(world, choice), "include_null_root": include_null_root}

    def ours() -> Mapping[int, da.Array]:
        return world.ours.split_segmentation_cutout(bounds, **arguments)

    released = released_or_error(lambda: world.released.split_segmentation_cutout(bounds, **arguments), ours)
    if released is not None:
        assert_same_masks(ours(), released)


@settings(max_examples=20)
@given(
    mip=st.integers(0, 2),
    lower=st.tuples(st.integers(-10, 80), st.integers(-10, 60), st.integers(-3, 22)),
    size=st.tuples(st.integers(2, 30), st.integers(2, 30), st.integers(1, 6)),
)
def test_images_scaled_to_their_own_resolution_are_equal(
    world: World, mip: int, lower: tuple[int, ...], size: tuple[int, ...]
) -> None:
    start = np.array(world.start) // [2**mip, 2**mip, 1] + lower
    arguments = {"mip": mip, "resolution": (8 * 2**mip, 8 * 2**mip, 40), "scale_to_bounds": True}
    bounds = [start.tolist(), (start + size).tolist()]
    assert_same(world.ours.image_cutout(bounds, **arguments), world.released.image_cutout(bounds, **arguments))


@settings(max_examples=30)
@given(
    mip=st.integers(0, 1),
    resolution=st.sampled_from(RESOLUTIONS),
    center=st.tuples(st.integers(-5, 100), st.integers(-5, 80), st.integers(-2, 24)),
    size=st.tuples(st.integers(3, 30), st.integers(3, 30), st.integers(3, 6)),
    flat=st.booleans(),
    layer=st.sampled_from(["image", "segmentation"]),
)
def test_cutouts_of_an_image_size_have_equal_pixels(
    world: World,
    mip: int,
    resolution: Any,
    center: tuple[int, ...],
    size: tuple[int, ...],
    flat: bool,
    layer: str,
) -> None:
    if flat:  # one voxel of `resolution` along z; it is one slice only if `resolution` has the image's z
        resolution, size = (None if resolution is None else [*resolution[:2], 40]), size[:2]
    unit_nm = np.array([8, 8, 40]) if resolution is None else np.asarray(resolution)
    at = np.floor((np.array(world.start) + center) * [8, 8, 40] / unit_nm).astype(int).tolist()
    cutouts = [getattr(client, f"{layer}_cutout") for client in (world.released, world.ours)]
    arguments = {"image_size": size, "mip": mip, "resolution": resolution}
    ours = cutouts[1](at, **arguments).compute()
    assert ours.shape == size
    try:
        released = cutouts[0](at, **arguments)
    except SubvoxelVolumeError:  # the release loses pixels of small cutouts; see docs/differences.md
        return
    if released.ndim != ours.ndim:
        return
    # The release rounds both corners, so that its size may differ. Pixels that both have are equal.
    common = tuple(slice(min(a, b)) for a, b in zip(ours.shape, released.shape, strict=True))
    np.testing.assert_array_equal(ours[common], released[common])
    voxels = np.array([8, 8, 40]) * ([2, 2, 1] if layer == "segmentation" else 1) * [2**mip, 2**mip, 1]
    whole = all(voxel % step == 0 for voxel, step in zip(voxels[: len(size)], unit_nm[: len(size)], strict=True))
    steps = voxels[: len(size)] / unit_nm[: len(size)]
    # It rounds towards zero, so that corners below zero are one voxel off.
    if whole and min(world.start) > 0 and all(at[: len(size)] >= steps * size / 2):
        assert released.shape == ours.shape


@settings(max_examples=20)
@given(request=requests(mips=1), mips=st.tuples(st.integers(0, 2), st.integers(0, 1)), split=st.booleans())
def test_pairs_as_stored_are_equal(
    world: World, request: tuple[Request, Request], mips: tuple[int, int], split: bool
) -> None:
    how, arguments = request
    bounds = placed(world, how, arguments["resolution"])
    arguments |= {"image_mip": mips[0], "segmentation_mip": mips[1], "resize": False, "split_segmentations": split}
    del arguments["mip"]

    def ours() -> tuple[da.Array, Any]:
        return world.ours.image_and_segmentation_cutout(bounds, **arguments)

    released = released_or_error(lambda: world.released.image_and_segmentation_cutout(bounds, **arguments), ours)
    if released is not None:
        image, labels = ours()
        assert_same(image, released[0])
        (assert_same_masks if split else assert_same)(labels, released[1])


def multiples(step: int, least: int, most: int) -> st.SearchStrategy[int]:
    """Draw multiples of ``step``, from ``least`` to ``most`` times."""
    return st.integers(least, most).map(lambda n: n * step)


@settings(max_examples=20)
@given(
    mips=st.sampled_from([(1, 0), (2, 1), (0, 0), (2, 0), (1, 1)]),
    lower=st.tuples(multiples(4, -3, 22), multiples(4, -3, 18), st.integers(-3, 22)),
    size=st.tuples(multiples(4, 2, 9), multiples(4, 2, 9), st.integers(1, 4)),
    null_root=st.booleans(),
)
def test_resized_pairs_are_equal(
    world: World, mips: tuple[int, int], lower: tuple[int, ...], size: tuple[int, ...], null_root: bool
) -> None:
    # For whole coarse voxels and factors of 1 or 2, ndimage.zoom selects the voxel that contains the centre, as we do.
    start = np.array(world.start) // [4, 4, 1] * [4, 4, 1] + lower
    bounds = [start.tolist(), (start + size).tolist()]
    # ndimage.zoom changes ids when it enlarges labels, but does not change masks. When it enlarges imagery to the shape
    # of an empty set of masks, it destroys the imagery. Both are in docs/differences.md.
    split = 2 ** (mips[0] + 3) < 2 ** (mips[1] + 4)
    arguments = {
        "image_mip": mips[0],
        "segmentation_mip": mips[1],
        "split_segmentations": split,
        "include_null_root": null_root,
    }
    released = world.released.image_and_segmentation_cutout(bounds, **arguments)
    ours = world.ours.image_and_segmentation_cutout(bounds, **arguments)
    assert_same(ours[0], released[0])
    (assert_same_masks if split else assert_same)(ours[1], released[1])


# --------------------------------------------------------------------------- clients and helpers


@pytest.mark.parametrize("resolution", [None, "image", "segmentation", (4, 4, 40), [4.3, 9.7, 40.0]])
@pytest.mark.parametrize("mips", [(None, None), (0, 1)])
def test_clients_made_from_paths_are_equal(world: World, resolution: Any, mips: tuple[int | None, int | None]) -> None:
    if resolution == "segmentation" and mips[1]:
        resolution = None  # 'segmentation' means another mip in the release; see docs/differences.md
    released, ours = world.both(resolution=resolution, image_mip=mips[0], segmentation_mip=mips[1])
    assert_same_client(world, released, ours)


@pytest.mark.parametrize("resolution", [None, (16, 16, 40)])
def test_clients_made_from_a_caveclient_are_equal(world: World, resolution: Any) -> None:
    # A stand-in that lists flat layers; test_dynamic_against_imageryclient.py uses a CAVEclient and a server.
    cave = SimpleNamespace(
        datastack_name="flat",
        server_address="http://127.0.0.1",
        timestamp=None,
        version=None,
        auth=SimpleNamespace(token=None),
        info=SimpleNamespace(
            image_source=lambda: world.sources["image_source"],
            segmentation_source=lambda: world.sources["segmentation_source"],
            viewer_resolution=lambda: np.array([4, 4, 40]),
        ),
    )
    released = imageryclient.ImageryClient(cave, resolution)
    assert_same_client(world, released, imagery_dask.ImageryClient(cave, resolution))


def assert_same_client(world: World, released: Any, ours: imagery_dask.ImageryClient) -> None:
    np.testing.assert_array_equal(ours.resolution, released.resolution)
    assert (ours.image_source, ours.segmentation_source) == (released.image_source, released.segmentation_source)
    for layer in ("image_cv", "segmentation_cv"):
        our_volume, released_volume = getattr(ours, layer), getattr(released, layer)
        assert our_volume.meta.info == released_volume.meta.info
        assert (
            (our_volume.bounded, our_volume.fill_missing)
            == (released_volume.bounded, released_volume.fill_missing)
            == (False, True)
        )
    center = (np.array(world.start) + 20) * [8, 8, 40] // released.resolution
    at = center.astype(int).tolist()
    assert_same(
        ours.image_cutout(at, (24, 20, 3), scale_to_bounds=False),
        released.image_cutout(at, (24, 20, 3), scale_to_bounds=False),
    )
    assert_same(
        ours.segmentation_cutout(at, "all", (24, 20, 3), scale_to_bounds=False),
        released.segmentation_cutout(at, "all", (24, 20, 3), scale_to_bounds=False),
    )


@given(
    size=st.one_of(
        st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
        st.tuples(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 500)),
    ),
    mip=st.sampled_from([None, 0, 1]),
    resolution=st.sampled_from(RESOLUTIONS),
)
def test_bbox_sizes_from_dimensions_are_equal(
    world: World, size: tuple[int, ...], mip: int | None, resolution: Any
) -> None:
    for name in ("image_bbox_size_from_dimensions", "segmentation_bbox_size_from_dimensions"):
        ours, released = getattr(world.ours, name), getattr(world.released, name)
        assert ours(size, mip, resolution) == tuple(released(size, mip, resolution))


@given(
    center=st.one_of(
        st.tuples(*[st.integers(-(2**40), 2**40)] * 3), st.tuples(*[st.floats(-1e6, 1e6, allow_nan=False)] * 3)
    ),
    size=st.tuples(*[st.integers(1, 10**6)] * 3),
)
def test_bounds_from_a_center_are_equal(center: tuple[float, ...], size: tuple[int, int, int]) -> None:
    ours, released = (f(center, *size) for f in (imagery_dask.bounds_from_center, imageryclient.bounds_from_center))
    assert ours.dtype == released.dtype
    np.testing.assert_array_equal(ours, released)
    np.testing.assert_array_equal(imagery_dask.bounds_from_center(center), imageryclient.bounds_from_center(center))


# --------------------------------------------------------------------------- pictures


@st.composite
def volumes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Draw a box, relative to the image's first voxel, that is wider than one voxel along each axis of every mip."""
    lower = [draw(st.integers(-8, 80)), draw(st.integers(-8, 64)), draw(st.integers(-2, 20))]
    # Corners are rounded towards zero, so that 11 voxels around it may be one voxel at mip 2.
    return lower, [draw(st.integers(12, 24)), draw(st.integers(12, 24)), draw(st.integers(2, 4))]


def bounds_of(world: World, volume: tuple[list[int], list[int]]) -> Any:
    lower = np.array(world.start) + volume[0]
    return [lower.tolist(), (lower + volume[1]).tolist()]


@contextmanager
def two_folders() -> Iterator[tuple[Path, Path]]:
    """Make one folder for the release and one for us; hypothesis runs a test many times within one `tmp_path`."""
    with TemporaryDirectory() as root:
        for name in ("released", "ours"):
            (Path(root) / name).mkdir()
        yield Path(root) / "released", Path(root) / "ours"


def pictures(folder: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    """Return mode and pixels of every file in a folder, by name."""
    by_name = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            by_name[path.name] = (picture.mode, np.array(picture))
    return by_name


def assert_same_pictures(released: Path, ours: Path, least: int = 1) -> None:
    expected, got = pictures(released), pictures(ours)
    assert list(got) == list(expected)
    assert len(got) >= least
    for name, (mode, pixels) in expected.items():
        assert got[name][0] == mode, name
        np.testing.assert_array_equal(got[name][1], pixels, err_msg=name)


def save_both(world: World, save: Callable[[Any, str], None]) -> None:
    """Call ``save`` for both clients and compare the files."""
    with two_folders() as (released, ours):
        save(world.released, str(released / "picture"))
        save(world.ours, str(ours / "picture"))
        assert_same_pictures(released, ours, least=0)


@settings(max_examples=20)
@given(volume=volumes(), slice_axis=st.integers(0, 2), mip=st.integers(0, 2))
def test_saved_imagery_is_equal(world: World, volume: tuple[list[int], list[int]], slice_axis: int, mip: int) -> None:
    bounds = bounds_of(world, volume)

    def save(client: Any, prefix: str) -> None:
        client.save_imagery(prefix, bounds, mip, slice_axis=slice_axis, compress_level=1)

    save_both(world, save)


@st.composite
def colors(draw: st.DrawFn) -> dict[int, list[int]]:
    """Draw RGB or RGBA colors by position in the list of ids."""
    channel = st.integers(0, 255)
    color = st.one_of(st.lists(channel, min_size=3, max_size=3), st.lists(channel, min_size=4, max_size=4))
    return draw(st.dictionaries(st.integers(0, 12), color, max_size=6))


@settings(max_examples=15)
@given(
    volume=volumes(),
    slice_axis=st.integers(0, 2),
    mip=st.integers(0, 1),
    choice=root_choices(),
    null_root=st.booleans(),
    palette=colors(),
)
def test_saved_masks_are_equal(
    world: World,
    volume: tuple[list[int], list[int]],
    slice_axis: int,
    mip: int,
    choice: Any,
    null_root: bool,
    palette: dict[int, list[int]],
) -> None:
    bounds = bounds_of(world, volume)
    colormap = {root_ids(world, [number])[0]: color for number, color in palette.items()}
    if null_root:
        colormap[0] = [9, 8, 7]

    def save(client: Any, prefix: str) -> None:
        client.save_segmentation_masks(
            prefix, bounds, mip, root_ids(world, choice), None, colormap, slice_axis, null_root
        )

    save_both(world, save)


@settings(max_examples=10)
@given(volume=volumes(), slice_axis=st.integers(0, 2), palette=colors(), null_root=st.booleans())
def test_saved_imagery_and_masks_are_equal(
    world: World,
    volume: tuple[list[int], list[int]],
    slice_axis: int,
    palette: dict[int, list[int]],
    null_root: bool,
) -> None:
    bounds = bounds_of(world, volume)
    colormap = {root_ids(world, [number])[0]: color for number, color in palette.items()}

    def save(client: Any, prefix: str) -> None:
        client.save_image_and_segmentation_masks(
            prefix,
            bounds,
            image_mip=1,  # 16 nm, like the segmentation
            include_null_root=null_root,
            segmentation_colormap=colormap,
            slice_axis=slice_axis,
            optimize=True,
        )

    save_both(world, save)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("lazy", [False, True], ids=["numpy", "dask"])
def test_saved_computed_data_are_equal(world: World, slice_axis: int, lazy: bool) -> None:
    image = world.image[:9, :7, :3]
    labels = world.labels[:9, :7, :3]
    masks = {int(root): (labels == root).astype(int) for root in np.unique(labels)}
    colormap = {root: (10, 20, 30, 40) for root in list(masks)[:1]}

    def save(client: Any, prefix: str) -> None:
        ready = da.from_array if lazy and isinstance(client, imagery_dask.ImageryClient) else np.asarray
        own_masks = {root: ready(mask) for root, mask in masks.items()}
        client.save_imagery(f"{prefix}-a", precomputed_image=ready(image), slice_axis=slice_axis)
        client.save_segmentation_masks(
            f"{prefix}-b", precomputed_masks=own_masks, slice_axis=slice_axis, segmentation_colormap=colormap
        )
        client.save_image_and_segmentation_masks(
            f"{prefix}-c", precomputed_data=(ready(image), own_masks), slice_axis=slice_axis
        )

    save_both(world, save)


@pytest.mark.parametrize(("image_type", "color"), [("imagery", None), ("mask", None), ("mask", [1, 2, 3])])
@pytest.mark.parametrize("slices", [1, 3])
def test_saved_slices_are_equal(image_type: str, color: Any, slices: int) -> None:
    pixels = np.random.default_rng(5).integers(0, 256 if image_type == "imagery" else 2, (6, 5, slices), np.uint8)
    arguments = ("suffix", pixels, 2, image_type, False, color)
    with two_folders() as (released, ours):
        imageryclient.imagery.save_image_slices(str(released / "picture"), *arguments)
        imagery_dask.save_image_slices(str(ours / "picture"), *arguments)
        assert_same_pictures(released, ours, least=slices)


def test_verbose_output_is_equal(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bounds, prefix = bounds_of(world, ([10, 10, 4], [12, 10, 2])), str(tmp_path / "picture")
    printed = []
    for client in (world.released, world.ours):
        client.save_imagery(prefix, bounds, mip=0, verbose=True)
        client.save_segmentation_masks(prefix, bounds, mip=0, verbose=True)
        client.save_image_and_segmentation_masks(prefix, bounds, image_mip=1, verbose=True)
        client.save_imagery(prefix, bounds, mip=0)
        # Sorted, because we write all masks of a slice before the next slice, and the release all slices of a mask.
        printed.append(sorted(capsys.readouterr().out.splitlines()))
    assert printed[0] == printed[1]
    assert len(printed[0]) > 4
