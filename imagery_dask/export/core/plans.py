"""A planned export as data: what is written, from what, in which blocks. Its JSON contains no secrets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import JsonObject
from imagery_dask.cards import Card
from imagery_dask.export.core.provenance import PROGRAM
from imagery_dask.geometry.block_plan import BlockPlan
from imagery_dask.geometry.grid import AXES, XYZ, Region, source_span
from imagery_dask.kernels import linear_taps
from imagery_dask.model.cutout import Cutout
from imagery_dask.serialization import NEWER, flat, from_json, to_json
from imagery_dask.urls import without_secrets

if TYPE_CHECKING:
    import xarray as xr

    from imagery_dask.arrays.cutout_array import CutoutArray
    from imagery_dask.export.core.inputs import Volume

__all__ = [
    "FORMAT",
    "ExportPlan",
    "StageBlocks",
    "chunk_reads",
    "data_of",
    "described_volume",
    "difference",
    "fingerprint_of",
    "said_of",
    "source_chunks",
    "timestamp_in",
    "voxels_decided_by",
]

FORMAT = "imagery_dask.plan"
# What may be written (`imagery_dask.export.registry.KINDS`), and tables (`imagery_dask.versions.tables`).
PLAN_KINDS = ("zarr", "precomputed", "png", "table")
VERSION = 1
LISTED = 100
# Names of a cutout's fields in messages.
CALLED = {"path": "source", "target.start": "bounds (first voxel)", "target.shape": "bounds (voxels)",
          "target.resolution_nm": "resolution", "labels.keep": "root_ids", "labels.query.timestamp": "timestamp",
          "labels.query.stop_layer": "stop_layer", "labels.as_int64": "convert_to_int64",
          "labels.moment": "timestamp"}  # fmt: skip
# Fields that determine how chunks are requested and written, and no voxel.
DECIDE_NOTHING = (
    "labels.query.max_requests", "labels.query.version", "labels.query.stored", "labels.leaves_within",
    "labels.query.graph.chunk_bits", "mip.compressor",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StageBlocks:
    """Blocks of one volume in one stage.

    Parameters
    ----------
    volume : str
        What is written; in an export of named regions, after the region: ``"train/image"``.
    doing : str
        ``"read+write"`` or ``"downsample"``.
    level : int
        First level that is written.
    blocks : BlockPlan
        The blocks.
    region : str
        Name of the region; "" without named regions.
    """

    volume: str
    doing: str
    level: int
    blocks: BlockPlan
    region: str = field(default="", metadata=NEWER)

    @property
    def layer(self) -> str:
        """Name of the volume without that of its region."""
        return self.volume.removeprefix(f"{self.region}/")


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What an export writes, and in which blocks.

    Parameters
    ----------
    kind : {"zarr", "precomputed", "png", "table"}
        Which writer.
    url : str
        Where it is written.
    volumes : sequence of dict
        What is written: cutouts, or the shape of arrays that were computed.
    options : dict
        Arguments of the writer.
    fingerprint_fields : dict
        Fields that determine the output voxels.
    stages : tuple of tuples of StageBlocks
        Blocks; their numbers go through all stages, parts, and in a part x first.
    voxels : int
        Voxels of the first level of all volumes.
    source_chunks : int or None
        Reads of storage chunks; None where what is read is not a cutout.
    waiting : float or None
        Fraction of its time that a block waits for its source or the disk, which decides the number of threads; None if
        it was not measured.
    """

    kind: str
    url: str
    volumes: Sequence[JsonObject]
    options: JsonObject
    fingerprint_fields: JsonObject
    stages: tuple[tuple[StageBlocks, ...], ...]
    voxels: int
    source_chunks: int | None = None
    waiting: float | None = None

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        return Card(f"ExportPlan: {self.kind}", [*self.rows(), ("fingerprint", self.fingerprint[:16])])

    def rows(self) -> list[tuple[str, str]]:
        """Return what is written, as labels and text."""
        rows = [("to", self.url)]
        if regions := {part.region for _, part in self.parts if part.region}:
            rows.append(("regions", f"{len(regions):,}"))
        alike: dict[tuple[str, str, int], list[BlockPlan]] = {}
        for _, part in self.parts:
            alike.setdefault((part.doing, part.layer, part.level), []).append(part.blocks)
        for (doing, layer, _), plans in alike.items():
            largest = (max(sizes) for sizes in zip(*(blocks.largest for blocks in plans), strict=True))
            shape = " x ".join(f"{n:,}" for n in largest)
            rows.append((f"{doing} {layer}", f"{sum(map(len, plans)):,} blocks of up to {shape} voxels"))
        return [*rows, ("blocks", f"{self.blocks:,}"), ("voxels", f"{self.voxels:,}")]

    @property
    def fingerprint(self) -> str:
        """Hash of the fields that determine the voxels."""
        return fingerprint_of(self.fingerprint_fields)

    @property
    def parts(self) -> list[tuple[int, StageBlocks]]:
        """Number of the first block of each entry of the stages, and the entry."""
        parts, first = [], 0
        for stage in self.stages:
            for part in stage:
                parts.append((first, part))
                first += len(part.blocks)
        return parts

    @property
    def blocks(self) -> int:
        """Blocks of all stages."""
        return sum(len(part.blocks) for stage in self.stages for part in stage)

    @property
    def ends(self) -> list[int]:
        """For each stage, the number after that of its last block."""
        return list(accumulate(sum(len(part.blocks) for part in stage) for stage in self.stages))

    def made_of(self, numbers: Collection[int]) -> NDArray[np.bool_]:
        """Mark the blocks that are downsampled from others: all of a volume, since they are not known one by one."""
        marked = np.zeros(self.blocks, bool)
        volumes = {part.volume for first, part in self.parts if any(0 <= n - first < len(part.blocks) for n in numbers)}
        for first, part in self.parts:
            if part.volume in volumes and part.doing == "downsample":
                marked[first : first + len(part.blocks)] = True
        return marked

    def notes(self) -> Iterator[str]:
        """Tell which blocks cut chunks of what they read; what is said of several regions is said once."""
        noted: dict[str, list[str]] = {}
        for _, part in self.parts:
            cut = [axis for axis, once in zip(AXES, part.blocks.reads_once, strict=True) if not once]
            if cut and part.doing != "downsample":
                sizes = "" if part.region else f" of {part.blocks.largest} voxels"
                note = (
                    f"{part.layer}: blocks{sizes} cut chunks of the source along {', '.join(cut)}: they are read more "
                    "than once. Choose chunks and shards, or bounds, that agree with them."
                )
                noted.setdefault(note, []).append(part.region)
        yield from (said_of(regions, note) for note, regions in noted.items())

    def region(self, number: int) -> Region:
        """Region of a block, in voxels of the level that it writes first."""
        return self.part_and_region(number)[1]

    def part_and_region(self, number: int) -> tuple[StageBlocks, Region]:
        """Return the blocks among which a block is, and its region."""
        first, part = next(pair for pair in reversed(self.parts) if pair[0] <= number)
        return part, part.blocks[number - first][1]

    def to_json(self) -> JsonObject:
        """Return the plan as JSON, with a version."""
        head = {"format": FORMAT, "version": VERSION, "program": PROGRAM, "fingerprint": self.fingerprint}
        content: JsonObject = to_json({
            "kind": self.kind, "out": self.url, "volumes": self.volumes, "options": self.options,
            "decides": self.fingerprint_fields, "stages": self.stages,
        })  # fmt: skip
        measured = {} if self.waiting is None else {"waiting": self.waiting}
        return head | content | {"voxels": self.voxels, "source_chunks": self.source_chunks} | measured

    @classmethod
    def from_json(cls, content: object) -> ExportPlan:
        """Return the plan that JSON describes.

        Raises
        ------
        ValueError
            This is not a plan, it is damaged, or it has another version.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("This is not a plan of an export, as imagery-dask plan writes it.")
        if content.get("version") != VERSION:
            raise ValueError(
                f"The plan has version {content.get('version')!r}, and this program reads version {VERSION}; plan "
                "again, or use the program that made it."
            )
        if "kind" in content and content["kind"] not in PLAN_KINDS:
            raise ValueError(
                f"The plan is of an export to {content.get('kind')!r}, and this program writes "
                f"{', '.join(PLAN_KINDS)}; plan again, or use the program that made it."
            )
        try:
            plan = cls(
                kind=content["kind"], url=_typed(content, "out", str), volumes=_typed(content, "volumes", list),
                options=_typed(content, "options", dict), fingerprint_fields=_typed(content, "decides", dict),
                stages=from_json(tuple[tuple[StageBlocks, ...], ...], content["stages"]),
                voxels=int(content["voxels"]), source_chunks=content["source_chunks"],
                waiting=_fraction(content, "waiting"),
            )  # fmt: skip
            if not plan.blocks:
                raise ValueError("it has no stages, or stages without blocks")
            for volume in plan.volumes:
                _check_volume(volume)
            return plan
        except KeyError as error:
            raise ValueError(f"The plan is damaged: it has no {error}.") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"The plan is damaged: {str(error).removesuffix('.')}.") from error


def _typed(content: JsonObject, key: str, kind: type) -> Any:
    """Return a value of a plan; raise ValueError if it is of another type."""
    if not isinstance(content[key], kind):
        raise ValueError(f"{key!r} is {_text(content[key])}")
    return content[key]


def _fraction(content: JsonObject, key: str) -> float | None:
    """Return a fraction of a plan, or None if it has none; raise ValueError if it is none."""
    value = content.get(key)
    if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
        raise ValueError(f"{key!r} is {_text(value)}")
    return value


def _check_volume(volume: object) -> None:
    """Raise ValueError if this does not describe a volume."""
    known = {"name": str, "variable": bool, "shape": list, "dtype": str, "cutout": dict, "region": str}
    if not isinstance(volume, dict):
        raise ValueError(f"a volume is {_text(volume)}")
    for key, kind in known.items():
        if key in volume or key in ("name", "variable"):
            _typed(volume, key, kind)
    if "cutout" not in volume and not {"shape", "dtype", "resolution_nm", "translation_nm"} <= volume.keys():
        raise ValueError(f"volume {volume['name']!r} has neither a cutout nor a shape")


def fingerprint_of(fields: Mapping[str, object]) -> str:
    """Return the hash of the fields that determine the voxels."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def said_of(regions: Sequence[str], note: str) -> str:
    """Return a note with the names of the regions that it is about, at most three of them."""
    named = list(dict.fromkeys(filter(None, regions)))
    more = f" and {len(named) - 3:,} more" if len(named) > 3 else ""
    return f"{', '.join(named[:3])}{more}: {note}" if named else note


