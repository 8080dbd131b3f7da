"""The contents of a volume's ``info``, as values: its mips, their voxel grids and how they are stored.

The format is Neuroglancer's precomputed volume format
(https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import SourceError
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.chunkedgraph import ChunkedGraph
from imagery_dask.model.labels import Kind, are_ids
from imagery_dask.serialization import NEWER
from imagery_dask.urls import redacted
from imagery_dask.validate import integer

__all__ = ["Layer", "Mip"]


@dataclass(frozen=True, slots=True)
class Mip:
    """One resolution level of a layer.

    Parameters
    ----------
    level : int
        Index of the level; 0 is the finest.
    key : str
        Folder of the level below the layer.
    grid : VoxelGrid
        All voxels of the level.
    chunk_shape : tuple of 3 int
        Voxels of one storage chunk along x, y, z.
    encoding : str
        For instance ``"raw"``, ``"jpeg"`` or ``"compressed_segmentation"``.
    minishard_chunks : int or None
        Storage chunks in one minishard, or None for a level that is not sharded.
    chunk_channels : int or None
        Channels of one storage chunk; None for all of the layer.
    refusal : str
        Why the level cannot be read, if so.
    compressor : str
        Compressor of chunks of zarr with its parameters, where they are nothing but their compressed voxels, from which
        it follows if they are copied; "" otherwise, and in plans of earlier versions.
    """

    level: int
    key: str
    grid: VoxelGrid
    chunk_shape: Vec3[int]
    encoding: str
    minishard_chunks: int | None = None
    chunk_channels: int | None = field(default=None, metadata=NEWER)
    refusal: str = field(default="", metadata=NEWER)
    compressor: str = field(default="", compare=False, repr=False, metadata=NEWER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk_shape", Vec3.of(self.chunk_shape))

    @property
    def is_placeholder(self) -> bool:
        """True if the level holds no data that can be read."""
        return bool(self.refusal) or "placeholder" in self.key.lower()

    @property
    def is_sharded(self) -> bool:
        """True if storage chunks are packed into shard files."""
        return self.minishard_chunks is not None

    @property
    def chunk_count(self) -> int:
        """Number of storage chunks that cover the level."""
        return self.grid.shape.ceil_div(self.chunk_shape).prod()


@dataclass(frozen=True, slots=True)
class Layer:
    """A precomputed layer: imagery or segmentation at several mips.

    Parameters
    ----------
    path : str
        Cloud path.
    kind : str
        ``"image"`` or ``"segmentation"``.
    dtype : str
        Data type of the voxels.
    channels : int
        Values per voxel.
    mips : tuple of Mip
        Levels, finest first.
    graph : ChunkedGraph or None
        The graph with the root ids of the layer's supervoxels; None for a flat layer.
    given_kind : {"image", "segmentation"} or None
        What the caller says that voxels are, whatever the info says.
    """

    path: str
    kind: str
    dtype: str
    channels: int
    mips: tuple[Mip, ...]
    graph: ChunkedGraph | None = None
    given_kind: Kind | None = None

    @property
    def told_kind(self) -> Kind | None:
        """What voxels are where the caller says so, or the info of a segmentation; None leaves it to the data type."""
        return self.given_kind or ("segmentation" if self.kind == "segmentation" else None)

    @property
    def holds_ids(self) -> bool:
        """True if voxels are ids: the caller says so, or the info, or they are integers of 32 bits and more."""
        return are_ids(self.dtype) if self.told_kind is None else self.told_kind == "segmentation"

    @classmethod
    def from_info(cls, path: str, info: JsonObject, graph: ChunkedGraph | None = None) -> Layer:
        """Read the parsed ``info`` JSON of a volume; `volume_info.check_info` checks it in detail.

        Raises
        ------
        SourceError
            If it is the info of something else (a mesh, an annotation layer) or is incomplete.
        """
        try:
            mips = tuple(_mip(level, scale) for level, scale in enumerate(info["scales"]))
            if not mips:
                raise ValueError("scales")
            kind, dtype = str(info["type"]).lower(), str(info["data_type"]).lower()
            return cls(path, kind, dtype, int(info["num_channels"]), mips, graph)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SourceError(
                f"{path!r} is not an image or segmentation volume: its info has no usable {error}. "
                "Give the folder that holds a precomputed volume's info file."
            ) from error

    @property
    def first_mip(self) -> int:
        """First level that holds data."""
        for mip in self.mips:
            if not mip.is_placeholder:
                return mip.level
        raise SourceError(f"Every mip of {self.path!r} is a placeholder: the layer holds no data.")

    def mip(self, level: int) -> Mip:
        """Return a level by its index.

        Raises
        ------
        ValueError
            If the level does not exist, or is a placeholder.
        """
        if not 0 <= integer("mip", level) < len(self.mips):
            raise ValueError(
                f"mip {level} does not exist in {redacted(self.path)!r}, which has mips 0 to {len(self.mips) - 1}."
            )
        mip = self.mips[int(level)]
        if mip.refusal:
            raise ValueError(f"mip {level} of {redacted(self.path)!r} cannot be read: {mip.refusal}.")
        if mip.is_placeholder:
            raise ValueError(
                f"mip {level} of {redacted(self.path)!r} is a placeholder without data; "
                f"the first mip with data is {self.first_mip}."
            )
        return mip


def _mip(level: int, scale: JsonObject) -> Mip:
    resolution_nm = Vec3.of(scale["resolution"]).map(float)
    grid = VoxelGrid(scale.get("voxel_offset") or Vec3(0, 0, 0), scale["size"], resolution_nm)
    chunk_shape = Vec3.of(scale["chunk_sizes"][0]).map(int)
    sharding = scale.get("sharding")
    per_minishard = 2 ** int(sharding["preshift_bits"]) if sharding else None
    return Mip(level, str(scale["key"]), grid, chunk_shape, str(scale["encoding"]).lower(), per_minishard)
