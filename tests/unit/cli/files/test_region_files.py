"""Files of named boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagery_dask.cli.files.region_files import read_regions


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", "name,x0,y0,z0,x1,y1,z1\na,1,2,3,4,5,6.5\nb,0,0,0,1,1,1\n"),
        ("r.csv", "\ufeffz1, y1, x1, z0, y0, x0, name, note\n6.5, 5, 4, 3, 2, 1, a, x\n1, 1, 1, 0, 0, 0, b, y\n"),
        ("r.json", '{"a": [[1, 2, 3], [4, 5, 6.5]], "b": [0, 0, 0, 1, 1, 1]}'),
    ],
)
def test_boxes_are_read(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_regions(str(tmp_path / name)) == {"a": (1, 2, 3, 4, 5, 6.5), "b": (0, 0, 0, 1, 1, 1)}


HEAD = "name,x0,y0,z0,x1,y1,z1\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "a,1,2,3,4,5,6\n", "has no column 'name'"),
        ("r.csv", HEAD, "has no boxes"),
        ("r.csv", HEAD + "a,1,2,3,4,5\n", r"r.csv, line 2 \('a'\): a box is two corners"),
        ("r.csv", HEAD + "a,1,2,3,4,five,6\n", r"r.csv, line 2 \('a'\): .*five"),
        ("r.csv", HEAD + "a,1,2,3,4,5,3\n", r"line 2 \('a'\): bounds are inverted or empty along z"),
        ("r.csv", HEAD + "../a,1,2,3,4,5,6\n", r"line 2 .*: '\.\./a' names a folder and must be letters"),
        ("r.csv", HEAD + "a,1,2,3,4,5,6\nA,1,2,3,4,5,6\n", "line 3 .*: 'A' and 'a' are one folder on some disks"),
        ("r.csv", HEAD + "a,1,2,3,4,5,6\na,1,2,3,4,5,6\n", "line 3 .*: 'a' is the name of two regions"),
        ("r.csv", HEAD + ",1,2,3,4,5,6\n", "line 2 .*: '' names a folder"),
        ("r.csv", HEAD + "x" * 201 + ",1,2,3,4,5,6\n", "line 2 .* has 201 characters"),
        ("r.json", "[]", "must be an object"),
        ("r.json", "{", "is not JSON"),
        ("r.json", '{"a": [0, 0, 0, 1, 1, 1], "a": [0, 0, 0, 1, 1, 1]}', "r.json: 'a' is the name of two regions"),
        ("r.json", "{}", "has no boxes"),
        ("r.json", '{"a": 3}', "r.json, 'a': a box is two corners of three numbers; got 3"),
    ],
)
def test_others_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_regions(str(tmp_path / name))


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        read_regions(str(tmp_path / "r.csv"))
