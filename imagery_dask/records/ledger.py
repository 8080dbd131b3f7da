"""The ledger: the missing chunks of the source, and the supervoxels without a root, of each block."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from imagery_dask.annotations import JsonObject
from imagery_dask.records.journal import Records
from imagery_dask.sources import ReadCounts

__all__ = ["FIRST_KEPT", "LEDGER", "ledger_line", "ledger_rows", "missing_first", "write_ledger"]

LEDGER = "ledger.jsonl"
FIRST_KEPT = 10


def ledger_line(block: int, name: str, volume: str, counts: ReadCounts) -> bytes | None:
    """Return the line of a block; None if nothing was missing."""
    if not (counts.missing or counts.zero_roots):
        return None
    line = {
        "when": time.time(),
        "block": block,
        "name": name,
        "volume": volume,
        "missing": counts.missing_keys,
        "zero_roots": counts.zero_roots,
        "zero_root_ids": [str(value) for value in counts.zero_root_ids],
    }
    return json.dumps(line).encode() + b"\n"


def ledger_rows(lines: Iterable[JsonObject], blocks: Any = None) -> Iterator[JsonObject]:
    """Yield the rows of the table: one for each missing chunk, one for each block that has ids without a root.

    Parameters
    ----------
    lines : iterable of dict
        Lines of all processes. If a block has several, the last one counts.
    blocks : container of int, optional
        Blocks to include; by default all.
    """
    counted = [line for line in lines if blocks is None or line["block"] in blocks]
    last = {line["block"]: line for line in sorted(counted, key=lambda line: float(line.get("when", 0)))}
    for block, line in sorted(last.items()):
        block_fields = {"block": block, "name": line["name"], "volume": line["volume"]}
        for key in sorted(set(line["missing"])):
            yield block_fields | {"kind": "missing chunk", "key": key}
        if line["zero_roots"]:
            ids = {"supervoxels": line["zero_roots"], "first": line["zero_root_ids"]}
            yield block_fields | {"kind": "zero roots"} | ids


def write_ledger(records: Records) -> None:
    """Write the table of a run to the records folder, in the order of the blocks."""
    rows = ledger_rows(records.lines("ledger"), _incomplete_blocks(records))
    records.files.put(LEDGER, b"".join(json.dumps(row).encode() + b"\n" for row in rows), "application/jsonl")


def missing_first(records: Records) -> dict[str, list[str]]:
    """Return the first missing chunks of each layer, in the order of the blocks."""
    first: dict[str, list[str]] = {}
    for row in ledger_rows(records.lines("ledger"), _incomplete_blocks(records)):
        keys = first.setdefault(row["volume"], [])
        if row["kind"] == "missing chunk" and len(keys) < FIRST_KEPT and row["key"] not in keys:
            keys.append(row["key"])
    return first


def _incomplete_blocks(records: Records) -> set[int]:
    """Return the numbers of the blocks for which something was missing when they were last written."""
    receipts = records.receipts()
    return set(receipts["block"][(receipts["missing"] > 0) | (receipts["zero_roots"] > 0)].tolist())
