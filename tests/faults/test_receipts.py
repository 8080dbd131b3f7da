"""Receipts and ledgers in damaged files: a damaged record is ignored, and never read as another one."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.settings import Configure

from imagery_dask.records.receipts import MARK, RECEIPT, counts_of, receipt, receipts_in
from imagery_dask.records.runs import LEDGER, Records, ledger_line, ledger_rows, missing_first, write_ledger
from imagery_dask.sources import ReadCounts
from imagery_dask.storage.atomic_files import Files

pytestmark = pytest.mark.long

SIZE = RECEIPT.itemsize
BLOCKS = st.lists(st.integers(0, 30), max_size=12)
# Include digests that look like the mark at which a receipt begins.
DIGESTS = st.one_of(st.binary(min_size=16, max_size=16), st.just(MARK * 4))


def one(block: int, digest: bytes = bytes(16), missing: int = 0) -> bytes:
    counts = ReadCounts(chunks=3, stored_bytes=2**40, missing=missing)
    return receipt(block, digest, 2**50 + block, 7, counts, 1, 0.5)


def rows(content: bytes) -> list[bytes]:
    """Return the receipts of a file, each as its stored bytes."""
    return [row.tobytes() for row in receipts_in([content])]


# --------------------------------------------------------------------------------------------------------- receipts


def test_a_receipt_keeps_its_values() -> None:
    (row,) = receipts_in([one(2**40, b"0123456789abcdef", missing=5)])
    assert (int(row["block"]), bytes(row["digest"]), int(row["missing"])) == (2**40, b"0123456789abcdef", 5)
    assert int(row["voxels"]) == 2**50 + 2**40
    total = counts_of(receipts_in([one(1, missing=2), one(2, missing=3)]))
    assert (total.chunks, total.missing, total.stored_bytes) == (6, 5, 2**41)


@given(st.lists(st.tuples(st.integers(0, 2**63), DIGESTS), max_size=8), st.data())
def test_a_truncated_file_gives_the_receipts_before_the_cut(
    written: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    contents = [one(block, digest) for block, digest in written]
    whole = b"".join(contents)
    cut = data.draw(st.integers(0, len(whole)))
    before = {block: content for (block, _), content in zip(written[: cut // SIZE], contents, strict=False)}
    assert sorted(rows(whole[:cut])) == sorted(before.values())


@given(st.lists(st.tuples(st.binary(max_size=SIZE - 1), DIGESTS), max_size=6), st.data())
def test_torn_receipts_do_not_hide_whole_ones(written: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    """Fragments of receipts lie between whole ones, as after a disk was full and got space again."""
    content, expected = b"", []
    for block, (_, digest) in enumerate(written):
        torn = one(1000 + block, digest)[: data.draw(st.integers(0, SIZE - 1))]
        expected.append(one(block, digest))
        content += torn + expected[-1]
    assert rows(content) == expected


@given(BLOCKS, st.data())
def test_a_damaged_file_never_gives_a_wrong_receipt(blocks: list[int], data: st.DataObject) -> None:
    contents = [one(block, os.urandom(16)) for block in blocks]
    content = bytearray(b"".join(contents))
    damaged = set()
    for _ in range(data.draw(st.integers(0, 5)) if content else 0):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        damaged.add(at // SIZE)
    read = rows(bytes(content))
    assert set(read) <= set(contents)
    # Undamaged receipts are read, except those that a later receipt of the same block replaces.
    good = {
        block: row for number, (block, row) in enumerate(zip(blocks, contents, strict=True)) if number not in damaged
    }
    assert set(read) >= set(good.values())


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=4))
def test_the_last_receipt_of_a_block_counts_in_whichever_file(files: list[list[int]]) -> None:
    contents, last = [], {}
    for number in range(max(map(len, files), default=0)):
        for index, blocks in enumerate(files):
            if number < len(blocks):
                contents.append((index, one(blocks[number], os.urandom(16))))
                last[blocks[number]] = contents[-1][1]
    file_contents = [b"".join(row for index, row in contents if index == number) for number in range(len(files))]
    for order in (file_contents, file_contents[::-1]):
        assert [row.tobytes() for row in receipts_in(order)] == [last[block] for block in sorted(last)]


def test_a_million_receipts_are_read_in_seconds(tmp_path: Path) -> None:
    import zlib

    records = Records(Files.at(tmp_path), "run")
    (tmp_path / "run").mkdir()
    receipts = np.frombuffer(one(0) * 1_000_000, RECEIPT).copy()
    receipts["block"] = np.random.default_rng(0).permutation(1_000_000)
    raw = receipts.view(np.uint8).reshape(-1, SIZE)
    receipts["crc"] = [zlib.crc32(row) for row in np.ascontiguousarray(raw[:, :-4])]
    content = receipts.tobytes()
    part = 40 * 1000 * SIZE
    for number in range(25):
        torn = one(0)[:50] if number % 5 == 0 else b""
        (tmp_path / "run" / f"receipts-host-{number}.bin").write_bytes(
            content[number * part : (number + 1) * part] + torn
        )
    started = time.process_time()
    stored = records.receipts()
    seconds = time.process_time() - started
    np.testing.assert_array_equal(stored["block"], np.arange(1_000_000))
    assert seconds < 10


def test_a_file_with_many_torn_receipts_is_read_in_seconds() -> None:
    """Such a file results from a disk that was full for a long time."""
    content = b"".join(one(number)[:70] + one(number) for number in range(20_000))
    started = time.process_time()
    assert len(receipts_in([content])) == 20_000
    assert time.process_time() - started < 10


# ------------------------------------------------------------------------------------------------- many processes


def _append(url: str, number: int, count: int) -> None:
    records = Records(Files.at(url), "run")
    for index in range(count):
        block = number * count + index
        counts = ReadCounts(missing=1, missing_keys=[f"key {block}"])
        line = ledger_line(block, f"block {block}", "image", counts)
        assert line is not None
        records.append("ledger", line)
        records.append("receipts", one(block, missing=1))


def check_all(records: Records, count: int) -> None:
    np.testing.assert_array_equal(records.receipts()["block"], np.arange(count))
    write_ledger(records)
    lines = (records.files.get(LEDGER) or b"").splitlines()
    assert [json.loads(line)["key"] for line in lines] == [f"key {block}" for block in range(count)]


def test_many_processes_append_at_once(tmp_path: Path) -> None:
    """Forked processes have files of their own, even if their parent had written before."""
    (tmp_path / "run").mkdir()
    records = Records(Files.at(tmp_path), "run")
    _append(str(tmp_path), 0, 100)
    count, context = 8, multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(str(tmp_path), n, 100)) for n in range(1, count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check_all(records, 100 * count)
    assert len(list((tmp_path / "run").glob("receipts-*"))) == count


@pytest.mark.parametrize("storage", ["memory", "folder"])
def test_many_threads_append_at_once(tmp_path: Path, storage: str) -> None:
    url = f"memory://bucket-{uuid4().hex}/out.receipts" if storage == "memory" else str(tmp_path)
    (tmp_path / "run").mkdir()
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(_append, [url] * 16, range(16), [40] * 16))
    check_all(Records(Files.at(url), "run"), 16 * 40)


def test_a_full_segment_is_followed_by_another(configure: Configure) -> None:
    configure("records.segment_records", 7)
    records = Records(Files.at(f"memory://bucket-{uuid4().hex}/out.receipts"), "run")
    for block in range(30):
        records.append("receipts", one(block))
    assert len(list(records.contents("receipts"))) == 5
    np.testing.assert_array_equal(records.receipts()["block"], np.arange(30))


def test_appending_to_a_deleted_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="records of this run.*are gone"):
        Records(Files.at(tmp_path), "run").append("receipts", one(0))
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------- the ledger


def line_of(block: int, *missing: str, when: float = 0.0) -> dict[str, Any]:
    return {
        "when": when, "block": block, "name": f"b{block}", "volume": "image", "missing": list(missing),
        "zero_roots": 0, "zero_root_ids": [],
    }  # fmt: skip


def test_the_last_line_of_a_block_counts() -> None:
    lines = [line_of(3, "new", when=5), line_of(1, "b", "a", "b"), line_of(3, "old", when=2), line_of(2, "not done")]
    keys = [(row["block"], row["key"]) for row in ledger_rows(lines, {1, 3})]
    assert keys == [(1, "a"), (1, "b"), (3, "new")]


@given(st.lists(st.integers(0, 200), max_size=20), st.data())
def test_truncated_lines_do_not_hide_whole_ones(cuts: list[int], data: st.DataObject) -> None:
    records = Records(Files.at(f"memory://bucket-{uuid4().hex}/out.receipts"), "run")
    content = b""
    for block, cut in enumerate(cuts):
        line = ledger_line(block, "name", "image", ReadCounts(missing=1, missing_keys=["key"]))
        assert line is not None
        content += b"\n" + line[:cut] + b"\n" + line  # as `append` writes them
    records.files.put("run/ledger-a.jsonl", content)
    blocks = [row["block"] for row in records.lines("ledger")]
    assert sorted(set(blocks)) == list(range(len(cuts)))


def test_a_line_appended_after_a_truncated_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    records = Records(Files.at(tmp_path), "run")
    for block in range(3):
        line = ledger_line(block, "name", "image", ReadCounts(missing=1, missing_keys=["key"]))
        assert line is not None
        records.append("ledger", line)
        (file,) = (tmp_path / "run").iterdir()
        with file.open("ab") as opened:
            opened.write(b"\n" + line[:30])
    assert [row["block"] for row in records.lines("ledger")] == [0, 1, 2]


def test_only_the_last_attempt_of_finished_blocks_counts_as_missing(tmp_path: Path) -> None:
    """One block missed a chunk in its first attempt only; another was never finished."""
    (tmp_path / "run").mkdir()
    records = Records(Files.at(tmp_path), "run")
    for block, missing in ((0, 1), (1, 1), (1, 0)):
        line = ledger_line(
            block, f"b{block}", "image", ReadCounts(missing=missing, missing_keys=[f"k{block}"] * missing)
        )
        if line is not None:
            records.append("ledger", line)
        records.append("receipts", one(block, missing=missing))
    not_done = ledger_line(2, "b2", "image", ReadCounts(missing=1, missing_keys=["k2"]))
    assert not_done is not None
    records.append("ledger", not_done)
    assert missing_first(records) == {"image": ["k0"]}
    write_ledger(records)
    assert [json.loads(row)["key"] for row in (tmp_path / LEDGER).read_bytes().splitlines()] == ["k0"]
