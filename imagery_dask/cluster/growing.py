"""Add workers to a cluster while they make an export faster (``--workers auto``).

A cluster begins with a few workers. When all of them are at work, the blocks that they finish are counted for a while,
and their number is doubled::

    workers          4      8      16        16 ...
    blocks a minute  52     101    118       the 8 added ones gave 0.17 of what 8 others had given: enough

A source or a store that serves no more than this would only serve each of more workers less. That throughput decides,
and not the length of the queue, is what differs from dask's ``adapt``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from imagery_dask.config import config

__all__ = ["Decision", "Grower", "Rate", "WorkDone", "first_count", "next_count"]

# Workers to begin with: so many, or a quarter of the most if that is fewer.
FIRST, FIRST_SHARE = 4, 4
# Added workers must give at least this fraction of what as many had given before.
LEAST_GAIN = 0.5
# Fraction of requests answered with "too many requests" from which the source is the limit.
MOST_THROTTLED = 0.05
# Blocks of each thread that are counted, and that each thread must have left when workers are added.
BLOCKS_EACH = 4
# Fraction of the workers that were asked for that must be connected, on average, while blocks are counted.
LEAST_CONNECTED = 0.75

_logger = logging.getLogger("imagery_dask")


@dataclass(frozen=True, slots=True)
class WorkDone:
    """How far a run is.

    Parameters
    ----------
    done : int
        Blocks that were finished.
    left : int
        Blocks of the present stage that are not.
    requests, throttled : int
        Requests of the finished blocks, and those that were answered with HTTP 429 or 503.
    """

    done: int
    left: int
    requests: int = 0
    throttled: int = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """What workers did in some time.

    Parameters
    ----------
    workers : float
        Mean number of connected workers.
    blocks : int
        Blocks that they finished.
    seconds : float
        The time.
    requests, throttled : int
        As in `WorkDone`, in this time.
    """

    workers: float
    blocks: int
    seconds: float
    requests: int = 0
    throttled: int = 0

    @property
    def per_minute(self) -> float:
        """Blocks in a minute."""
        return 60 * self.blocks / self.seconds


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there shall be.

    Parameters
    ----------
    workers : int
        The number.
    reason : str
        Why no more are added for the rest of the run; "" if more may follow.
    """

    workers: int
    reason: str = ""


