"""The decoder's process is started once, again after a crash, in each process of ours, and ends with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import crackle
import numpy as np
import psutil
import pytest

from imagery_dask.errors import SourceError
from imagery_dask.sources.precomputed.encodings import decoder_process
from imagery_dask.sources.precomputed.encodings.decoder_process import DecoderProcess

LABELS = np.asfortranarray(np.random.default_rng(0).integers(2**53, 2**53 + 9, (12, 10, 8), dtype=np.uint64))
CONTENT = crackle.compress(LABELS)


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    process = DecoderProcess("crackle_child")
    yield process
    process.close()


def decoded(process: DecoderProcess) -> bool:
    return np.array_equal(process.decode(CONTENT, LABELS.shape, "uint64"), LABELS)


def child(process: DecoderProcess) -> int:
    assert process._child is not None
    return process._child.pid


def test_threads_share_a_child(decoder: DecoderProcess) -> None:
    with ThreadPoolExecutor(4) as pool:
        pids = list(pool.map(lambda _: (decoded(decoder), child(decoder)), range(40)))
    assert set(pids) == {(True, child(decoder))}


def test_a_child_that_was_killed_is_an_error_of_one_chunk(decoder: DecoderProcess) -> None:
    assert decoded(decoder)
    killed = child(decoder)
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(ValueError, match="its decoder ended \\(signal 9\\)"):
        decoded(decoder)
    assert decoded(decoder)
    assert child(decoder) != killed


def test_what_the_decoder_refuses_has_its_words(decoder: DecoderProcess) -> None:
    with pytest.raises(ValueError, match="FormatError: "):
        decoder.decode(b"no crackle at all, of forty bytes or more", (2, 2, 2), "uint8")
    with pytest.raises(ValueError, match="it decodes to 7680 bytes, not 8"):
        decoder.decode(CONTENT, (2, 2, 2), "uint8")
    assert decoded(decoder)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit needs /proc")
def test_a_chunk_that_takes_too_much_memory_is_an_error(decoder: DecoderProcess) -> None:
    # A header of 2**33 voxels, of which the child is told 8.
    huge = bytearray(crackle.compress(np.asfortranarray(np.arange(8, dtype=np.uint8).reshape(2, 2, 2))))
    huge = huge[:4] + b"\0" + huge[5:7] + (2**11).to_bytes(4, "little") * 3 + huge[19:20] + huge[20:24] + huge[29:]
    with pytest.raises(ValueError, match=r"more memory|decoder ended|Error: "):
        decoder.decode(bytes(huge), (2, 2, 2), "uint8")
    assert decoded(decoder)


def test_a_program_that_does_not_start_is_no_damage(decoder: DecoderProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SourceError, match="cannot be started: .*/nowhere/python"):
        decoded(decoder)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SourceError, match="did not start: it ended"):
        decoded(decoder)


def in_child(pid: int) -> None:
    process = decoder_process.decoder_process("crackle_child")
    assert decoded(process)
    assert child(process) != pid


@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_each_process_has_its_own(method: str) -> None:
    process = decoder_process.decoder_process("crackle_child")
    assert decoded(process)
    other = multiprocessing.get_context(method).Process(target=in_child, args=(child(process),))
    other.start()
    other.join(60)
    assert other.exitcode == 0
    assert decoded(process)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent(number: signal.Signals) -> None:
    program = (
        "import time; from imagery_dask.sources.precomputed.encodings.decoder_process import DecoderProcess as D\n"
        "d = D('crackle_child'); d._start(); print(d._child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.send_signal(number)
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError("the decoder outlived its parent")
