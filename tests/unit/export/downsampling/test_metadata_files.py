"""Metadata files that get additions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagery_dask.errors import SourceError
from imagery_dask.export.downsampling.metadata_files import MetadataFile
from imagery_dask.storage.atomic_files import Files

CONTENT: dict[str, Any] = {
    "z": 1, "id": 2**63 + 1, "small": 1e-9, "half": 0.1, "one": 1.0, "text": "µm \ud800", "scales": [{"a": None}],
    "nested": {"b": [True, False, {}], "a": []},
}  # fmt: skip


def add(content: Any) -> None:
    content["scales"].append({"new": 2**60 + 1})


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_all_other_values_stay_as_they_were_written(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "info").write_text(json.dumps(CONTENT, indent=indent))
    file = MetadataFile.read(Files.at(tmp_path), "info")
    assert file is not None
    file.extend(add)
    wanted = CONTENT | {"scales": [{"a": None}, {"new": 2**60 + 1}]}
    assert (tmp_path / "info").read_text() == json.dumps(wanted, indent=indent)
    file.extend(add)  # once
    assert (tmp_path / "info").read_text() == json.dumps(wanted, indent=indent)
    assert [path.name for path in tmp_path.iterdir()] == ["info"]


def test_a_file_that_has_changed_is_left(tmp_path: Path) -> None:
    (tmp_path / "info").write_text(json.dumps(CONTENT))
    file = MetadataFile.read(Files.at(tmp_path), "info")
    assert file is not None
    changed = json.dumps(CONTENT | {"z": 2})
    (tmp_path / "info").write_text(changed)
    with pytest.raises(SourceError, match="info has changed while levels were added.*Run the same command again"):
        file.extend(add)
    assert (tmp_path / "info").read_text() == changed
    (tmp_path / "info").unlink()
    with pytest.raises(SourceError, match="has changed"):
        file.extend(add)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_absent_or_no_json(tmp_path: Path) -> None:
    assert MetadataFile.read(Files.at(tmp_path), "info") is None
    (tmp_path / "info").write_text("[1]")
    with pytest.raises(SourceError, match="info is no JSON object"):
        MetadataFile.read(Files.at(tmp_path), "info")
