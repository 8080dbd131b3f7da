"""Shares of a run's blocks, done by processes that know nothing of each other, and which of them are at work.

The process that does part I of N holds a lease of its own, ``part-I-of-N.json``, while it writes blocks. The lease on
all of the export is held for a moment by each part that begins or ends, so that one of them makes the empty store and
the last one finds that it is the last; and for as long as it takes by who writes all of it, which is refused while a
part is at work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagery_dask.errors import TargetBusyError
from imagery_dask.records.lease import Lease, holder_of
from imagery_dask.storage.files import Files

__all__ = ["Part", "refuse_other_parts", "refuse_parts", "settle_part", "part_holders"]

WRITTEN = re.compile(r"part-(\d+)-of-(\d+)\.json")
SAID = re.compile(r"(\d+)/(\d+)")
LOOKS_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class Part:
    """Every N-th block of a plan.

    Parameters
    ----------
    part, of : int
        Which part, from 1, of how many.

    Raises
    ------
    ValueError
        There is no such part.
    """

    part: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.part <= self.of:
            raise ValueError(
                f"A part is I/N with I from 1 to N; got {self.part}/{self.of}. Number the tasks of an array from 1 "
                "(sbatch --array=1-N)."
            )

    @classmethod
    def read(cls, text: str) -> Part:
        """Part from text such as ``3/8``."""
        found = SAID.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"A part is I/N, two whole numbers such as 3/8; got {text!r}.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"part {self.part} of {self.of}"

    @property
    def file(self) -> str:
        """Name of its lease."""
        return f"part-{self.part}-of-{self.of}.json"

    def of_blocks(self, blocks: int) -> NDArray[np.bool_]:
        """Which of so many blocks it has, by number."""
        found = np.zeros(blocks, bool)
        found[self.part - 1 :: self.of] = True
        return found


def part_holders(files: Files) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Parts with a lease, and who holds it or held it until a crash (`holder_of`)."""
    for name in _names(files):
        held = holder_of(files, name)
        if held is not None:
            yield _part_of(name), held


def refuse_parts(files: Files, out: str) -> None:
    """Raise `TargetBusyError` while a part is at work; leases of parts that crashed are removed."""
    _refuse(files, out, _names(files))


def refuse_other_parts(files: Files, out: str, share: Part) -> None:
    """Raise `TargetBusyError` while a part of another number of parts is at work: it has blocks of this one."""
    _refuse(files, out, [name for name in _names(files) if _part_of(name).of != share.of])


def settle_part(files: Files, out: str, share: Part) -> None:
    """Raise `TargetBusyError` while another process does this part; its lease is removed where that crashed."""
    if share.file in _names(files):
        with Lease(files, f"{share} of {out}", share.file):
            pass


def _refuse(files: Files, out: str, names: list[str]) -> None:
    def look(name: str) -> None:
        with Lease(files, f"{_part_of(name)} of {out}", name):
            pass  # it was over, and is gone now

    if names:
        with ThreadPoolExecutor(LOOKS_IN_FLIGHT) as threads:
            try:
                list(threads.map(look, names))
            except TargetBusyError as error:
                raise TargetBusyError(
                    f"{error} All of an export, or another number of parts, waits for them."
                ) from None


def _names(files: Files) -> list[str]:
    return sorted(name for name in files.names("part-") if WRITTEN.fullmatch(name))


def _part_of(name: str) -> Part:
    found = WRITTEN.fullmatch(name)
    assert found is not None
    return Part(int(found[1]), int(found[2]))
