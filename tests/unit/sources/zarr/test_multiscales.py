"""Levels of OME-Zarr and N5 are at exact voxels, or say why not."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.geometry.vec import Vec3
from imagery_dask.sources.zarr.multiscales import axes_named, default_axes, levels_of_n5, levels_of_ome, placed

SIZES = st.sampled_from([1.0, 4.0, 4.3, 33.333333, 40.0, 0.25])
STARTS = st.integers(-(10**7), 10**7)


def image(*levels: tuple[list[float], list[float] | None], unit: str | None = "nanometer", axes: str = "zyx") -> Any:
    """Return attributes of an image with levels of a scale and a translation each."""
    datasets = []
    for number, (scale, translation) in enumerate(levels):
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if translation is not None:
            steps.append({"type": "translation", "translation": translation})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    named = [{"name": name, "type": "space", "unit": unit} for name in axes]
    return {"multiscales": [{"axes": named, "datasets": datasets}]}


@given(size=st.tuples(SIZES, SIZES, SIZES), start=st.tuples(STARTS, STARTS, STARTS), levels=st.integers(1, 5))
def test_centres_of_first_voxels_are_exact(size: Any, start: Any, levels: int) -> None:
    start = tuple(n * 2**levels for n in start)
    given_levels = []
    for level in range(levels):
        own = [n * 2**level for n in size]
        given_levels.append((own, [(at // 2**level + 0.5) * n for at, n in zip(start, own, strict=True)]))
    found = placed(levels_of_ome(image(*given_levels, axes="xyz")))
    for level, (nm, first) in enumerate(found):
        assert first == tuple(at // 2**level for at in start)
        assert nm == pytest.approx([n * 2**level for n in size], rel=1e-12)


@pytest.mark.parametrize(
    "translations",
    [
        [None, None, None],  # ome-zarr: corners of first voxels, at the origin
        [[0.0] * 3, [0.0, 2.0, 2.0], [0.0, 6.0, 6.0]],  # ngff-zarr: centres, from that of the first voxel on
        [[20.0, 2.0, 2.0], [20.0, 4.0, 4.0], [20.0, 8.0, 8.0]],  # centres, from the corner of the first voxel on
    ],
)
def test_conventions_of_writers_agree(translations: list[Any]) -> None:
    scales = [[40.0, 4.0, 4.0], [40.0, 8.0, 8.0], [40.0, 16.0, 16.0]]
    found = placed(levels_of_ome(image(*zip(scales, translations, strict=True))))
    assert [first for _, first in found] == [(0, 0, 0)] * 3
    assert [nm for nm, _ in found] == [(4.0, 4.0, 40.0), (8.0, 8.0, 40.0), (16.0, 16.0, 40.0)]


def test_negative_corners_are_kept() -> None:
    ((_, first),) = placed(levels_of_ome(image(([40.0, 4.0, 4.0], [-400.0, 8.0, -12.0]))))
    assert first == (-3, 2, -10)


def test_a_level_between_voxels_says_where_it_is() -> None:
    levels = levels_of_ome(image(([1.0] * 3, [0.0] * 3), ([2.0] * 3, [0.0, 0.0, 1.1])))
    (_, first), (_, second) = placed(levels)
    assert first == (0, 0, 0)
    assert "x = 0.3" in str(second)


def test_fractions_of_voxels_need_an_offset() -> None:
    levels = levels_of_ome(image(([4.0] * 3, [1.0, 0.0, 0.0])))
    assert "z = -0.25" in str(placed(levels)[0][1])
    assert placed(levels, voxel_offset=(5, 6, 7))[0][1] == (5, 6, 7)


def test_a_given_resolution_stretches_all_levels() -> None:
    levels = levels_of_ome(image(([1.0] * 3, None), ([1.0, 2.0, 2.0], None), unit=None))
    assert placed(levels, (4.0, 4.0, 40.0)) == [((4.0, 4.0, 40.0), (0, 0, 0)), ((8.0, 8.0, 40.0), (0, 0, 0))]


@pytest.mark.parametrize(("unit", "nm"), [("micrometer", 1000), ("angstrom", Fraction(1, 10)), (None, 1)])
def test_units_become_nanometers(unit: str | None, nm: Any) -> None:
    (level,) = levels_of_ome(image(([0.04, 0.004, 0.004], None), unit=unit))
    assert level.scale_nm == (Fraction(4, 1000) * nm, Fraction(4, 1000) * nm, Fraction(4, 100) * nm)


def test_transformations_of_the_multiscale_follow_those_of_levels() -> None:
    attributes = image(([2.0, 1.0, 1.0], [4.0, 2.0, 2.0]))
    attributes["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [10.0, 4.0, 4.0]}]
    (level,) = levels_of_ome(attributes)
    assert (level.scale_nm, level.translation_nm) == ((4, 4, 20), (8, 8, 40))


def test_version_06_has_coordinate_systems_and_sequences() -> None:
    attributes = image(([40.0, 4.0, 4.0], [80.0, 0.0, 0.0]))
    multiscale = attributes["multiscales"][0]
    multiscale["coordinateSystems"] = [{"name": "physical", "axes": multiscale.pop("axes")}]
    dataset = multiscale["datasets"][0]
    dataset["coordinateTransformations"] = [
        {"type": "sequence", "transformations": dataset["coordinateTransformations"], "output": "physical"}
    ]
    (level,) = levels_of_ome(attributes)
    assert (level.scale_nm, level.translation_nm) == ((4, 4, 40), (0, 0, 80))


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ({"type": "affine", "affine": [[1]]}, "no scale or translation"),
        ({"type": "scale", "path": "somewhere"}, "no scale or translation"),
        ({"type": "scale", "scale": [1.0]}, "no scale or translation"),
    ],
)
def test_other_transformations_are_refused(step: dict[str, Any], reason: str) -> None:
    attributes = image(([1.0] * 3, None))
    attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [step]
    with pytest.raises(ValueError, match=reason):
        levels_of_ome(attributes)


@pytest.mark.parametrize("size", [0, -4])
def test_voxels_have_a_size(size: int) -> None:
    for sizes in ([4.0, 4.0, size], [size, 4.0, 4.0]):
        with pytest.raises(ValueError, match="voxels of size 0 or less"):
            placed(levels_of_ome(image(([4.0] * 3, None), (sizes, None))))


def test_unknown_units_and_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="'parsec' is no length"):
        levels_of_ome(image(([1.0] * 3, None), unit="parsec"))
    with pytest.raises(ValueError, match="x and y must be among them"):
        axes_named(["u", "v", "w"])
    with pytest.raises(ValueError, match="#axes=czyx"):
        default_axes(4, first_is_fastest=False)


BASE = {"pixelResolution": {"dimensions": [4, 4, 40], "unit": "nm"}}
FACTORS = [{"downsamplingFactors": [1, 1, 1]}, {"downsamplingFactors": [2, 2, 1]}]


@pytest.mark.parametrize(
    ("group", "arrays"),
    [
        ({}, [BASE | factors for factors in FACTORS]),  # of n5-viewer, as each level has them
        ({}, [BASE, FACTORS[1]]),  # or only the first
        (BASE, FACTORS),
        (BASE, [BASE | factors for factors in FACTORS]),
        (BASE | {"scales": [[1, 1, 1], [2, 2, 1]]}, [{}, {}]),
        ({}, [BASE, {"resolution": [8, 8, 40]} | FACTORS[1]]),  # its own size is that of the level
        (BASE | {"scales": [[1, 1, 1], [2, 2, 1]]}, [BASE, BASE]),
        ({"scales": [[1, 1, 1], [2, 2, 1]]}, [BASE, {"resolution": [4, 4, 40]}]),
        (BASE | {"downsamplingFactors": [[1, 1, 1], [2, 2, 1]]}, [BASE, {"resolution": [8, 8, 40]}]),
        ({"resolution": [4, 4, 0.04], "units": ["nm", "nm", "um"]}, FACTORS),
        ({"resolution": [0.004, 0.004, 0.04], "units": "um"}, FACTORS),
        ({"resolution": [4, 4, 40, 1], "units": ["nm", "nm", "nm", "second"]}, FACTORS),
    ],
)
def test_ways_of_n5_to_say_the_size_of_voxels(group: dict[str, Any], arrays: list[dict[str, Any]]) -> None:
    levels = levels_of_n5(group, {f"s{number}": own for number, own in enumerate(arrays)})
    assert placed(levels) == [((4.0, 4.0, 40.0), (0, 0, 0)), ((8.0, 8.0, 40.0), (0, 0, 0))]


EIGHT = {"pixelResolution": {"dimensions": [8, 8, 40], "unit": "nm"}}
LATER = [{"downsamplingFactors": [2, 2, 1]}, {"downsamplingFactors": [4, 4, 1]}]


@pytest.mark.parametrize(
    ("arrays", "sizes"),
    [
        ([EIGHT | LATER[0]], [8]),  # a copy of a coarser level, whose factors were left
        ([EIGHT | LATER[0], LATER[1]], [8, 16]),
        ([EIGHT | LATER[0], {"resolution": [16, 16, 40]} | LATER[1]], [8, 16]),
        ([EIGHT | LATER[0], EIGHT | LATER[0]], [8, 8]),
        ([EIGHT | LATER[0], EIGHT | LATER[1]], [16, 32]),  # that repeat a size, which is that of the full resolution
        ([EIGHT | LATER[0], {"resolution": [0.008, 0.008, 0.04], "units": "um"} | LATER[1]], [16, 32]),
    ],
)
def test_a_first_level_of_n5_with_factors_has_its_own_size(arrays: list[dict[str, Any]], sizes: list[float]) -> None:
    levels = levels_of_n5({}, {f"s{number}": own for number, own in enumerate(arrays)})
    assert [size for size, _ in placed(levels)] == [(size, size, 40.0) for size in sizes]


def test_a_level_of_n5_by_itself_has_the_size_of_the_full_resolution_times_its_factors() -> None:
    level = {"dimensions": [9, 9, 9]} | BASE | FACTORS[1]
    assert placed(levels_of_n5(level, {"": level})) == [((8.0, 8.0, 40.0), (0, 0, 0))]


def test_planes_of_n5_have_two_numbers_and_volumes_three() -> None:
    plane = {"dimensions": [9, 9], "resolution": [4, 8], "offset": [-4, 16], "units": ["um", "um"]}
    assert placed(levels_of_n5({}, {"": plane})) == [((4000.0, 8000.0, 1.0), (-1, 2, 0))]
    with pytest.raises(ValueError, match=r"3 axes, but .* \[4, 8\] for them"):
        levels_of_n5({}, {"": plane | {"dimensions": [9, 9, 9]}})


def test_places_beyond_all_volumes_are_refused() -> None:
    ((_, place),) = placed(levels_of_ome(image(([1.0] * 3, [0.0, 0.0, 1e30]))))
    assert "further away than" in str(place)


def test_n5_of_bigdataviewer_and_of_cosem() -> None:
    arrays = {"s0": {}, "s1": {"downsamplingFactors": [2, 2, 1]}}
    levels = levels_of_n5({"pixelResolution": {"dimensions": [0.004, 0.004, 0.04], "unit": "um"}}, arrays)
    assert placed(levels) == [((4.0, 4.0, 40.0), (0, 0, 0)), ((8.0, 8.0, 40.0), (0, 0, 0))]
    transforms = [
        {"axes": ["z", "y", "x"], "scale": [5.24, 4.0, 4.0], "translate": [0.0, 0.0, 0.0], "units": ["nm"] * 3},
        {"axes": ["z", "y", "x"], "scale": [10.48, 8.0, 8.0], "translate": [2.62, 2.0, 2.0], "units": ["nm"] * 3},
    ]
    levels = levels_of_n5({}, {f"s{n}": {"transform": transform} for n, transform in enumerate(transforms)})
    assert placed(levels) == [((4.0, 4.0, 5.24), (0, 0, 0)), ((8.0, 8.0, 10.48), (0, 0, 0))]
    levels = levels_of_n5({}, {"s0": {"resolution": [4, 4, 40], "offset": [400, -80, 0]}})
    assert placed(levels) == [(Vec3(4.0, 4.0, 40.0), (100, -20, 0))]
