"""Where the levels of a volume are: OME-Zarr 0.4, 0.5 and 0.6, COSEM's and BigDataViewer's N5, and plain arrays.

A level is an array with a scale and a translation for each of its axes. Here they are exact numbers of nanometers, and
`placed` turns them into the voxel grids of mips, whose voxels begin at whole multiples of their size.

In OME-Zarr a translation is the centre of the first voxel (https://ngff.openmicroscopy.org/0.5/), so that a volume from
the origin on has half a voxel; most writers mean its corner, and leave the translation out. A first level that begins
at a whole voxel by either reading is read so. Coarser levels are placed beside it by the reading that agrees with their
sizes: ngff-zarr moves them by half the difference of the voxel sizes, ome-zarr does not move them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.geometry.vec import Vec3

__all__ = [
    "Axes",
    "LevelPlace",
    "axes_named",
    "default_axes",
    "exact",
    "levels_of_n5",
    "levels_of_ome",
    "own_transformation",
    "placed",
    "unit_nm",
]

SPACE = ("x", "y", "z")
#: nm in units by their names in OME-Zarr (UDUNITS-2) and N5.
UNITS_NM = {
    "": Fraction(1), "pixel": Fraction(1), "angstrom": Fraction(1, 10), "picometer": Fraction(1, 1000),
    "nanometer": Fraction(1), "nm": Fraction(1), "micrometer": Fraction(10**3), "micron": Fraction(10**3),
    "um": Fraction(10**3), "µm": Fraction(10**3), "μm": Fraction(10**3), "millimeter": Fraction(10**6),
    "mm": Fraction(10**6), "centimeter": Fraction(10**7), "meter": Fraction(10**9), "m": Fraction(10**9),
}  # fmt: skip
# Voxels. A place so close to an edge is that edge: it was computed in floats.
EDGE = Fraction(1, 10**4)
FURTHEST = 2**40
# Axes of arrays that do not name them, by their number, in zarr's order.
DEFAULT_AXES = {2: "yx", 3: "zyx", 5: "tczyx"}


@dataclass(frozen=True)
class Axes:
    """The axes of an array, in its order: "x", "y", "z", "c" for channels; others ("t") must have length 1.

    Parameters
    ----------
    names : tuple of str
        Their names.
    """

    names: tuple[str, ...]

    def of(self, name: str) -> int | None:
        """Return the number of an axis; None if there is none."""
        return self.names.index(name) if name in self.names else None


@dataclass(frozen=True)
class LevelPlace:
    """A level as its metadata places it.

    Parameters
    ----------
    path : str
        The array, below the group.
    axes : Axes or None
        Its axes; None leaves them to the array.
    scale_nm, translation_nm : tuple of 3 Fraction
        Size of a voxel, and place of the first one (x, y, z).
    """

    path: str
    axes: Axes | None
    scale_nm: Vec3[Fraction]
    translation_nm: Vec3[Fraction]


def axes_named(names: Sequence[str]) -> Axes:
    """Return axes by their names, of which case and long forms do not matter.

    Raises
    ------
    ValueError
        If x and y are not among them, or one is twice.
    """
    short = tuple("c" if name.lower() in ("c", "channel", "c^") else name.lower().removesuffix("^") for name in names)
    if len(set(short)) != len(short) or not {"x", "y"} <= set(short):
        raise ValueError(f"its axes are {', '.join(map(repr, names))}, and x and y must be among them, once each")
    return Axes(short)


def default_axes(ndim: int, first_is_fastest: bool) -> Axes:
    """Return the axes of an array that does not name them.

    Parameters
    ----------
    ndim : int
        Number of its axes.
    first_is_fastest : bool
        Whether the first one is x, as in N5.
    """
    if first_is_fastest and ndim in (2, 3, 4):
        return Axes(("x", "y", "z", "c")[:ndim])
    if ndim not in DEFAULT_AXES:
        raise ValueError(
            f"it has {ndim} axes without names. Name them at the end of its path, such as #axes={'czyx'[-ndim:]}"
        )
    return Axes(tuple(DEFAULT_AXES[ndim]))


def levels_of_ome(attributes: JsonObject) -> list[LevelPlace]:
    """Return the levels that the attributes of an OME-Zarr image name, the finest first.

    Raises
    ------
    ValueError
        If they are not those of an image, or say more than scales and translations.
    """
    multiscale = attributes["multiscales"][0]
    axes = multiscale.get("axes")
    if axes is None and multiscale.get("coordinateSystems"):  # 0.6
        axes = multiscale["coordinateSystems"][0]["axes"]
    if axes is None:
        version = multiscale.get("version", "0.1")
        raise ValueError(f"its metadata is OME-Zarr {version}, which has no voxel sizes; give the path of an array")
    names = [axis["name"] if isinstance(axis, dict) else str(axis) for axis in axes]
    kinds = {axis["name"]: axis.get("type") for axis in axes if isinstance(axis, dict)}
    units = {axis["name"]: axis.get("unit") for axis in axes if isinstance(axis, dict)}
    named = axes_named(["c" if kinds.get(name) == "channel" else name for name in names])
    of_all = multiscale.get("coordinateTransformations") or []
    levels = []
    for dataset in multiscale["datasets"]:
        scale, translation = own_transformation(dataset, len(names), of_all)
        unit = Vec3.of(
            unit_nm(units[names[at]]) if (at := named.of(axis)) is not None else Fraction(1) for axis in SPACE
        )
        levels.append(
            LevelPlace(str(dataset["path"]), named, _xyz(named, scale, 1) * unit, _xyz(named, translation, 0) * unit)
        )
    if not levels:
        raise ValueError("its metadata names no levels")
    return levels


def own_transformation(
    dataset: JsonObject, ndim: int, of_all: Sequence[JsonObject] = ()
) -> tuple[list[Fraction], list[Fraction]]:
    """Return the scale and the translation of a dataset of OME-Zarr, along the axes of its array.

    Parameters
    ----------
    dataset : dict
        An entry of ``datasets``.
    ndim : int
        Number of axes.
    of_all : sequence of dict
        Further transformations, which all datasets of a multiscale have in common.

    Raises
    ------
    ValueError
        If there are other transformations.
    """
    scale, translation = [Fraction(1)] * ndim, [Fraction(0)] * ndim
    for step in _flat([*(dataset.get("coordinateTransformations") or []), *of_all]):
        kind = str(step.get("type"))
        if kind == "identity":
            continue
        numbers = step.get(kind)
        if kind not in ("scale", "translation") or not isinstance(numbers, list) or len(numbers) != ndim:
            raise ValueError(f"its level {dataset['path']} has {step!r}, which is no scale or translation")
        along = [exact(number) for number in numbers]
        if kind == "scale":
            translation = [at * by for at, by in zip(translation, along, strict=True)]
            scale = [size * by for size, by in zip(scale, along, strict=True)]
        else:
            translation = [at + by for at, by in zip(translation, along, strict=True)]
    return scale, translation


def levels_of_n5(attributes: JsonObject, of_arrays: dict[str, JsonObject]) -> list[LevelPlace]:
    """Return the levels of an N5 group, the finest first.

    A voxel size is that of the full resolution, which the factors of each level multiply: so n5-viewer, N5 Spark and
    Neuroglancer have it. A level that says another size than that has its own.

    Parameters
    ----------
    attributes : dict
        Attributes of the group.
    of_arrays : dict
        Attributes of the arrays in it, by name (``s0``, ``s1``, ...).

    Raises
    ------
    ValueError
        If an array has more axes than there are numbers for.
    """
    known = {
        dataset["path"].strip("/"): dataset.get("transform")
        for multiscale in attributes.get("multiscales") or []
        for dataset in multiscale.get("datasets", ())
    }
    transforms = {name: own.get("transform") or known.get(name) for name, own in of_arrays.items()}
    scales = attributes.get("scales") or attributes.get("downsamplingFactors") or []
    factors, said = {}, {}
    for number, (name, own) in enumerate(of_arrays.items()):
        if transforms[name] is None:
            of_group = scales[number] if number < len(scales) else None
            factors[name] = _along(own.get("downsamplingFactors") or of_group, 1, _ndim(own))
            said[name] = _size_nm(own, _ndim(own))
    first = next(iter(of_arrays.values()), {})
    base, units_of_base = _size_nm(attributes, _ndim(first))
    if base is None and said:
        base = _base([size for size, _ in said.values()], list(factors.values()))
        units_of_base = next(iter(said.values()))[1]
    levels = []
    for name, own in of_arrays.items():
        if (transform := transforms[name]) is not None:
            levels.append(_of_transform(name, transform))
            continue
        size, units = said[name]
        if size is None:
            units = units_of_base
        scale = (base or Vec3.of([Fraction(1)] * 3)) * factors[name] if size in (None, base) else size
        levels.append(LevelPlace(name, None, scale, _along(own.get("offset"), 0, _ndim(own)) * units))
    return levels


def _base(sizes: Sequence[Vec3[Fraction] | None], factors: Sequence[Vec3[Fraction]]) -> Vec3[Fraction] | None:
    """Return the voxel size of the full resolution, given the sizes that levels say and their factors.

    A first level that has factors, because it is a copy of a coarser one, has the size that it says; unless coarser
    levels repeat it, so that it can only be that of the full resolution.
    """
    first, own = sizes[0], factors[0]
    others = zip(sizes[1:], factors[1:], strict=True)
    if first is None or any(size == first and not more.all_le(own) for size, more in others):
        return first
    return Vec3.of(size / factor for size, factor in zip(first, own, strict=True))


def placed(
    levels: Sequence[LevelPlace], resolution_nm: Any = None, voxel_offset: Any = None
) -> list[tuple[Vec3[float], Vec3[int] | str]]:
    """Return the voxel size of each level, and its first voxel, or why it is not at whole voxels.

    Parameters
    ----------
    levels : sequence of LevelPlace
        Levels, the finest first.
    resolution_nm, voxel_offset : sequence of 3 numbers, optional
        Voxel size and first voxel of the first level (x, y, z), whatever its metadata says.

    Raises
    ------
    ValueError
        If voxels have no size.
    """
    if not all(size > 0 for level in levels for size in level.scale_nm):
        raise ValueError("it has voxels of size 0 or less")
    first = levels[0]
    size = first.scale_nm if resolution_nm is None else Vec3.of(exact(n) for n in resolution_nm)
    stretch = Vec3.of(own / stored for own, stored in zip(size, first.scale_nm, strict=True))
    if voxel_offset is None:
        # Centres of first voxels; else their corners, of which either begins at a whole voxel.
        corner = Vec3.of(_corner(at, own) for at, own in zip(first.translation_nm, first.scale_nm, strict=True))
    else:
        corner = Vec3.of(exact(n) * own for n, own in zip(voxel_offset, first.scale_nm, strict=True))
    found: list[tuple[Vec3[float], Vec3[int] | str]] = []
    for level in levels:
        moved = level.translation_nm - first.translation_nm
        starts = corner.map(_first_voxel, moved, level.scale_nm, first.scale_nm)
        place: Vec3[int] | str = starts.map(int)
        if any(start.denominator != 1 for start in starts):
            at = ", ".join(f"{axis} = {float(start):g}" for axis, start in zip(SPACE, starts, strict=True))
            place = f"it begins at {at} in its voxels, and voxels of a level begin at whole multiples of their size"
        elif not all(abs(start) <= FURTHEST for start in starts):
            place = f"it begins at {tuple(starts.map(float))} in its voxels, further away than {FURTHEST}"
        found.append(((level.scale_nm * stretch).map(float), place))
    return found


def _corner(at: Fraction, size: Fraction) -> Fraction:
    """Return the lower edge of a first voxel whose place is that of its centre or of its edge."""
    for edge in (at / size - Fraction(1, 2), at / size):
        if abs(edge - round(edge)) <= EDGE:
            return round(edge) * size
    return at - size / 2


def _first_voxel(corner: Fraction, moved: Fraction, size: Fraction, first: Fraction) -> Fraction:
    """Return the first voxel of a level, of a size, whose translation is that of the first level and `moved`."""
    readings = [(corner + moved - (size - first) / 2) / size, (corner + moved) / size]
    for start in readings:
        if abs(start - round(start)) <= EDGE:
            return Fraction(round(start))
    return readings[0]


def _of_transform(name: str, transform: JsonObject) -> LevelPlace:
    """Return a level of COSEM, whose transform has axes in C order, whatever the format."""
    axes = [str(axis) for axis in transform["axes"]]
    named = axes_named(axes)
    units = transform.get("units") or ["nm"] * len(axes)
    scale = [exact(n) * unit_nm(unit) for n, unit in zip(transform["scale"], units, strict=True)]
    moved = [exact(n) * unit_nm(unit) for n, unit in zip(transform["translate"], units, strict=True)]
    return LevelPlace(name, None, _xyz(named, scale, 1), _xyz(named, moved, 0))


def _resolution(attributes: JsonObject) -> tuple[Sequence[Any] | None, Vec3[Fraction]]:
    """Return the voxel size of a group or array of N5, and its units in nm."""
    pixel, units = attributes.get("pixelResolution"), attributes.get("units")
    if isinstance(pixel, dict):
        size, units = pixel["dimensions"], pixel.get("unit")
    else:
        size = pixel or attributes.get("resolution")
    names = [units] * 3 if units is None or isinstance(units, str) else units[:3]
    return size, Vec3.of([*map(unit_nm, names), *[Fraction(1)] * (3 - len(names))])


def _size_nm(attributes: JsonObject, ndim: int) -> tuple[Vec3[Fraction] | None, Vec3[Fraction]]:
    """Return the voxel size of a group or array of N5 in nm, if it says one, and its units in nm."""
    size, units = _resolution(attributes)
    return None if size is None else _along(size, 1, ndim) * units, units


def _ndim(attributes: JsonObject) -> int:
    return len(attributes.get("dimensions") or SPACE)


def _along(numbers: Sequence[Any] | None, missing: int, ndim: int) -> Vec3[Fraction]:
    """Return numbers along x, y, z, of an array that may be a plane or have further axes."""
    given = [exact(number) for number in (numbers or ())[:3]]
    if given and len(given) < min(ndim, 3):
        raise ValueError(f"it has {ndim} axes, but its metadata has the numbers {list(numbers or ())} for them")
    return Vec3.of([*given, *[Fraction(missing)] * (3 - len(given))])


def _flat(steps: Sequence[JsonObject]) -> list[JsonObject]:
    return [
        inner
        for step in steps
        for inner in (_flat(step["transformations"]) if step.get("type") == "sequence" else [step])
    ]


def _xyz(axes: Axes, numbers: Sequence[Fraction], missing: int) -> Vec3[Fraction]:
    return Vec3.of(Fraction(missing) if (at := axes.of(axis)) is None else numbers[at] for axis in SPACE)


def unit_nm(name: str | None) -> Fraction:
    """Return a unit of length in nm, by its name; no name is that of nm.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    text = str(name or "").strip()
    known = UNITS_NM.get(text.lower(), UNITS_NM.get(text.lower().removesuffix("s")))
    if known is None:
        raise ValueError(f"its unit {name!r} is no length that is known: {', '.join(filter(None, UNITS_NM))}")
    return known


def exact(number: Any) -> Fraction:
    """Return a decimal number as it is written, which floats are not."""
    return Fraction(repr(float(number)))