def timestamp_in(fields: Mapping[str, object]) -> object:
    """Return the timestamp of a dynamic segmentation, which all regions have in common, or None."""
    return next((value for name, value in fields.items() if name.endswith("segmentation timestamp") and value), None)


def described_volume(volume: Volume) -> JsonObject:
    """Describe a volume as JSON, from which `data_of` makes it again."""
    content: JsonObject = {"name": volume.name, "variable": volume.variable}
    if volume.source is not None:
        content["cutout"] = _cutout_of(volume.source)
    array = {"shape": volume.array.shape, "dtype": str(volume.array.dtype)}
    position = {"resolution_nm": volume.resolution_nm, "translation_nm": volume.translation_nm}
    described: JsonObject = to_json(array | position)
    return content | described


def data_of(volumes: Sequence[JsonObject]) -> Any:
    """Return the data of a plan, by region if it has regions: cutouts, and zeros in place of computed arrays."""
    import xarray as xr

    regions: dict[str, list[JsonObject]] = {}
    for volume in volumes:
        regions.setdefault(str(volume.get("region", "")), []).append(volume)
    if list(regions) != [""]:
        return {name: data_of([volume | {"region": ""} for volume in own]) for name, own in regions.items()}
    arrays = {volume["name"]: _array(volume) for volume in volumes}
    return xr.Dataset(arrays) if all(volume["variable"] for volume in volumes) else next(iter(arrays.values()))


