"""The OCDBT store of a world whose supervoxels can be split, in the folders that PyChunkedGraph uses.

``WATERSHED/ocdbt/base/`` is shared by the graphs of a watershed; ``WATERSHED/ocdbt/GRAPH/`` has the files of one
graph's edits and its manifest, which begins as a copy of the shared one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from imagery_dask.annotations import JsonObject
from imagery_dask.testing.cave.graph_layout import Ids

__all__ = ["SplitForm", "SplitStore"]

#: How the info names the store: newer servers by a specification, older ones, whose graphs share edits, by a path.
SplitForm = Literal["spec", "path"]

MANIFEST = "manifest.ocdbt"


class SplitStore:
    """A store on disk, which tensorstore writes.

    Parameters
    ----------
    watershed : Path
        Folder of the watershed.
    graph : str
        Name of the graph.
    mips : sequence of numpy.ndarray
        The watershed at each mip: uint64 (x, y, z).
    form : {"spec", "path"}
        How the info names the store.
    populated : bool
        True to copy the watershed into it; otherwise it has only what was written after splits.

    Attributes
    ----------
    folder : Path
        The folder with the manifest.
    """

    def __init__(
        self, watershed: Path, graph: str, mips: Sequence[Ids], form: SplitForm = "spec", populated: bool = False
    ) -> None:
        self.form = form
        watershed = watershed.resolve()
        base = watershed / "ocdbt" / "base"
        self.folder = base if form == "path" else watershed / "ocdbt" / graph
        self._open(watershed, {"driver": "ocdbt", "base": f"{base.as_uri()}/"}, len(mips), create=True)
        if populated:
            self.write(mips, [((0, 0, 0), mip.shape) for mip in mips])
        if form == "spec":
            self.folder.mkdir()
            shutil.copy(base / MANIFEST, self.folder / MANIFEST)
            self._open(watershed, self._spec(base, graph), len(mips))

    @property
    def info(self) -> JsonObject:
        """Members of ``graph`` in the info."""
        if self.form == "path":
            return {"ocdbt_seg": True, "ocdbt_path": "ocdbt/base"}
        return {"ocdbt_seg": True, "ocdbt_kvstore_spec": self._kvstore}

    def write(self, mips: Sequence[Ids], boxes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> int:
        """Write a box of each mip, widened to storage chunks, in one commit.

        Parameters
        ----------
        mips : sequence of numpy.ndarray
            The supervoxels at each mip: uint64 (x, y, z).
        boxes : sequence of pair
            First voxel of each mip, and one past the last, from the first voxel of the volume.

        Returns
        -------
        int
            Time of the commit, in nanoseconds since 1970.
        """
        import tensorstore

        with tensorstore.Transaction(atomic=True) as transaction:
            for array, voxels, (low, high) in zip(self._arrays, mips, boxes, strict=True):
                chunk, origin = array.chunk_layout.read_chunk.shape, array.domain.origin
                part = tuple(
                    slice(first // size * size, min(-(-last // size) * size, end))
                    for first, last, size, end in zip(low, high, chunk, voxels.shape, strict=False)
                )
                there = tuple(slice(one.start + at, one.stop + at) for one, at in zip(part, origin, strict=False))
                array.with_transaction(transaction)[there].write(voxels[part][..., None]).result()
        manifest = tensorstore.ocdbt.dump(self._arrays[0].kvstore.base).result()
        return int(manifest["versions"][-1]["commit_time"])

    def _spec(self, base: Path, graph: str) -> JsonObject:
        data = f"{graph}_d/"
        layers = [
            {"base": f"{base.as_uri()}/"},
            {"exact": MANIFEST, "base": f"{self.folder.as_uri()}/{MANIFEST}"},
            {"prefix": data, "base": f"{self.folder.as_uri()}/{data}"},
        ]
        prefixes = ("value_data_prefix", "btree_node_data_prefix", "version_tree_node_data_prefix")
        return {"driver": "ocdbt", "base": {"driver": "kvstack", "layers": layers}, **dict.fromkeys(prefixes, data)}

    def _open(self, watershed: Path, kvstore: JsonObject, n_mips: int, create: bool = False) -> None:
        import tensorstore

        self._kvstore = kvstore
        self._arrays: list[Any] = []
        for mip in range(n_mips):
            at: JsonObject = {"driver": "neuroglancer_precomputed", "scale_index": mip}
            schema = tensorstore.open({**at, "kvstore": f"{watershed.as_uri()}/"}).result().schema
            same = {name: getattr(schema, name) for name in ("rank", "dtype", "codec", "domain", "chunk_layout")}
            same["dimension_units"] = schema.dimension_units
            self._arrays.append(tensorstore.open({**at, "kvstore": kvstore}, create=create, **same).result())