def first_count(least: int, most: int) -> int:
    """Return the number of workers to begin with.

    Examples
    --------
    >>> first_count(1, 100), first_count(1, 8), first_count(1, 2), first_count(10, 100)
    (4, 2, 1, 10)
    """
    return min(most, max(least, min(FIRST, -(-most // FIRST_SHARE))))


def next_count(asked: int, before: Rate | None, now: Rate, most: int) -> Decision:
    """Return how many workers there shall be after a measurement, if blocks enough are left.

    Parameters
    ----------
    asked : int
        Workers that were asked for.
    before : Rate or None
        Measured with fewer workers.
    now : Rate
        Measured with these workers.
    most : int
        Largest number of workers.

    Examples
    --------
    >>> next_count(8, Rate(4, 40, 60), Rate(8, 76, 60), most=100)
    Decision(workers=16, reason='')
    >>> next_count(16, Rate(8, 195, 60), Rate(16, 210, 60), most=100).reason
    '16 workers write 210 blocks/min, 8 wrote 195: the source or the store is the limit, and no more are added.'
    """
    if now.throttled > MOST_THROTTLED * now.requests:
        return Decision(asked, (
            f"the source answered {now.throttled:,} of {now.requests:,} requests of {now.workers:.0f} workers with "
            "'too many requests' (HTTP 429 or 503): it is the limit, and no more are added."
        ))  # fmt: skip
    if before is not None and now.workers > before.workers:
        as_before = before.per_minute * (now.workers / before.workers - 1)
        if now.per_minute - before.per_minute < LEAST_GAIN * as_before:
            return Decision(asked, (
                f"{now.workers:.0f} workers write {now.per_minute:,.3g} blocks/min, {before.workers:.0f} wrote "
                f"{before.per_minute:,.3g}: the source or the store is the limit, and no more are added."
            ))  # fmt: skip
    if asked >= most:
        return Decision(asked, f"{asked} workers are the most that are allowed.")
    return Decision(min(2 * asked, most))


@dataclass
class Grower:
    """Asks a cluster for more workers as long as the last ones have made the run faster.

    Parameters
    ----------
    scale : callable
        Asks the cluster for a number of workers; returns a future if it takes a while.
    asked : int
        Workers that were asked for so far.
    most : int
        Largest number of workers.
    clock : callable
        Returns the time in seconds.

    Attributes
    ----------
    note : str
        Why no more workers are added; "" as long as more may be.
    """

    scale: Callable[[int], Future[None] | None]
    asked: int
    most: int
    clock: Callable[[], float] = time.monotonic
    note: str = ""
    # The measurement with fewer workers, and the one under way.
    _before: Rate | None = None
    _count: _Count | None = None
    _left: int = 0
    _scaling: Future[None] | None = field(default=None, repr=False)

    def look(self, workers: int, threads: int, work: WorkDone) -> None:
        """Go on counting, and ask for more workers when that is due.

        Parameters
        ----------
        workers, threads : int
            Connected workers, and their threads.
        work : WorkDone
            How far the run is.
        """
        now = self.clock()
        if work.left > self._left:  # another stage, whose blocks take another time
            self._before = self._count = None
        self._left = work.left
        if self.note or self._is_scaling():
            return
        if self._count is None:
            if workers >= self.asked:
                self._count = _Count(now, work, threads)
            return
        self._count.go_on(now, work, workers)
        rate = self._count.rate(work, threads)
        if rate is None:
            return
        self._count = None
        if rate.workers < LEAST_CONNECTED * self.asked:
            return
        decision = next_count(self.asked, self._before, rate, self.most)
        if decision.reason:
            self._end(decision.reason)
        elif work.left >= BLOCKS_EACH * decision.workers * threads / max(1, workers):
            self._before, self.asked = rate, decision.workers
            _logger.info("%d workers are asked for.", self.asked)
            try:
                self._scaling = self.scale(self.asked)
            except Exception as error:  # a gateway that does not answer
                self._end(_refusal(error))

    def _is_scaling(self) -> bool:
        """Return True while the cluster is being asked; end if it refuses."""
        if self._scaling is None:
            return False
        if not self._scaling.done():
            return True
        scaling, self._scaling = self._scaling, None
        if (error := scaling.exception()) is not None:
            self._end(_refusal(error))
        return False

    def _end(self, reason: str) -> None:
        self.note = reason
        _logger.info("Workers: %s", reason)


def _refusal(error: BaseException) -> str:
    return f"no more workers can be started: {' '.join(str(error).split())}"


@dataclass
class _Count:
    """Counts blocks: not those that were under way when it began, the first of which are slow on new workers."""

    since: float
    begun: WorkDone
    threads: int
    is_warm: bool = False
    # Sum of the numbers of workers, each times its seconds; and until when.
    worker_s: float = 0.0
    until: float = 0.0

    def go_on(self, now: float, work: WorkDone, workers: int) -> None:
        if not self.is_warm:
            # Each thread ends a block that it had before, or opens volumes for its first one.
            if work.done - self.begun.done >= 2 * self.threads:
                self.is_warm, self.since, self.until, self.begun = True, now, now, work
            return
        self.worker_s += workers * (now - self.until)
        self.until = now

    def rate(self, work: WorkDone, threads: int) -> Rate | None:
        """Return what was measured, when it is enough."""
        seconds, blocks = self.until - self.since, work.done - self.begun.done
        if not self.is_warm or blocks < BLOCKS_EACH * threads or seconds < config.get("run.measure_s"):
            return None
        return Rate(
            self.worker_s / seconds, blocks, seconds, work.requests - self.begun.requests,
            work.throttled - self.begun.throttled,
        )  # fmt: skip
