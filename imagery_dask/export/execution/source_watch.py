"""Notice sources that vanish or are rewritten while an export reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import SourceError, SourceGoneError, SourceNotFoundError
from imagery_dask.export.core.base import Export
from imagery_dask.export.core.run_states import StartedRun
from imagery_dask.geometry.grid import start_of, stop_of
from imagery_dask.run import RunReport
from imagery_dask.sources import collect_counts
from imagery_dask.sources.handle import stamp_of
from imagery_dask.urls import without_secrets

__all__ = ["SourceWatch"]

# Stamps of the sources when the run began (`imagery_dask.sources.handle.stamp_of`), by path without secrets.
STAMPS = "sources.json"
# Blocks whose chunks are read again where others were missing.
PROBED = 4


@dataclass
class SourceWatch:
    """Compares the sources of a run at its end, and when it is resumed, with what they were when it began."""

    export: Export
    run: StartedRun

    @cached_property
    def _stamps(self) -> dict[str, JsonObject]:
        """What the sources were when the run began."""
        written = self.run.records.get(STAMPS)
        stamps = written.items() if isinstance(written, dict) else ()
        return {path: stamp for path, stamp in stamps if isinstance(stamp, dict) and "info" in stamp}

    def begin(self) -> None:
        """Write down what the sources are, or compare it with what an earlier call has written down.

        Raises
        ------
        SourceError
            A source has changed since the run began, or cannot be opened.
        """
        now = {without_secrets(path): stamp_of(path, levels, fresh=True) for path, levels in self._levels().items()}
        self._compare(now)
        if now.keys() - self._stamps.keys():
            self._stamps.update({path: stamp for path, stamp in now.items() if path not in self._stamps})
            self.run.records.put(STAMPS, self._stamps)

    def end(self, report: RunReport) -> None:
        """Compare the sources with what they were.

        Raises
        ------
        SourceError
            A source has changed, or has vanished and chunks were missing, whose blocks are done again then.
        """
        now: dict[str, JsonObject] = {}
        for path, levels in self._levels().items():
            name = without_secrets(path)
            try:
                now[name] = stamp_of(path, levels, fresh=True)
                is_gone = now[name].get("data") != self._stamps.get(name, now[name]).get("data")
            except SourceNotFoundError:
                is_gone = True
            if is_gone and report.counts.missing:
                self.run.doubt_missing()
                raise SourceGoneError(
                    f"{path!r} has vanished while it was exported, and chunks were missing before that was noticed. "
                    "Make it accessible again and run the same command again: blocks with missing chunks are then done "
                    "again."
                )
        if report.counts.missing and (incomplete := self._without_chunks()):
            self.run.doubt_missing()
            raise SourceGoneError(
                f"Chunks of {incomplete!r}, of which blocks were written, are missing now, and others may have been "
                "missing for the same reason. Make them accessible again and run the same command again: blocks with "
                "missing chunks are then done again. If they were removed on purpose, start over with overwrite=True "
                "(--overwrite)."
            )
        report.notes += self._compare(now)

    def _without_chunks(self) -> str | None:
        """Return the path of a source without chunks of which blocks were written; a few blocks are looked at."""
        receipts = self.run.records.receipts(self.run.plan.blocks)
        whole = receipts["block"][(receipts["missing"] == 0) & (receipts["chunks"] > 0)]
        for index in sorted(set(np.linspace(0, len(whole) - 1, PROBED).astype(int))) if len(whole) else ():
            part, region = self.run.plan.part_and_region(int(whole[index]))
            start, stop = start_of(region), stop_of(region)
            for source in self.export.format.reads(self.export, part).sources:
                if source is None:
                    continue
                for corner in (start, stop - 1):  # one of them may be outside of the volume
                    with collect_counts() as counts:
                        source.read(source.cutout.target.crop(corner, (1, 1, 1)))
                    if counts.missing:
                        return str(source.cutout.path)
        return None

    def _compare(self, now: dict[str, JsonObject]) -> list[str]:
        """Raise if a source describes itself differently; return notes of those that were only written again."""
        notes = []
        for path, stamp in now.items():
            before = self._stamps.get(path, stamp)
            if before["info"] != stamp["info"]:
                raise SourceError(
                    f"{path!r} has changed since the export of {self.run.target.url} began: its info says other things "
                    "of the voxels that are read. Blocks of the old and the new volume would be mixed; start over with "
                    "overwrite=True (--overwrite), or restore the volume."
                )
            moments = ((before.get(name), stamp[name]) for name in ("written_ns", "modified"))
            if any(None not in pair and pair[0] != pair[1] for pair in moments):
                notes.append(
                    f"The info of {path} was written again while it was exported. If its voxels have changed too, the "
                    "export mixes old and new ones: imagery-dask verify compares blocks with the source."
                )
        return notes

    def _levels(self) -> dict[str, set[int]]:
        """Return the mips that are read of each source."""
        levels: dict[str, set[int]] = {}
        for stage in self.run.plan.stages:
            for part in stage:
                for source in self.export.format.reads(self.export, part).sources:
                    if source is not None:
                        levels.setdefault(source.cutout.path, set()).add(source.cutout.mip.level)
        return levels
