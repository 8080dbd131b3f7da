"""``--regions FILE``: named boxes, each of which is exported to a group or folder of its own in OUT."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from imagery_dask.validate import expanded_path

__all__ = ["Bounds", "read_regions", "regions_of"]

Bounds = tuple[float, float, float, float, float, float]
COLUMNS = ("name", "x0", "y0", "z0", "x1", "y1", "z1")


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
        The file cannot be read, has no boxes, or a name or box is invalid; the message has the line or the name.
    """
    try:
        text = Path(expanded_path(path)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--regions: cannot read {path!r}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"--regions: {path!r} is not a text file.") from None
    return _checked(path, _json_rows(path, text) if path.endswith(".json") else _csv_rows(path, text))


def regions_of(boxes: Mapping[str, Any]) -> dict[str, Bounds]:
    """Return named boxes as `read_regions` does, of a mapping such as a file of JSON has."""
    return _checked("the file of options", ((f"{name!r}", name, _flat(box)) for name, box in boxes.items()))


def _checked(path: str, rows: Iterable[tuple[str, str, Any]]) -> dict[str, Bounds]:
    """Return boxes by name, of rows of where they are, name and numbers."""
    from imagery_dask.model.arguments import check_region_names, corners

    regions: dict[str, Bounds] = {}
    for where, name, values in rows:
        try:
            check_region_names([*regions, name])
            if not isinstance(values, list) or len(values) != 6 or None in values:
                raise ValueError(f"a box is two corners of three numbers; got {values!r}.")
            lower, upper = corners([[float(value) for value in values[:3]], [float(value) for value in values[3:]]])
        except (TypeError, ValueError) as error:
            raise ValueError(f"--regions: {path}, {where}: {error}") from None
        regions[name] = (*lower, *upper)
    if not regions:
        raise ValueError(f"--regions: {path} has no boxes.")
    return regions


def _csv_rows(path: str, text: str) -> Iterator[tuple[str, str, Any]]:
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
        raise ValueError(
            f"--regions: {path} has no column {missing[0]!r}. Its first line must be {','.join(COLUMNS)}; a file of "
            "JSON is named .json."
        )
    for row in rows:
        name = str(row["name"] or "").strip()
        yield f"line {rows.line_num} ({name!r})", name, [row[column] for column in COLUMNS[1:]]


def _json_rows(path: str, text: str) -> Iterator[tuple[str, str, Any]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is the name of two regions")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"--regions: {path} is not JSON: {error}.") from None
    except ValueError as error:
        raise ValueError(f"--regions: {path}: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f'--regions: {path} must be an object of bounds by name: {{"a": [[0, 0, 0], [64, 64, 16]]}}.')
    yield from ((f"{name!r}", name, _flat(box)) for name, box in content.items())


def _flat(box: Any) -> Any:
    """Return the six numbers of two corners."""
    is_pair = isinstance(box, list) and len(box) == 2 and all(isinstance(corner, list) for corner in box)
    if isinstance(box, tuple):
        return list(box)
    return [value for corner in box for value in corner] if is_pair else box
