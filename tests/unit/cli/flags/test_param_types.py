"""Parameter types of the command line: lists of root ids, and shapes."""

from __future__ import annotations

from pathlib import Path

from imagery_dask.cli.flags.param_types import RootIdsType, ShapeType

ROOT = 864691135000000001


def test_root_ids_are_read_from_text_and_files(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text(f"{ROOT}, {ROOT + 1}\n{2**64 - 1}\t5\n")
    read = RootIdsType().convert
    assert read("all", None, None) == "all"
    assert read("none", None, None) is None
    assert read(f"{ROOT}", None, None) == [ROOT]
    assert read(f"{ROOT},{ROOT + 1}", None, None) == [ROOT, ROOT + 1]
    assert read(f"@{file}", None, None) == [ROOT, ROOT + 1, 2**64 - 1, 5]


def test_a_shape_is_three_numbers_with_commas() -> None:
    assert ShapeType().convert("128,64,16", None, None) == (128, 64, 16)