def voxels_decided_by(volume: Volume) -> JsonObject:
    """Return the fields that determine the voxels of a volume, by names that a user knows."""
    position = to_json({"resolution_nm": volume.resolution_nm, "translation_nm": volume.translation_nm})
    if volume.source is None:
        # dask names an array by what it is computed from.
        fields = {"array": volume.array.name, "shape": to_json(volume.array.shape), "dtype": str(volume.array.dtype)}
    else:
        leaves = flat(_cutout_of(volume.source))
        leaves.pop("kind", None)  # determines levels, not voxels: see `Volume.chosen_kind`
        leaves = {name: value for name, value in leaves.items() if not name.startswith(DECIDE_NOTHING)}
        fields = {CALLED.get(name, name): _short(value) for name, value in leaves.items()}
    return {f"{volume.name} {name}": value for name, value in (fields | position).items()}


def difference(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Describe what differs between the fields of two exports, at most five of them."""
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    # Fields that only one export has follow from fields with another value.
    names = [name for name in names if name in before and name in now] or names
    changes = [
        f"{name} is another one"
        if name.endswith(" array")
        else f"{name} was {_text(before.get(name))} and is {_text(now.get(name))}"
        for name in names[:5]
    ]
    return "; ".join(changes) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")


def _array(described: JsonObject) -> xr.DataArray:
    import dask.array as da
    import xarray as xr

    from imagery_dask.arrays.lazy import lazy_dataarray

    if "cutout" in described:
        return lazy_dataarray(from_json(Cutout, described["cutout"]), described["name"])
    array = da.zeros(described["shape"], dtype=described["dtype"], chunks=-1)
    coords, attrs = {}, {}
    if described["resolution_nm"] is not None:
        attrs["resolution_nm"] = described["resolution_nm"]
        for axis, size, step, first in zip(
            AXES, array.shape, described["resolution_nm"], described["translation_nm"], strict=False
        ):
            coords[axis] = first + step * np.arange(size)
    dims = (*AXES, "channel")[: array.ndim]
    return xr.DataArray(array, dims=dims, coords=coords, attrs=attrs, name=described["name"])


def _cutout_of(source: CutoutArray) -> JsonObject:
    """Cutout of a volume as data, without user, password and query of its URL."""
    cutout: JsonObject = to_json(source.cutout)
    return cutout | {"path": without_secrets(cutout["path"])}


def _short(value: object) -> Any:
    """Hash of a long list of ids."""
    if not isinstance(value, list) or len(value) <= LISTED:
        return value
    return f"{len(value)} ids, sha256 {hashlib.sha256(json.dumps(value).encode()).hexdigest()}"


def _text(value: object) -> str:
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---------------------------------------- the storage chunks that blocks read


def source_chunks(reads: Iterable[tuple[BlockPlan, Sequence[CutoutArray | None], XYZ]]) -> int | None:
    """Count the reads of storage chunks by all blocks; None where an array is computed.

    Parameters
    ----------
    reads : iterable of (BlockPlan, sequence of CutoutArray or None, tuple of 3 int)
        Blocks, what each of them reads, and the margin of voxels around a block that is read with it. Margins end
        where the region does.
    """
    total = 0
    for blocks, sources, margin in reads:
        for source in sources:
            if source is None:
                return None
            total += chunk_reads(source, blocks, margin)
    return total


def chunk_reads(source: CutoutArray, blocks: BlockPlan, margin: XYZ = (0, 0, 0)) -> int:
    """Count the storage chunks that blocks of a cutout cross, once for every piece of a block."""
    steps = source.cutout.target.steps_from(source.cutout.mip.grid.resolution_nm)
    return math.prod(_along(source, blocks, axis, margin[axis], steps[axis]) for axis in range(3))


def _along(source: CutoutArray, blocks: BlockPlan, axis: int, margin: int, step: Fraction) -> int:
    """Count the chunks that the pieces of blocks cross along an axis; the product over the axes is the total."""
    cutout = source.cutout
    grid, chunk = cutout.mip.grid, cutout.mip.chunk_shape[axis]
    origin, extent, first_voxel = grid.start[axis], grid.shape[axis], cutout.target.start[axis]
    span = source_span
    if cutout.downsampled:
        span = _covered_span
    elif cutout.order == 1 and cutout.target.resolution_nm != grid.resolution_nm:
        span = _linear_span
    inner = () if blocks.inner is None else blocks.inner[axis]
    edges, reads = sorted({*blocks.edges[axis], *inner}), 0
    for first, stop in pairwise(edges):
        with_margin = max(0, first - margin), min(edges[-1], stop + margin)
        start, end = span(first_voxel + with_margin[0], first_voxel + with_margin[1], step)
        low, high = max(start - origin, 0), min(end - origin, extent)
        reads += -(-high // chunk) - low // chunk if high > low else 0
    return reads


def _covered_span(start: int, stop: int, step: Fraction) -> tuple[int, int]:
    """Return the same as `source_span` for means and modes, which take all voxels that a target voxel covers."""
    return int(start * step), int(stop * step)


def _linear_span(start: int, stop: int, step: Fraction) -> tuple[int, int]:
    """Return the same as `source_span` for linear interpolation, which takes two voxels for one."""
    first, last = (int(linear_taps(voxel, 1, step)[0][0]) for voxel in (start, stop - 1))
    return first, last + 2
