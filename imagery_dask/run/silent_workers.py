"""Notice workers that are connected but silent: stopped, on a frozen machine, or beyond a broken network.

dask removes a worker that has sent no heartbeat for ``distributed.scheduler.worker-ttl``, which is five minutes, and
looks every five minutes. Here the user hears of it early, and its blocks are given to others after `run.silent_s`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed import Client

from imagery_dask.config import config

__all__ = ["SilentWorkers"]

# A worker is named after this share of `run.silent_s`.
WARN_SHARE = 0.25
# Number of looks in `run.silent_s`, since each look costs about a kilobyte for each worker.
LOOKS = 8
# Seconds that a nanny has to end its worker, before the scheduler removes it.
RESTART_S = 30.0

_logger = logging.getLogger("imagery_dask")


@dataclass(slots=True)
class _Worker:
    """What was last seen of a worker: time of its heartbeat (the scheduler's clock), and how long it did not change."""

    heartbeat: float
    silent_s: float = 0.0
    warned: bool = False


@dataclass(slots=True)
class SilentWorkers:
    """The workers of a cluster that send no heartbeats.

    Parameters
    ----------
    client : distributed.Client
        Client of the cluster.
    """

    client: Client
    _workers: dict[str, _Worker] = field(default_factory=dict)
    _looked: float = field(default_factory=time.monotonic)

    def is_to_look(self) -> bool:
        """Return True if enough time has passed since the last look."""
        silent_s: float = config.get("run.silent_s")
        return time.monotonic() - self._looked >= silent_s / LOOKS

    def look(self, workers: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Warn of workers without new heartbeats, and have those restarted that have been silent for too long.

        Parameters
        ----------
        workers : mapping
            The scheduler's workers by address, from ``identity``.

        Returns
        -------
        list of str
            Addresses of the silent workers.
        """
        longest: float = config.get("run.silent_s")
        now = time.monotonic()
        # All processes may have been stopped since the last look (Ctrl-Z, a laptop that slept).
        passed_s = min(now - self._looked, 2 * longest / LOOKS)
        self._looked = now
        self._workers = {
            address: self._seen(address, float(worker["last_seen"]), passed_s) for address, worker in workers.items()
        }
        late = [address for address, worker in self._workers.items() if worker.silent_s >= longest]
        for address, worker in self._workers.items():
            if worker.silent_s >= longest * WARN_SHARE and not worker.warned:
                worker.warned = True
                _logger.warning(
                    "The worker %s (%s) has been silent for %.0f s; after %.0f s (run.silent_s) its blocks go to "
                    "others.", address, workers[address].get("name"), worker.silent_s, longest,
                )  # fmt: skip
        if late:
            _logger.warning("The blocks of %s are given to other workers.", ", ".join(late))
            for address in late:
                del self._workers[address]
            self.client.loop.add_callback(self._restart, late)
        return [address for address, worker in self._workers.items() if worker.warned]

    def _seen(self, address: str, heartbeat: float, passed_s: float) -> _Worker:
        before = self._workers.get(address)
        if before is None or before.heartbeat != heartbeat:
            return _Worker(heartbeat)
        before.silent_s += passed_s
        return before

    async def _restart(self, addresses: list[str]) -> None:
        """Let nannies restart workers, or remove those without one; dask repeats their tasks elsewhere."""
        try:
            await self.client.scheduler.restart_workers(
                workers=addresses, timeout=RESTART_S, wait_for_workers=False, on_error="return",
                stimulus_id=f"silent-{time.time()}",
            )  # fmt: skip
        except Exception:  # the next look tries again
            _logger.debug("Silent workers could not be restarted", exc_info=True)
