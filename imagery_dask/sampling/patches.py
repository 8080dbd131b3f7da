"""Chosen patches: their voxels, batches, and the manifest that reproduces them."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import Array, JsonObject
from imagery_dask.arrays.cutout_array import CutoutArray
from imagery_dask.arrays.lazy import described
from imagery_dask.geometry.grid import VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.model.cutout import Cutout
from imagery_dask.sampling.boxes import Box
from imagery_dask.serialization import from_json, to_json
from imagery_dask.sources import normalize_path
from imagery_dask.storage.atomic_files import Files
from imagery_dask.urls import without_secrets
from imagery_dask.validate import choice, expanded_path, whole_number

if TYPE_CHECKING:
    from imagery_dask.sampling.torch_patches import TorchPatches

__all__ = ["Patches"]

FORMAT, VERSION = "imagery_dask.patches", 1

Sample = dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Patches(Sequence[Sample]):
    """Patches of one shape; each is read when it is taken.

    ``patches[i]`` reads patch i: a dict of ``image`` and ``segmentation`` (numpy arrays with axes x, y, z and, of an
    image with several, channel; ids in the stored dtype), ``number`` (which patch of the manifest it is), and
    ``root_id`` or ``row`` where patches were chosen by objects or by a table. ``patches[a:b]`` selects patches. Make
    them with a `Sampler`, or with `load`.

    Parameters
    ----------
    cutouts : mapping of str to Cutout
        What is read, by ``"image"`` and ``"segmentation"``.
    shape : tuple of 3 int
        Voxels of a patch.
    boxes : tuple of Box
        Where patches were drawn from.
    starts : numpy.ndarray of int64, shape (n, 3)
        First voxel x, y, z of each patch, absolute, in voxels of the cutouts' grid.
    box_of : numpy.ndarray of int64, shape (n,)
        Index of the box that each patch lies in.
    numbers : numpy.ndarray of int64, shape (n,)
        Index of each patch in the manifest.
    chosen : dict
        How patches were chosen: ``by``, ``seed`` and other arguments.
    root_ids : numpy.ndarray of uint64, shape (n,), or None
        Object that each patch was chosen for.
    rows : numpy.ndarray of int64, shape (n,), or None
        Row of the points table that each patch was chosen for, from 0.
    tried : int
        Candidates that were looked at.
    left_out : int
        Points whose patch lies in no box.
    """

    cutouts: Mapping[str, Cutout]
    shape: Vec3[int]
    boxes: tuple[Box, ...]
    starts: NDArray[np.int64]
    box_of: NDArray[np.int64]
    numbers: NDArray[np.int64]
    chosen: JsonObject
    root_ids: NDArray[np.uint64] | None = None
    rows: NDArray[np.int64] | None = None
    tried: int = 0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (slice, np.ndarray, list)):
            return self._selected(np.arange(len(self))[index])
        number = range(len(self))[index]
        grid = self.grid(number)
        # In C order, in which patches are stacked to batches.
        sample: Sample = {name: CutoutArray(cutout).read(grid, "C") for name, cutout in self.cutouts.items()}
        for name, cutout in self.cutouts.items():
            if cutout.channels == 1:
                sample[name] = sample[name][..., 0]
        sample["number"] = int(self.numbers[number])
        for name, of_patch in (("root_id", self.root_ids), ("row", self.rows)):
            if of_patch is not None:
                sample[name] = of_patch[number]
        return sample

    def __repr__(self) -> str:
        splits = ", ".join(f"{n} {split}" for split, n in self.counts().items() if split)
        x, y, z = self.shape
        return (
            f"<Patches: {len(self)} of {x}x{y}x{z} voxels of {self.resolution_nm} nm, {' and '.join(self.cutouts)}"
            f"{f' ({splits})' if splits else ''}, chosen by {self.chosen.get('by')}, {self.tried} tried>"
        )

    @property
    def resolution_nm(self) -> Vec3[float]:
        """Size of the patches' voxels along x, y, z in nm."""
        return next(iter(self.cutouts.values())).target.resolution_nm

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Lower (inclusive) and upper (exclusive) corners in voxels of `resolution_nm`, shape (n, 2, 3)."""
        return np.stack([self.starts, self.starts + np.asarray(self.shape)], axis=1)

    @property
    def splits(self) -> list[str]:
        """Split of each patch; "" without splits."""
        return [self.boxes[index].split for index in self.box_of]

    @property
    def regions(self) -> list[str]:
        """Region of each patch."""
        return [self.boxes[index].region for index in self.box_of]

    def counts(self) -> dict[str, int]:
        """Return the number of patches of each split."""
        names = self.splits
        return {split: names.count(split) for split in dict.fromkeys(box.split for box in self.boxes)}

    def split(self, name: str) -> Patches:
        """Return the patches of a split.

        Raises
        ------
        ValueError
            There is no such split.
        """
        choice("name", name, tuple(self.counts()))
        return self._selected(np.array([split == name for split in self.splits], dtype=bool))

    def grid(self, index: int) -> VoxelGrid:
        """Return the voxels of a patch."""
        return VoxelGrid(Vec3.of(self.starts[index].tolist()), self.shape, self.resolution_nm)

    def order(self, shuffle: int | Sequence[int] | None = None) -> NDArray[np.int64]:
        """Return indices of all patches: in order, or shuffled by a seed, which gives the same order again."""
        if shuffle is None:
            return np.arange(len(self))
        return np.random.default_rng(shuffle).permutation(len(self))

    def batches(
        self, size: int, *, shuffle: int | Sequence[int] | None = None, drop_last: bool = False, threads: int = 8
    ) -> Iterator[Sample]:
        """Yield batches of patches as numpy arrays; the next batch is read while one is used.

        Parameters
        ----------
        size : int
            Patches in a batch; the last has fewer where they do not divide evenly.
        shuffle : int or sequence of int, optional
            Seed of the order, such as ``[seed, epoch]``; by default the order of the manifest.
        drop_last : bool
            Leave out a last batch with fewer patches.
        threads : int
            Patches that are read at a time.

        Yields
        ------
        dict of str to numpy.ndarray
            As of a patch, with the batch as first axis: n, x, y, z(, channel); ids keep their dtype.
        """
        size, order = whole_number("size", size), self.order(shuffle)
        stop = len(order) // size * size if drop_last else len(order)
        waiting: deque[list[Future[Sample]]] = deque()
        with ThreadPoolExecutor(whole_number("threads", threads)) as pool:
            try:
                for first in range(0, stop, size):
                    waiting.append([pool.submit(self.__getitem__, int(i)) for i in order[first : first + size]])
                    if len(waiting) > 1:
                        yield _stacked(waiting.popleft())
                while waiting:
                    yield _stacked(waiting.popleft())
            finally:
                for future in (future for batch in waiting for future in batch):
                    future.cancel()

    def torch_dataset(
        self, *, shuffle: int | None = None, transform: Any = None, rank: int = 0, world_size: int = 1
    ) -> TorchPatches:
        """Return the patches as a PyTorch ``IterableDataset``, for a ``DataLoader`` with any number of workers.

        Parameters
        ----------
        shuffle : int, optional
            Seed of the order, which differs between epochs (see `TorchPatches.set_epoch`). By default patches come in
            order.
        transform : callable, optional
            Called with each patch, in the worker; returns what the dataset yields.
        rank, world_size : int
            Process of distributed training, and how many there are; each reads its own patches.

        Raises
        ------
        ImportError
            torch is not installed.
        """
        from imagery_dask.sampling.torch_patches import TorchPatches

        return TorchPatches(self, shuffle, transform, rank, world_size)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest: a JSON file from which `load` makes the same patches on any machine.

        It has the sources without user, password and query, the mips, the timestamp of a dynamic segmentation, the
        shape, the boxes, the seed, and the exact voxel bounds, region and split of each patch. Ids above 2**53 are
        strings.
        """
        folder, _, name = os.fspath(expanded_path(path)).rpartition("/")
        content = self._manifest()
        patches = ",\n".join(json.dumps(patch) for patch in content.pop("patches"))
        head = json.dumps(content, indent=1).removesuffix("\n}")
        Files.at(folder or ".").put(name, f'{head},\n "patches": [\n{patches}\n]}}\n'.encode())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        image_source: str | None = None,
        segmentation_source: str | None = None,
    ) -> Patches:
        """Read a manifest.

        Parameters
        ----------
        path : str or path
            File that `save` has written.
        image_source, segmentation_source : str, optional
            Where the same volumes are on this machine; by default the sources of the manifest. A volume with other
            mips, sizes or chunks is refused when a patch is read.

        Raises
        ------
        ValueError
            The file is not a manifest, is damaged, or has another version.
        """
        try:
            content = json.loads(Path(expanded_path(path)).read_bytes())
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} is not a manifest of patches, as Patches.save writes it.")
        if content.get("version") != VERSION:
            raise ValueError(f"{path} has version {content.get('version')!r}, and this program reads {VERSION}.")
        try:
            return cls._of(content, {"image": image_source, "segmentation": segmentation_source})
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{path} is damaged: {error}.") from error

    @classmethod
    def _of(cls, content: JsonObject, sources: Mapping[str, str | None]) -> Patches:
        cutouts = {}
        for name, volume in content["volumes"].items():
            cutout = from_json(Cutout, volume["cutout"])
            source = sources.get(name)
            cutouts[name] = cutout if source is None else replace(cutout, path=normalize_path(source))
        nm = next(iter(cutouts.values())).target.resolution_nm
        boxes = tuple(
            Box(box["region"], box["split"], VoxelGrid.between(box["start"], box["stop"], nm))
            for box in content["boxes"]
        )
        patches = content["patches"]
        starts = np.array([patch["start"] for patch in patches], dtype=np.int64).reshape(-1, 3)
        found = cls(
            cutouts=cutouts, shape=Vec3.of(content["shape"]).map(int), boxes=boxes, starts=starts,
            box_of=np.array([patch["box"] for patch in patches], dtype=np.int64),
            numbers=np.array([patch["number"] for patch in patches], dtype=np.int64), chosen=content["chosen"],
            root_ids=_column(patches, "root_id", np.uint64), rows=_column(patches, "row", np.int64),
            tried=int(content["tried"]), left_out=int(content["left_out"]),
        )  # fmt: skip
        for index, box in enumerate(boxes):
            if not box.holds(starts[found.box_of == index], found.shape).all():
                raise ValueError(f"a patch lies outside of its box {index}")
        return found

    def _manifest(self) -> JsonObject:
        def of_volume(cutout: Cutout) -> JsonObject:
            content: JsonObject = to_json(cutout)
            content["path"] = without_secrets(content["path"])
            return described(cutout) | {"cutout": content}

        columns: dict[str, list[Any]] = {
            "number": self.numbers.tolist(), "box": self.box_of.tolist(), "region": self.regions,
            "split": self.splits, "start": self.bounds[:, 0].tolist(), "stop": self.bounds[:, 1].tolist(),
        }  # fmt: skip
        columns |= {} if self.root_ids is None else {"root_id": self.root_ids.tolist()}
        columns |= {} if self.rows is None else {"row": self.rows.tolist()}
        content: JsonObject = to_json({
            "format": FORMAT, "version": VERSION, "shape": self.shape, "resolution_nm": self.resolution_nm,
            "chosen": self.chosen, "tried": self.tried, "left_out": self.left_out,
            "volumes": {name: of_volume(cutout) for name, cutout in self.cutouts.items()},
            "boxes": [{"region": box.region, "split": box.split, "start": box.grid.start, "stop": box.grid.stop}
                      for box in self.boxes],
            "patches": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        })  # fmt: skip
        return content

    def _selected(self, picked: Array) -> Patches:
        of_patch = ("starts", "box_of", "numbers", "root_ids", "rows")
        values = {name: getattr(self, name) for name in of_patch if getattr(self, name) is not None}
        return replace(self, **{name: value[picked] for name, value in values.items()})


def _column(patches: Sequence[JsonObject], name: str, dtype: type) -> Any:
    """Return a value of each patch as an array; None where patches have none. Large ids are strings."""
    if not patches or name not in patches[0]:
        return None
    return np.array([int(patch[name]) for patch in patches], dtype=dtype)


def _stacked(reads: Sequence[Future[Sample]]) -> Sample:
    samples = [read.result() for read in reads]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
