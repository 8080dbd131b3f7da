"""A lease on a target: one process at a time writes it, and a process that crashed does not block it for ever.

The holder writes a file and renews it. If the file is no longer renewed, or its process on this machine is dead,
another process replaces it by its own file, waits, and checks that its own file is still there: if two processes do so
at once, one of them has the lease. The clocks of machines are not compared if reading the file twice is enough.
How often it is renewed and when it expires is set in `imagery_dask.config` (``lease.renew_s``, ``lease.expires_s``).
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from uuid import uuid4

from imagery_dask.annotations import JsonObject
from imagery_dask.config import config
from imagery_dask.errors import TargetBusyError
from imagery_dask.storage.atomic_files import Files

__all__ = ["NAME", "HeldLease", "Lease", "NoLease", "Purpose", "brief_lease", "holder_of", "is_held"]

NAME = "lease.json"
# Purpose: write a whole export; write a part; read or remove records for a moment; write the blocks that parts left.
Purpose = Literal["write", "part", "open", "close"]
# Seconds of waiting after which a warning names the holder.
WARN_AFTER_S = 10.0
TRY_AGAIN_S = 0.5
LARGEST_PID = 2**31 - 1
_logger = logging.getLogger(__name__)


class Lease:
    """Context manager that holds the lease on a target.

    Parameters
    ----------
    files : Files
        The records folder of the target.
    target : str
        The target, for messages.
    name : str
        File of the lease; a part has a file of its own.
    purpose : Purpose
        Purpose of the lease, which other processes read.
    run : str, optional
        Name of the run that is written.

    Raises
    ------
    TargetBusyError
        On entering, if another process holds the lease.
    """

    def __init__(
        self, files: Files, target: str, name: str = NAME, purpose: Purpose = "write", run: str | None = None
    ) -> None:
        self._files, self._target, self._name = files, target, name
        self._mine: JsonObject = {
            "id": uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "purpose": purpose,
            "run": run,
        }
        self._ended = threading.Event()
        self._lost = False
        self._looked = time.monotonic()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="imagery_dask-lease", daemon=True)

    def __enter__(self) -> Lease:
        try:
            self._acquire()
        except TargetBusyError:
            raise
        except BaseException:
            self._release()  # interrupted; the process may live on
            raise
        return self

    def _acquire(self) -> None:
        created = self._create()
        if not created:
            held = self._read()
            if held is not None and not self._is_over(held):
                raise self._busy(held)
            self._take_over(held)
        if not created or self._files.folder is None:
            # Some servers of buckets create a file in two steps (check, then write), so that two processes may succeed.
            time.sleep(config.get("lease.look_again_s"))
            held = self._read()
            if held is None:  # its holder, which seemed dead, has removed it
                self._write()
            elif held["id"] != self._mine["id"]:
                raise self._busy(held)
        self._looked = time.monotonic()
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        try:
            self._thread.join()
        finally:
            self._release()

    def _release(self) -> None:
        with suppress(Exception):  # the lease expires
            held = self._read()
            if held is not None and held["id"] == self._mine["id"]:
                self._files.delete([self._name])

    def keep_for(self, purpose: Purpose) -> None:
        """Change the purpose of the lease."""
        self._update(purpose=purpose)

    def keep_of(self, run: str) -> None:
        """Set the run that is written."""
        self._update(run=run)

    def _update(self, **fields: str) -> None:
        self.check()
        with self._looking:
            self._mine |= fields
        self._look()
        self.check()

    def check(self) -> None:
        """Raise `TargetBusyError` if another process has taken over the lease, since this one did not renew it.

        A process that was suspended reads the file first, before it does anything else.
        """
        if time.monotonic() - self._looked > 1.5 * config.get("lease.renew_s"):
            with suppress(Exception):
                self._look()
        if self._lost:
            raise TargetBusyError(
                f"{self._target}: another process has taken over this export, because this one did not renew its lease "
                f"for {config.get('lease.expires_s'):.0f} s. This one ends; the other one resumes the export."
            )

    def _create(self) -> bool:
        """Write the file if there is none."""
        return bool(self._files.create(self._name, self._content()))

    def _is_over(self, held: JsonObject) -> bool:
        if held.get("machine") == self._mine["machine"] and not _alive(int(held["pid"])):
            return True
        age = time.time() - float(held["renewed"])
        if abs(age) < config.get("lease.expires_s"):
            return False
        # The clock of the other machine may be wrong: check that the file is not renewed.
        time.sleep(1.5 * config.get("lease.renew_s"))
        after = self._read()
        return after is None or after == held

    def _take_over(self, held: JsonObject | None) -> None:
        """Replace the file of a process that has ended."""
        folder = self._files.folder
        if held is None and self._create():
            return
        if folder is None or held is None:
            if held is not None or self._read() is None:
                self._write()
            return
        moved = folder / f".{self._name}.{uuid4().hex}.partial"
        with suppress(FileNotFoundError):  # another process was faster
            os.rename(folder / self._name, moved)
            try:
                # If two processes read the same file, the slower one may have moved the new file of the faster one.
                if self._id_in(moved) != held["id"]:
                    with suppress(FileExistsError):
                        os.link(moved, folder / self._name)
            finally:
                moved.unlink()
        if not self._create() and self._read() is None:
            self._write()

    def _id_in(self, path: Path) -> Any:
        with suppress(OSError, ValueError, TypeError, KeyError):
            return json.loads(path.read_bytes())["id"]
        return None

    def _renew(self) -> None:
        while not self._ended.wait(config.get("lease.renew_s")):
            with suppress(Exception):  # the next renewal may succeed
                self._look()
            if self._lost:
                return

    def _look(self) -> None:
        """Renew the lease if it is still held."""
        with self._looking:
            if self._lost:
                return
            held = self._read()
            # If there is no file, another process had taken over and has ended.
            if held is None or held["id"] != self._mine["id"]:
                self._lost = True
                return
            self._write()
            self._looked = time.monotonic()

    def _read(self) -> JsonObject | None:
        return holder_of(self._files, self._name)

    def _write(self) -> None:
        self._files.put(self._name, self._content(), "application/json")

    def _content(self) -> bytes:
        return json.dumps(self._mine | {"renewed": time.time()}).encode()

    def _busy(self, held: JsonObject) -> TargetBusyError:
        return TargetBusyError(
            f"{self._target} is being written by process {held['pid']} on {held['host']} "
            f"(lease renewed {max(0.0, time.time() - float(held['renewed'])):.0f} s ago). Wait for it, or end it; if "
            f"it crashed, try again in {config.get('lease.expires_s'):.0f} s.",
            held.get("purpose"),
        )


class NoLease:
    """Lease of a run that no other process can write, or that is only read."""

    def keep_for(self, purpose: Purpose) -> None:
        """Do nothing."""

    def keep_of(self, run: str) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""


HeldLease = Lease | NoLease


@contextmanager
def brief_lease(files: Files, target: str, name: str = NAME) -> Iterator[Lease]:
    """Hold a lease for a moment ("open"), after processes that also hold it for a moment, or may have crashed.

    Raises
    ------
    TargetBusyError
        If another process holds it for longer, since it writes the export, a part, or the blocks that parts left.
    """
    since = time.monotonic()
    warned, silent = False, None
    with ExitStack() as stack:
        while True:
            lease = Lease(files, target, name, "open")
            try:
                stack.enter_context(lease)
                break
            except TargetBusyError:
                held = holder_of(files, name)
                if held is not None and held.get("purpose") != "open":
                    # A holder whose lease is overdue may have crashed: wait until it renews, or the lease expires.
                    recent = time.time() - float(held["renewed"]) < 2 * config.get("lease.renew_s")
                    if recent or held != (silent or held):
                        raise
                    silent = held
            if not warned and held is not None and time.monotonic() - since > WARN_AFTER_S:
                warned = True
                _logger.warning("%s is held by process %s on %s: waiting for it.", target, held["pid"], held["host"])
            time.sleep(TRY_AGAIN_S * random.uniform(0.2, 1.0))
        yield lease


def holder_of(files: Files, name: str = NAME) -> JsonObject | None:
    """Return the holder of a lease of a records folder.

    Returns
    -------
    dict or None
        ``id``, ``host``, ``pid``, ``machine``, ``renewed`` (s since 1970), ``purpose``, ``run``.
    """
    content = files.get(name)
    if content is None:
        return None
    try:
        held: JsonObject = json.loads(content)
        possible = math.isfinite(float(held["renewed"])) and 0 < int(held["pid"]) <= LARGEST_PID
        _ = held["id"], held["host"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # damaged by a crash
        return None
    return held if possible else None


def is_held(held: JsonObject | None) -> bool:
    """Return True if the holder of a lease seems to be running; trust the clocks of other machines."""
    if held is None or (held.get("machine") == _machine() and not _alive(int(held["pid"]))):
        return False
    expires_s: float = config.get("lease.expires_s")
    return abs(time.time() - float(held["renewed"])) < expires_s


def _machine() -> str:
    """Return an id of the boot of this machine and of the container, within which process ids are unique."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    with suppress(OSError):  # a zombie counts as dead
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True
