"""Parts of an export, which independent processes write, and their leases.

A process that writes part I of N holds the lease ``part-I-of-N.json`` while it writes blocks. It holds the lease on the
export for a moment when it starts and when it ends, so that one process creates the empty store and the last one to end
finishes the export. A process that writes a whole export holds that lease all the time; it is refused while a part is
running.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import TargetBusyError
from imagery_dask.records.lease import Lease, brief_lease, holder_of
from imagery_dask.storage.atomic_files import Files

__all__ = ["Part", "refuse_other_parts", "refuse_parts", "settle_part", "part_holders"]

LEASE_NAME = re.compile(r"part-(\d+)-of-(\d+)\.json")
TEXT = re.compile(r"(\d+)/(\d+)")
LOOKS_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class Part:
    """Every N-th block of a plan.

    Parameters
    ----------
    number : int
        Number of the part, from 1.
    parts : int
        Number of parts.

    Raises
    ------
    ValueError
        If `number` is not within 1 to `parts`.
    """

    number: int
    parts: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.parts:
            raise ValueError(
                f"A part is I/N with I from 1 to N; got {self.number}/{self.parts}. Number the tasks of an array from "
                "1 (sbatch --array=1-N)."
            )

    @classmethod
    def read(cls, text: str) -> Part:
        """Return the part that a text such as ``3/8`` names."""
        numbers = TEXT.fullmatch(text.strip())
        if numbers is None:
            raise ValueError(f"A part is I/N, two whole numbers such as 3/8; got {text!r}.")
        return cls(int(numbers[1]), int(numbers[2]))

    def __str__(self) -> str:
        return f"part {self.number} of {self.parts}"

    @property
    def file(self) -> str:
        """File name of its lease."""
        return f"part-{self.number}-of-{self.parts}.json"

    def of_blocks(self, blocks: int) -> NDArray[np.bool_]:
        """Return a mask of the blocks of this part, by number."""
        mask = np.zeros(blocks, bool)
        mask[self.number - 1 :: self.parts] = True
        return mask


def part_holders(files: Files) -> Iterator[tuple[Part, JsonObject]]:
    """Yield the parts that have a lease, and its holder, which may have crashed (`holder_of`)."""
    for part in _parts(files):
        held = holder_of(files, part.file)
        if held is not None:
            yield part, held


def refuse_parts(files: Files, url: str) -> None:
    """Raise `TargetBusyError` while a part is running; remove the leases of parts that crashed."""
    _refuse(files, url, _parts(files))


def refuse_other_parts(files: Files, url: str, part: Part) -> None:
    """Raise `TargetBusyError` while a part of another N is running, since it has blocks of this part."""
    _refuse(files, url, [other for other in _parts(files) if other.parts != part.parts])


def settle_part(files: Files, url: str, part: Part) -> None:
    """Raise `TargetBusyError` while another process writes this part; remove its lease if that process crashed."""
    if part in _parts(files):
        with brief_lease(files, f"{part} of {url}", part.file):
            pass  # another process may have been removing it at the same moment


def _refuse(files: Files, url: str, parts: list[Part]) -> None:
    def settle(part: Part) -> None:
        with Lease(files, f"{part} of {url}", part.file, "open"):
            pass  # the process had crashed; the lease is removed at the end

    if parts:
        with ThreadPoolExecutor(LOOKS_IN_FLIGHT) as threads:
            try:
                list(threads.map(settle, parts))
            except TargetBusyError as error:
                raise TargetBusyError(
                    f"{error} A whole export, or another number of parts, must wait for the running parts."
                ) from None


def _parts(files: Files) -> list[Part]:
    """List the parts whose leases exist."""
    names = (LEASE_NAME.fullmatch(name) for name in files.names("part-"))
    return sorted((Part(int(name[1]), int(name[2])) for name in names if name), key=lambda part: part.file)
