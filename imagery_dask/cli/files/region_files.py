"""``--regions FILE``: named boxes, each of which is exported to a folder of its own below OUT."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagery_dask.validate import expanded_path

__all__ = ["Bounds", "read_regions"]

Bounds = tuple[float, float, float, float, float, float]
COLUMNS = ("name", "x0", "y0", "z0", "x1", "y1", "z1")
NAME = re.compile(r"\w[\w.-]*")


def read_regions(path: str) -> dict[str, Bounds]:
    """Read named boxes from a file.

    Parameters
    ----------
    path : str
        A CSV file with the columns ``name,x0,y0,z0,x1,y1,z1``, or (``.json``) an object of bounds by name:
        ``{"a": [[0, 0, 0], [64, 64, 16]]}``.

    Returns
    -------
    dict of str to tuple of 6 float
        Lower and upper corner by name, in the order of the file.

    Raises
    ------
    ValueError
        The file cannot be read, has no boxes, or a name or box is invalid; the message names it.
    """
    try:
        text = Path(expanded_path(path)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--regions: cannot read {path!r}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"--regions: {path!r} is not a text file.") from None
    rows = _json_rows(path, text) if path.endswith(".json") else _csv_rows(path, text)
    regions: dict[str, Bounds] = {}
    for name, values in rows:
        if not NAME.fullmatch(name) or name.endswith(".receipts"):
            raise ValueError(f"--regions: {name!r} in {path} must be letters, digits, dots, dashes and underscores.")
        # Names become folders, and some file systems do not tell capital letters.
        if name.lower() in {other.lower() for other in regions}:
            raise ValueError(f"--regions: the name {name!r} is in {path} more than once.")
        regions[name] = _bounds(path, name, values)
    if not regions:
        raise ValueError(f"--regions: {path} has no boxes.")
    return regions


def _csv_rows(path: str, text: str) -> Iterator[tuple[str, Any]]:
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
        raise ValueError(
            f"--regions: {path} has no column {missing[0]!r}. Its first line must be {','.join(COLUMNS)}; a file of "
            "JSON is named .json."
        )
    return ((str(row["name"]).strip(), [row[column] for column in COLUMNS[1:]]) for row in rows)


def _json_rows(path: str, text: str) -> Iterator[tuple[str, Any]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the name {twice[0]!r} is in it more than once")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise ValueError(f"--regions: {path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f'--regions: {path} must be an object of bounds by name: {{"a": [[0, 0, 0], [64, 64, 16]]}}.')
    return ((name, _flat(box)) for name, box in content.items())


def _flat(box: Any) -> Any:
    is_pair = isinstance(box, list) and len(box) == 2 and all(isinstance(corner, list) for corner in box)
    return [value for corner in box for value in corner] if is_pair else box


def _bounds(path: str, name: str, values: Any) -> Bounds:
    from imagery_dask.model.arguments import corners

    try:
        if not isinstance(values, list) or len(values) != 6:
            raise ValueError(f"a box is two corners of three numbers; got {values!r}.")
        lower, upper = corners([[float(value) for value in values[:3]], [float(value) for value in values[3:]]])
    except (TypeError, ValueError) as error:
        raise ValueError(f"--regions: {name!r} in {path}: {error}") from None
    return (*lower, *upper)
