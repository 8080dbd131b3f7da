"""The result of a check of a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from imagery_dask.annotations import JsonObject
from imagery_dask.cards import Card, CardTable
from imagery_dask.checking.level_methods import METHODS, Tally
from imagery_dask.geometry.vec import Vec3
from imagery_dask.humanize import human_bytes, human_time
from imagery_dask.serialization import to_json

__all__ = ["CheckedLevel", "ComparedLevels", "DamagedChunk", "VolumeReport"]

# Share of the voxels of levels compressed with loss that may differ by more than the loss.
LOSSY_SHARE = 0.01
# Shares of voxels that differ from two methods by no more than this are about equal.
ALIKE = 0.05
NAMED_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DamagedChunk:
    """A chunk that does not decode.

    Parameters
    ----------
    level : str
        Name of the level.
    key : str
        Name of the chunk: of its file, where it has one of its own.
    reason : str
        Why it does not decode.
    """

    level: str
    key: str
    reason: str


@dataclass(slots=True)
class CheckedLevel:
    """A level whose chunks were read.

    Parameters
    ----------
    name : str
        ``level 0``, or ``labels/nuclei level 0`` of labels in an image.
    key : str
        Folder of the level.
    chunks : int
        Chunks that the level has by its metadata.
    read : int
        Chunks that were looked for: fewer with a sample.
    missing : int
        Chunks that do not exist, in a format that stores all of them, and those that are refused or absent.
    refused_or_absent : int
        Chunks of these for which a server answers HTTP 403 in both cases, of any format.
    not_stored : int
        Chunks that do not exist because the format need not store them: they are the fill value.
    damaged : int
        Chunks that do not decode.
    stored_bytes : int
        Bytes of the chunks, as stored.
    skipped : str
        Why the level was not read, if so.
    """

    name: str
    key: str
    chunks: int
    read: int = 0
    missing: int = 0
    refused_or_absent: int = 0
    not_stored: int = 0
    damaged: int = 0
    stored_bytes: int = 0
    skipped: str = ""


@dataclass(slots=True)
class ComparedLevels:
    """A level that was compared with the finer one on samples.

    Parameters
    ----------
    level, finer : str
        Names of the levels.
    factor : tuple of 3 int
        Voxels of the finer level that make one voxel; 0 where that is not a whole number.
    samples : int
        Boxes that were compared.
    is_lossy : bool
        Whether voxels are compressed with loss, so that a method fits if 1% of the voxels differ by more than that.
    methods : dict of str to Tally
        What differs from each method of downsampling.
    skipped : str
        Why the levels were not compared, if so.
    """

    level: str
    finer: str
    factor: Vec3[int]
    samples: int = 0
    is_lossy: bool = False
    methods: dict[str, Tally] = field(default_factory=dict)
    skipped: str = ""

    def share(self, method: str) -> float:
        """Return the share of the voxels that differ from a method; at the edges only where there are no others."""
        tally = self.methods[method]
        differing, voxels = (tally.differing, tally.voxels) if tally.voxels else (tally.cut_differing, tally.cut)
        return differing / voxels if voxels else 0.0

    @property
    def fitting(self) -> list[str]:
        """Names of the methods that fit, the nearest or most common one first."""
        most = LOSSY_SHARE if self.is_lossy else 0.0
        fits = [name for name in self.methods if self.share(name) <= most]
        if self.is_lossy:
            return sorted(fits, key=lambda name: (self.methods[name].distance, _rank(name)))
        return sorted(fits, key=lambda name: (self.methods[name].cut_differing > 0, _rank(name)))

    @property
    def nearest(self) -> str:
        """Name of the method from which the fewest voxels differ; of about as many, that with the nearest voxels."""
        fewest = min(self.methods, key=lambda name: (self.share(name), _rank(name)))
        if not self.methods[fewest].distance:  # of ids
            return fewest
        alike = [name for name in self.methods if self.share(name) <= self.share(fewest) + ALIKE]
        return min(alike, key=lambda name: (self.methods[name].distance or math.inf, _rank(name)))

    @property
    def fits(self) -> bool:
        """True unless voxels were compared and no method fits."""
        return not self.methods or bool(self.fitting)


def _rank(name: str) -> tuple[int, str]:
    return METHODS.index(name.partition(",")[0]), name


@dataclass(slots=True)
class VolumeReport:
    """Result of `verify_volume`.

    Parameters
    ----------
    path : str
        The volume.
    levels : list of CheckedLevel
        What was found of the chunks of each level.
    compared : list of ComparedLevels
        What was found of each level and the finer one.
    damaged : list of DamagedChunk
        The first thousand chunks that do not decode.
    missing_keys : list of str
        The first few chunks that are missing, of each level.
    unread : list of str
        The first few boxes that could not be read, because the store did not answer, and reasons.
    unread_boxes : int
        Number of these.
    seconds : float
        Wall time.
    read_bytes : int
        Uncompressed bytes of the voxels that were read.
    """

    path: str
    levels: list[CheckedLevel] = field(default_factory=list)
    compared: list[ComparedLevels] = field(default_factory=list)
    damaged: list[DamagedChunk] = field(default_factory=list)
    missing_keys: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    unread_boxes: int = 0
    seconds: float = 0.0
    read_bytes: int = 0

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    @property
    def ok(self) -> bool:
        """Return True if all chunks are there and decode, and each level fits the finer one by some method."""
        sound = not any(level.damaged or level.missing for level in self.levels)
        return sound and not self.unread_boxes and all(pair.fits for pair in self.compared)

    def to_json(self) -> JsonObject:
        """Return the report as JSON types, with what follows from it: `ok`, and the methods that fit each level."""
        compared = [
            to_json(pair)
            | {"fitting": pair.fitting, "nearest": pair.nearest if pair.methods else None}
            | {"shares": {name: pair.share(name) for name in pair.methods}}
            for pair in self.compared
        ]
        return to_json(self) | {"ok": self.ok, "compared": compared}  # type: ignore[no-any-return]

    def _card(self) -> Card:
        """Return the summary of the report."""
        read, chunks = sum(level.read for level in self.levels), sum(level.chunks for level in self.levels)
        stored = sum(level.stored_bytes for level in self.levels)
        rows = [
            ("chunks", f"{read:,} of {chunks:,} read, {human_bytes(stored)} stored"),
            ("read", f"{human_bytes(self.read_bytes)} uncompressed in {human_time(self.seconds)}"),
            *((pair.level, f"{', '.join(pair.fitting)} of {pair.finer}") for pair in self.compared if pair.fitting),
        ]
        found = [
            (sum(level.damaged for level in self.levels), "chunks do not decode"),
            (sum(level.missing for level in self.levels), "chunks are missing"),
            (
                sum(level.refused_or_absent for level in self.levels),
                "of these are refused or absent (HTTP 403 for both)",
            ),
            (self.unread_boxes, "boxes could not be read"),
        ]
        problems = [f"{number:,} {what}." for number, what in found if number]
        problems += [f"{pair.level} fits {pair.finer} by no method." for pair in self.compared if not pair.fits]
        problems += [f"{chunk.key}: {chunk.reason}" for chunk in self.damaged[:NAMED_SHOWN]]
        heads = ["level", "chunks", "read", "missing", "not stored", "damaged"]
        numbers = [[one.chunks, one.read, one.missing, one.not_stored, one.damaged] for one in self.levels]
        cells = [[level.name, *(f"{n:,}" for n in row)] for level, row in zip(self.levels, numbers, strict=True)]
        table = CardTable("Levels", heads, cells)
        return Card(f"VolumeReport: {'sound' if self.ok else 'not sound'}", rows, [table], problems)
