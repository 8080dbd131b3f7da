"""A process that decodes chunks and may crash: a damaged chunk is then an error of its block, not the end of a worker.

There is one for each process of ours, started with the first chunk and used again. It is started with `subprocess`,
since dask's workers are daemonic and may have no children of `multiprocessing`. It ends with its parent, when the pipe
between them closes.
"""

from __future__ import annotations

import atexit
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from imagery_dask.annotations import Array
from imagery_dask.errors import SourceError

__all__ = ["DecoderProcess", "decoder_process"]

REQUEST = struct.Struct("<QQ")
LENGTH = struct.Struct("<Q")
PIPE_BYTES = 2**20


class DecoderProcess:
    """A child that runs one of the programs beside this module; thread-safe.

    Parameters
    ----------
    program : str
        Name of the program's module.
    """

    def __init__(self, program: str) -> None:
        self._program = Path(__file__).with_name(f"{program}.py")
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, content: bytes, shape: tuple[int, ...], dtype: str) -> Array:
        """Return the voxels of a chunk, in Fortran order.

        Raises
        ------
        ValueError
            The chunk is damaged: the decoder refused it, crashed, or needed too much memory or time.
        SourceError
            The decoder cannot be started.
        """
        voxels = np.empty(shape, dtype, order="F")
        with self._lock:
            child = self._child or self._start()
            try:
                assert child.stdin is not None
                child.stdin.write(REQUEST.pack(len(content), voxels.nbytes))
                _write_all(child, content)
                self._receive(child, voxels)
            except BaseException as error:
                # Also after an error that the decoder noticed itself, which may have spoilt its memory, and after an
                # interrupt, whose answer would be taken for the next chunk's.
                self._end()
                if isinstance(error, (EOFError, OSError)):
                    raise ValueError(f"its decoder ended ({_reason(child.returncode)})") from None
                raise
        return voxels

    def _receive(self, child: subprocess.Popen[bytes], voxels: Array) -> None:
        if _read(child, 1) == b"\0":
            _read_into(child, voxels.T.data.cast("B"))
        else:
            raise ValueError(_message(child))

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(part for part in sys.path if part)
        # One arena of memory, and no pool of threads: the limit of its memory is near what decoding needs.
        environment = {"PYTHONPATH": path, "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # -P, since a module beside the program must not stand for one of the standard library.
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", str(self._program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, bufsize=0, env=os.environ | environment,
            )  # fmt: skip
        except OSError as error:
            raise SourceError(f"The process that decodes chunks cannot be started: {error}") from error
        self._child = child
        try:
            _enlarge_pipes(child)
            refused = _message(child) if _read(child, 1) != b"\0" else ""
        except EOFError:
            refused = "it ended"
        except BaseException:
            self._end()
            raise
        if refused:
            self._end()
            raise SourceError(f"The process that decodes chunks ({sys.executable}) did not start: {refused}")
        return child

    def _end(self) -> None:
        """Kill the child, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        child.wait()

    def close(self) -> None:
        """End the child; the next chunk starts another."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Leave the child to the process that forked this one."""
        child, self._child = self._child, None
        self._lock = threading.Lock()
        if child is not None:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
            child.returncode = 0  # it is not ours to wait for


def _write_all(child: subprocess.Popen[bytes], content: bytes) -> None:
    assert child.stdin is not None
    left = memoryview(content)
    while left:
        left = left[child.stdin.write(left) :]


def _read(child: subprocess.Popen[bytes], size: int) -> bytes:
    content = bytearray(size)
    _read_into(child, memoryview(content))
    return bytes(content)


def _read_into(child: subprocess.Popen[bytes], left: memoryview) -> None:
    assert child.stdout is not None
    while left:
        count = child.stdout.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        left = left[count:]


def _message(child: subprocess.Popen[bytes]) -> str:
    return _read(child, LENGTH.unpack(_read(child, LENGTH.size))[0]).decode(errors="replace")


def _reason(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _enlarge_pipes(child: subprocess.Popen[bytes]) -> None:
    """Let a chunk pass in few pieces, where the system allows that."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


_processes: dict[str, DecoderProcess] = {}
_lock = threading.Lock()


def decoder_process(program: str) -> DecoderProcess:
    """Return this process's decoder that runs a program; it starts with the first chunk."""
    with _lock:
        if program not in _processes:
            _processes[program] = DecoderProcess(program)
        return _processes[program]


@atexit.register
def _close_all() -> None:
    for process in _processes.values():
        process.close()


def _forget_all() -> None:
    global _lock
    _lock = threading.Lock()
    for process in _processes.values():
        process.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
