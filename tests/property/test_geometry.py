"""Requests select the voxels of CloudVolume's ``download(bbox, mip=..., coord_resolution=...)``, the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume import Bbox, CloudVolume
from cloudvolume.exceptions import SubvoxelVolumeError
from hypothesis import assume, given
from hypothesis import strategies as st

from imagery_dask import ImageryClient
from imagery_dask.geometry.grid import voxel_of, voxels_along

SHAPE = (44, 36, 22)
CHUNK = (16, 16, 8)
MIPS = 3
# First voxel and resolution of volumes: positive, zero and negative offsets, whole and fractional resolutions.
PLACES = {
    "positive": ((103, 61, 7), (8, 8, 40)),
    "zero": ((0, 0, 0), (8, 8, 40)),
    "negative": ((-57, -33, -9), (8, 8, 40)),
    "across zero, not whole": ((-21, 5, -11), (4.3, 4.3, 9.7)),
}
# Resolutions of bounds; None is that of the mip.
RESOLUTIONS = [
    None, (8, 8, 40), (16, 16, 40), (4, 4, 40), (32, 32, 45), (1, 1, 1), (4.3, 4.3, 9.7), (8.6, 8.6, 9.7),
    (5.5, 7, 33.3), (0.1, 0.3, 0.7),
]  # fmt: skip


@dataclass(frozen=True)
class Volume:
    """A volume that is both the image and the segmentation of a client."""

    path: str
    client: ImageryClient
    oracles: tuple[CloudVolume, ...]

    def expected(self, lower: Any, upper: Any, mip: int, resolution: Any) -> np.ndarray:
        """Return the voxels that CloudVolume reads, without axes of length 1."""
        is_float = any(isinstance(value, float) for value in (*lower, *upper))
        # By default Bbox uses int32 and float32, which cannot hold the coordinates.
        box = Bbox(lower, upper, dtype=np.float64 if is_float else np.int64)
        voxels = self.oracles[mip].download(box, mip=mip, coord_resolution=resolution)
        return np.asarray(voxels)[..., 0].squeeze()


def coordinate_ids(start: Any, shape: Any, mip: int) -> np.ndarray:
    """Return values above 2**60 that differ for every voxel and every mip."""
    x, y, z = np.ix_(*(np.arange(a, a + n, dtype=np.int64) + 2**12 for a, n in zip(start, shape, strict=True)))
    return np.asfortranarray(2**60 + (mip << 48) + (z << 32) + (y << 16) + x).astype(np.uint64)


def write(folder: Path, start: Any, resolution: Any) -> Volume:
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", list(resolution), list(start), list(SHAPE), chunk_size=list(CHUNK)
    )
    path = f"precomputed://file://{folder}"
    volume = CloudVolume(path, info=info, progress=False)
    for mip in range(1, MIPS):
        volume.add_scale((2**mip, 2**mip, 1))
    volume.commit_info()
    volume.commit_provenance()
    oracles = []
    for mip in range(MIPS):
        oracle = CloudVolume(path, mip=mip, bounded=False, fill_missing=True, progress=False)
        oracle[oracle.bounds.to_slices()] = coordinate_ids(oracle.voxel_offset, oracle.volume_size, mip)
        oracles.append(oracle)
    # The image layer reads the same files, because an ImageryClient accepts any layer as imagery.
    return Volume(path, ImageryClient(image_source=path, segmentation_source=path, outside="fill"), tuple(oracles))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Volume]:
    root = tmp_path_factory.mktemp("geometry")
    return {name: write(root / str(i), *place) for i, (name, place) in enumerate(PLACES.items())}


@st.composite
def requests(draw: st.DrawFn, whole: bool = True) -> tuple[str, Any, Any, int, Any]:
    """Draw a volume, two corners near it, a mip, and the resolution of the corners."""
    name = draw(st.sampled_from(sorted(PLACES)))
    mip = draw(st.integers(0, MIPS - 1))
    resolution = draw(st.sampled_from(RESOLUTIONS))
    start, own = PLACES[name]
    if resolution is None:
        resolution = tuple(nm * (2**mip if axis < 2 else 1) for axis, nm in enumerate(own))
    lower, upper = [], []
    for axis in range(3):
        # Corners are at most half a volume outside of it, in voxels of the resolution.
        unit = own[axis] / resolution[axis]
        first = int((start[axis] - SHAPE[axis] // 2) * unit)
        last = int((start[axis] + SHAPE[axis] * 3 // 2) * unit)
        a = draw(st.integers(first, last - 1))
        size = draw(st.integers(1, max(1, int(40 * unit))))
        # Not within 10**-6 of a whole number, which counts as that number.
        fractions = st.integers(-990, 990).map(lambda thousandths: thousandths / 1000)
        lower.append(a if whole else a + draw(fractions))
        upper.append(a + size if whole else a + size + draw(fractions))
    assume(all(a < b for a, b in zip(lower, upper, strict=True)))
    return name, lower, upper, mip, resolution


def compare(volume: Volume, lower: Any, upper: Any, mip: int, resolution: Any) -> np.ndarray | None:
    """Compare both cutouts with the oracle and return its voxels, or None if both refuse the box."""
    bounds = [lower, upper]
    try:
        expected = volume.expected(lower, upper, mip, resolution)
    except SubvoxelVolumeError:
        with pytest.raises(ValueError, match="cover no voxel along"):
            volume.client.image_cutout(bounds, mip=mip, resolution=resolution)
        with pytest.raises(ValueError, match="cover no voxel along"):
            volume.client.segmentation_cutout(bounds, mip=mip, resolution=resolution)
        return None
    image = volume.client.image_cutout(bounds, mip=mip, resolution=resolution)
    labels = volume.client.segmentation_cutout(bounds, mip=mip, resolution=resolution, convert_to_int64=False)
    assert image.shape == labels.shape == expected.shape
    np.testing.assert_array_equal(image.compute(scheduler="synchronous"), expected)
    np.testing.assert_array_equal(labels.compute(scheduler="synchronous"), expected)
    return expected


@given(request=requests())
def test_cutouts_equal_those_of_cloudvolume(volumes: dict[str, Volume], request: Any) -> None:
    name, *arguments = request
    compare(volumes[name], *arguments)


@given(request=requests(whole=False))
def test_fractional_bounds_are_rounded_as_by_cloudvolume(volumes: dict[str, Volume], request: Any) -> None:
    name, *arguments = request
    compare(volumes[name], *arguments)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("mip", range(MIPS))
def test_the_oracle_reads_what_was_written(volumes: dict[str, Volume], name: str, mip: int) -> None:
    volume = volumes[name]
    oracle = volume.oracles[mip]
    lower, upper = oracle.bounds.minpt.tolist(), oracle.bounds.maxpt.tolist()
    expected = compare(volume, lower, upper, mip, tuple(oracle.resolution.tolist()))
    np.testing.assert_array_equal(expected, coordinate_ids(lower, oracle.volume_size, mip))


@pytest.mark.parametrize("name", PLACES)
def test_volumes_open_at_their_offset(volumes: dict[str, Volume], name: str) -> None:
    volume = volumes[name]
    whole = volume.client.segmentation_volume(mip=1)
    oracle = volume.oracles[1]
    assert whole.shape == tuple(oracle.volume_size)
    np.testing.assert_array_equal(whole.data.compute(), coordinate_ids(oracle.voxel_offset, oracle.volume_size, 1))
    for axis, dim in enumerate("xyz"):
        centre = (oracle.voxel_offset[axis] + 0.5) * oracle.resolution[axis]
        assert whole.coords[dim].values[0] == pytest.approx(centre, rel=1e-12)
        assert np.diff(whole.coords[dim].values) == pytest.approx(oracle.resolution[axis], rel=1e-9)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ([200, 0, 0], [230, 10, 5]),
        ([-90, -60, -30], [-80, -50, -25]),
        ([10**10, -(10**10), 10**10], [10**10 + 9, 4 - 10**10, 10**10 + 3]),
    ],
)
def test_boxes_wholly_outside_are_zero(volumes: dict[str, Volume], lower: Any, upper: Any) -> None:
    cutout = volumes["zero"].client.image_cutout([lower, upper], mip=0)
    assert cutout.shape == tuple(b - a for a, b in zip(lower, upper, strict=True))
    assert not cutout.compute().any()


def test_a_box_partly_outside_is_zero_only_there(volumes: dict[str, Volume]) -> None:
    (x, y, z), resolution = PLACES["negative"]
    bounds = [[x - 4, y, z + 20], [x + 3, y + 2, z + 25]]
    voxels = compare(volumes["negative"], *bounds, 0, resolution)
    assert voxels is not None
    np.testing.assert_array_equal(voxels[4:, :, :2], coordinate_ids((x, y, z + 20), (3, 2, 2), 0))
    assert np.count_nonzero(voxels) == 3 * 2 * 2


@given(
    center=st.tuples(st.integers(-20, 60), st.integers(-20, 60), st.integers(-10, 30)),
    size=st.one_of(
        st.tuples(st.integers(1, 20), st.integers(1, 20)),
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9)),
    ),
    mip=st.integers(0, MIPS - 1),
)
def test_a_center_with_a_bbox_size_equals_two_corners(
    volumes: dict[str, Volume], center: Any, size: Any, mip: int
) -> None:
    full = (*size, 1)[:3]
    lower = [c - n // 2 for c, n in zip(center, full, strict=True)]
    upper = [a + n for a, n in zip(lower, full, strict=True)]
    volume = volumes["zero"]
    try:
        expected = volume.expected(lower, upper, mip, (8, 8, 40))
    except SubvoxelVolumeError:
        with pytest.raises(ValueError, match="cover no voxel along"):
            volume.client.image_cutout(center, bbox_size=size, mip=mip)
        return
    np.testing.assert_array_equal(volume.client.image_cutout(center, bbox_size=size, mip=mip).compute(), expected)


@given(
    center=st.tuples(st.integers(-20, 60), st.integers(-20, 60), st.integers(-10, 30)),
    size=st.one_of(
        st.tuples(st.integers(1, 20), st.integers(1, 20)),
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9)),
    ),
    mip=st.integers(0, MIPS - 1),
    resolution=st.sampled_from([(8, 8, 40), (4, 4, 40), (5.5, 7, 33.3)]),
)
def test_image_size_is_the_size_of_the_result(
    volumes: dict[str, Volume], center: Any, size: Any, mip: int, resolution: Any
) -> None:
    volume = volumes["zero"]
    cutout = volume.client.image_cutout(center, image_size=size, mip=mip, resolution=resolution)
    full = (*size, 1)[:3]
    assert cutout.shape == tuple(n for n in full if n != 1)
    # Its voxels are contiguous at the mip, and the center is in the middle of the cutout.
    own = volume.oracles[mip].resolution
    voxels = cutout.compute().reshape(full)
    inside = np.argwhere(voxels)
    if len(inside):
        first = inside[0]
        x, y, z = (
            int(voxels[tuple(first)] - np.uint64(2**60 + (mip << 48)) >> shift) & 0xFFFF for shift in (0, 16, 32)
        )
        start = [value - 2**12 - int(at) for value, at in zip((x, y, z), first, strict=True)]
        box = Bbox(start, [a + n for a, n in zip(start, full, strict=True)], dtype=np.int64)
        np.testing.assert_array_equal(voxels, np.asarray(volume.oracles[mip].download(box, mip=mip))[..., 0])
        for axis in range(3):
            at = center[axis] * resolution[axis] / float(own[axis])
            # Corners are rounded twice: by less than a voxel of the bounds, and by less than a voxel of the mip.
            assert abs(at - (start[axis] + full[axis] / 2)) <= 1.5 + resolution[axis] / float(own[axis])


@pytest.mark.parametrize("digits", [1, 2])
@given(data=st.data())
def test_every_coordinate_becomes_the_voxel_of_exact_arithmetic(digits: int, data: st.DataObject) -> None:
    own, size = (data.draw(st.integers(1, 100 * 10**digits)) for _ in range(2))
    own_nm, voxel_nm = own / 10**digits, size / 10**digits
    edge = data.draw(st.integers(-(10**4), 10**4))  # the position own * size * edge, which both resolutions divide
    values = [size * edge + step for step in (-1, 0, 1)]
    expected = [int(Fraction(value * own, size)) for value in values]
    assert expected[1] == own * edge
    assert [voxel_of(value, own_nm, voxel_nm) for value in values] == expected
    assert voxels_along(np.array(values, float), own_nm, voxel_nm).tolist() == expected


@pytest.mark.parametrize("voxel_nm", [n / 10 for n in range(1, 101)])
def test_edges_in_nanometres_are_edges_at_every_resolution_of_one_decimal(voxel_nm: float) -> None:
    voxels = np.arange(-2000, 2000, 13)
    for values in (voxels * voxel_nm, np.array([float(voxel * Fraction(repr(voxel_nm))) for voxel in voxels.tolist()])):
        if voxel_nm > 1:
            assert voxels_along(values, 1.0, voxel_nm).tolist() == voxels.tolist()
    tenths = [n / 10 for n in range(1, 101)]
    for own_nm in tenths:
        size, own = round(voxel_nm * 10), round(own_nm * 10)
        assert voxels_along(np.array([99.0 * size]), own_nm, voxel_nm).tolist() == [99 * own]


@given(
    values=st.lists(st.one_of(st.integers(-(2**52), 2**52), st.floats(-1e9, 1e9)), max_size=8),
    own_nm=st.sampled_from([1.0, 0.1, 4.4, 8.0, 33.333333333333336]), voxel_nm=st.sampled_from([4.4, 8.0, 0.3, 100.0]),
)  # fmt: skip
def test_arrays_of_coordinates_become_the_voxels_of_each(values: list[float], own_nm: float, voxel_nm: float) -> None:
    each = [voxel_of(value, own_nm, voxel_nm) for value in values]
    assume(all(abs(voxel) < 2**63 for voxel in each))
    assert voxels_along(np.array(values, float), own_nm, voxel_nm).tolist() == each
