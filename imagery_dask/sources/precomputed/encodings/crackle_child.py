"""Decode crackle chunks from standard input to standard output until it ends: the program of a `decoder_process`.

A request is the size of the chunk, the bytes of its voxels, and the chunk. An answer is a status of one byte (0 for
voxels in Fortran order, 1 for the message of an error) and, for a message, its size. The first answer, without a
request, says that the program is ready. It imports nothing of this package, so that it starts quickly.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
from contextlib import suppress
from typing import Any, BinaryIO

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__: list[str] = []

REQUEST = struct.Struct("<QQ")
# Memory beyond what the process has when it is ready: for any chunk, and for each byte of its voxels.
SPARE, SPARE_FACTOR = 256 * 2**20, 6
# CPU time for any chunk, and bytes of voxels for each second more.
CPU_S, BYTES_A_S = 15, 2**20
LOOK_S = 5.0


def main() -> None:
    """Answer requests."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        import crackle
        import numpy as np
    except Exception as error:
        _refuse(answers, error)
        return
    memory = _address_space()
    _limit("RLIMIT_CORE", 0)
    answers.write(b"\0")
    answers.flush()
    parent = os.getppid()
    while _is_asked(parent) and (header := requests.read(REQUEST.size)):
        length, size = REQUEST.unpack(header)
        content = requests.read(length)
        if memory is not None:
            _limit("RLIMIT_AS", memory + SPARE + SPARE_FACTOR * size + 2 * length)
        _limit("RLIMIT_CPU", int(_cpu_s()) + CPU_S + size // BYTES_A_S)
        try:
            voxels: Any = np.asfortranarray(crackle.decompress(content, parallel=1))
            if voxels.nbytes != size:
                raise ValueError(f"it decodes to {voxels.nbytes} bytes, not {size}")
        except MemoryError:
            _refuse(answers, "it needs more memory than any chunk of its size")
        except Exception as error:
            _refuse(answers, error)
        else:
            answers.write(b"\0")
            answers.write(voxels.T.data.cast("B"))
            answers.flush()


def _is_asked(parent: int) -> bool:
    """Wait for a request; return False if the parent has ended, of which a forked sibling may hold the pipe."""
    if sys.platform == "win32":
        return True
    while not select.select([sys.stdin.fileno()], [], [], LOOK_S)[0]:
        if os.getppid() != parent:
            return False
    return True


def _refuse(answers: BinaryIO, error: object) -> None:
    words = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    text = words.encode(errors="replace")[:2000]
    answers.write(b"\1" + struct.pack("<Q", len(text)) + text)
    answers.flush()


def _address_space() -> int | None:
    """Return the bytes of this process's address space; None where they are unknown."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _limit(name: str, value: int) -> None:
    """Set the soft limit of a resource, where there are limits."""
    if resource is None:
        return
    hard = resource.getrlimit(getattr(resource, name))[1]
    with suppress(ValueError, OSError):
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (soft, hard))


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
