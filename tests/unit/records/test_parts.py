"""Parts of a plan: their blocks, their names, and leases of parts that are being written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.errors import TargetBusyError
from imagery_dask.records.lease import Lease
from imagery_dask.records.parts import Part, part_holders, refuse_other_parts, refuse_parts, settle_part
from imagery_dask.storage.atomic_files import Files


@given(blocks=st.integers(0, 500), of=st.integers(1, 60))
def test_every_block_is_in_one_part(blocks: int, of: int) -> None:
    parts = [Part(part, of).of_blocks(blocks) for part in range(1, of + 1)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), np.ones(blocks))
    # Sizes differ by one block at most.
    assert max(part.sum() for part in parts) - min(part.sum() for part in parts) <= 1


def test_a_part_is_read_from_text_and_names_its_file() -> None:
    part = Part.read("3/8")
    assert (part, str(part), part.file) == (Part(3, 8), "part 3 of 8", "part-3-of-8.json")


@pytest.mark.parametrize("text", ["0/8", "9/8", "1/0", "3", "3/", "/8", "a/b", "-1/8", "1.5/8", "3/8/9", ""])
def test_text_that_is_not_a_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="A part is I/N"):
        Part.read(text)


def test_a_running_part_keeps_out_processes_that_would_write_its_blocks(tmp_path: Path) -> None:
    files = Files.at(tmp_path / "out.receipts")
    refuse_parts(files, "OUT")
    part = Part(3, 8)
    with Lease(files, "part 3 of 8 of OUT", part.file, "part"):
        ((running, holder),) = part_holders(files)
        assert (running, holder["purpose"]) == (part, "part")
        with pytest.raises(TargetBusyError, match="part 3 of 8 of OUT is being written by process"):
            refuse_parts(files, "OUT")
        refuse_other_parts(files, "OUT", Part(1, 8))
        with pytest.raises(TargetBusyError, match="part 3 of 8 of OUT is being written by process"):
            refuse_other_parts(files, "OUT", Part(1, 4))
        with pytest.raises(TargetBusyError), Lease(files, "part 3 of 8 of OUT", part.file, "part"):
            pass
    assert list(part_holders(files)) == []


def test_leases_of_dead_processes_are_removed(tmp_path: Path) -> None:
    files = Files.at(tmp_path / "out.receipts")
    lease = Lease(files, "OUT", Part(1, 2).file, "part")
    lease.__enter__()
    content = files.get("part-1-of-2.json")
    lease.__exit__(None, None, None)
    assert content is not None
    # As after a kill: a lease of a process of this machine that does not exist.
    files.put("part-1-of-2.json", content.replace(f'"pid": {os.getpid()}'.encode(), b'"pid": 4194000'))
    refuse_parts(files, "OUT")
    assert list(files.names()) == []


def test_a_part_waits_while_another_process_removes_its_old_lease(tmp_path: Path) -> None:
    """The process that closes the store settles crashed parts too, perhaps at the moment when one starts again."""
    files, part = Files.at(tmp_path / "out.receipts"), Part(1, 2)
    settling = Lease(files, f"{part} of OUT", part.file, "open")
    settling.__enter__()
    end = threading.Timer(0.3, settling.__exit__, (None, None, None))
    end.start()
    settle_part(files, "OUT", part)
    assert end.finished.is_set()
    assert list(files.names()) == []
    with (
        Lease(files, f"{part} of OUT", part.file, "part"),
        pytest.raises(TargetBusyError, match="part 1 of 2 of OUT is being written") as refused,
    ):
        settle_part(files, "OUT", part)
    assert refused.value.purpose == "part"
