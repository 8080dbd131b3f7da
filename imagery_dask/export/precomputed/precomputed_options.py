"""Options of precomputed volumes: encodings, compression, quality, chunks, levels.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from imagery_dask.export.core.writer_arguments import Flag, option, option_by_name
from imagery_dask.export.multiscale.level_layout import VolumeOptions
from imagery_dask.export.precomputed.sharding import Sharding
from imagery_dask.geometry.grid import XYZ
from imagery_dask.serialization import NEWER
from imagery_dask.validate import choice, whole_number

__all__ = ["COMPRESSIBLE", "IMAGE_ENCODINGS", "LABEL_ENCODINGS", "PrecomputedOptions"]

IMAGE_ENCODINGS = ("raw", "jpeg", "png", "jxl")
# Defaults: of imagery and of small integers, and of ids of 32 and 64 bits.
DEFAULT, DEFAULT_OF_LABELS = "raw", "compressed_segmentation"
LABEL_ENCODINGS = ("compressed_segmentation", "raw", "compresso", "crackle")
# CloudVolume compresses chunks of these further; the other encodings are dense already.
COMPRESSIBLE = ("raw", "compressed_segmentation", "compresso", "crackle")
# Largest sides of a libjpeg picture, and of a compresso chunk, whose header has 16 bits for each.
JPEG_SIDE, COMPRESSO_SIDE = 65500, 2**16 - 1
QUALITIES = {"jpeg": (1, 100), "jxl": (0, 100), "png": (0, 9)}


@dataclass(frozen=True, kw_only=True)
class PrecomputedOptions(VolumeOptions):
    """Options of `imagery_dask.to_precomputed` that say what is written.

    Raises
    ------
    ValueError, TypeError
        An option is not valid, whatever the data.
    """

    encoding: str | Mapping[str, str] | None = option_by_name(
        None,
        image=Flag("Encoding of imagery.", choices=IMAGE_ENCODINGS, default=DEFAULT),
        segmentation=Flag(
            f"Encoding of segmentation.  [default: {DEFAULT_OF_LABELS}; {DEFAULT} for ids of 8 and 16 bits]",
            choices=LABEL_ENCODINGS,
        ),
    )
    compress: Literal["auto", "gzip", "br"] | None = option(
        "auto", "Further compression of chunks; auto is gzip in buckets, none on a disk."
    )
    quality: int | None = option(None, "Of jpeg and jxl; compression of png.", minimum=0, maximum=100)
    sharding: Mapping[str, Any] | Literal["auto"] | None = option(
        "auto",
        "Join chunks to shards: auto where there would be more than 100,000 files, none, or the sharding of an info as "
        "JSON.",
        NEWER,
        syntax="sharding",
    )

    copy: Literal["auto", "exact", "never"] = option(
        "auto",
        "Copy chunks of a precomputed source as they are stored: auto where encoding, chunks and bounds agree; exact, "
        "or refuse the export; never.",
        NEWER,
    )

    def __post_init__(self) -> None:
        VolumeOptions.__post_init__(self)
        if not (self.encoding is None or isinstance(self.encoding, (str, Mapping))):
            raise ValueError(f"encoding must be a word, or a mapping of names to words; got {self.encoding!r}.")
        if isinstance(self.encoding, Mapping):
            self._set("encoding", dict(self.encoding))
        choice("compress", self.compress, ("auto", "gzip", "br", None))
        choice("copy", self.copy, ("auto", "exact", "never"))
        if self.copy == "exact" and self.quality is not None:
            raise ValueError(
                "quality is of chunks that are encoded, and copy='exact' encodes none. Leave one of them out."
            )
        self._check_sharding()

    def _check_sharding(self) -> None:
        """Bring `sharding` to its normal form; raise if it is not valid, or compresses chunks unlike `compress`."""
        if self.sharding is None or (isinstance(self.sharding, str) and self.sharding == "auto"):
            return
        if not isinstance(self.sharding, Mapping):
            raise ValueError(f"sharding must be 'auto', None, or the sharding entry of an info; got {self.sharding!r}.")
        sharding = Sharding.from_entry(self.sharding)
        if self.compress != "auto" and (self.compress or "raw") != sharding.data_encoding:
            raise ValueError(
                f"compress={self.compress!r}, and sharding has data_encoding {sharding.data_encoding!r}, which says "
                "how chunks in shards are compressed: gzip or raw. Leave compress out."
            )
        self._set("sharding", sharding.entry)

    def compression(self, encoding: str, in_bucket: bool) -> Literal["gzip", "br"] | None:
        """Return the further compression of chunks of an encoding."""
        if encoding not in COMPRESSIBLE:
            return None
        return ("gzip" if in_bucket else None) if self.compress == "auto" else self.compress

    def check_names(self, names: Sequence[str]) -> None:
        """Raise if `encoding` names volumes that are not written: after a typo, the default would be used silently."""
        named = self.encoding if isinstance(self.encoding, Mapping) else {}
        unknown = [name for name in named if name not in {"image", "segmentation", *names}]
        if unknown:
            raise ValueError(f"encoding names {unknown}; there is {' and '.join(names)}.")

    def encoding_of(self, name: str, labels: bool, dtype: str, channels: int, default: str | None = None) -> str:
        """Return the encoding of a volume.

        Parameters
        ----------
        name : str
            Name of the volume.
        labels : bool
            True for ids, False for imagery.
        dtype : str
            Data type in which voxels are stored.
        channels : int
            Number of channels.
        default : str, optional
            Encoding where none is given.

        Raises
        ------
        ValueError
            There is no such encoding for ids or imagery, or it cannot hold the voxels.
        """
        encoding = (self.encoding.get(name) if isinstance(self.encoding, Mapping) else self.encoding) or default
        if encoding is None:
            dense = labels and dtype in ("uint32", "uint64") and channels == 1
            return DEFAULT_OF_LABELS if dense else DEFAULT
        kind, possible = ("labels", LABEL_ENCODINGS) if labels else ("imagery", IMAGE_ENCODINGS)
        if encoding not in possible:
            why = " Pictures lose bits, and an id that lost one is another id." if encoding in IMAGE_ENCODINGS else ""
            raise ValueError(f"The encoding of {kind} is one of {', '.join(possible)}; got {encoding!r}.{why}")
        can_hold = {
            "jpeg": dtype == "uint8" and channels in (1, 3),
            "jxl": dtype == "uint8" and channels == 1,
            "png": dtype in ("uint8", "uint16") and channels <= 4,
            # CloudVolume encodes one channel of these; of some it drops the others without an error.
            "compressed_segmentation": dtype in ("uint32", "uint64") and channels == 1,
            "compresso": channels == 1 and dtype.startswith("uint"),
            "crackle": channels == 1 and dtype.startswith("uint"),
        }
        if not can_hold.get(encoding, True):
            raise ValueError(
                f"{encoding} cannot hold {dtype} with {channels} channels; choose another encoding, such as raw."
            )
        return encoding

    def check_chunk(self, encoding: str, chunk: XYZ) -> None:
        """Raise ValueError if the encoding cannot hold the chunks of a volume, the largest of which has this shape."""
        x, y, z = chunk
        if encoding == "jpeg" and max(x, y * z) > JPEG_SIDE:
            raise ValueError(
                f"A chunk of {x} x {y} x {z} voxels is a picture of {x:,} columns and {y * z:,} rows (y times z), and "
                f"JPEG holds {JPEG_SIDE:,} of each. Choose smaller chunks (--chunks), or another encoding."
            )
        if encoding == "compresso" and max(chunk) > COMPRESSO_SIDE:
            raise ValueError(
                f"A chunk of {x} x {y} x {z} voxels is too long for compresso, which holds {COMPRESSO_SIDE:,} voxels "
                "along an axis. Choose smaller chunks (--chunks), or another encoding."
            )

    def check_quality(self, encodings: Set[str]) -> None:
        """Raise if `quality` does not apply to the encodings of the volumes, or is outside their range."""
        if self.quality is None:
            return
        with_quality = sorted(encodings & QUALITIES.keys())
        if not with_quality:
            raise ValueError(
                f"quality is of {', '.join(QUALITIES)}; the encoding is {' and '.join(sorted(encodings))}. Leave it "
                "out, or choose such an encoding of the image."
            )
        for encoding in with_quality:
            low, high = QUALITIES[encoding]
            whole_number(f"quality of {encoding}", self.quality, low, high)
