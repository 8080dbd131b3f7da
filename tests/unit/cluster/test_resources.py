"""Free memory is that of the machine, or of the container or job if that is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagery_dask.cluster import free_memory, resources


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("3000\n", "1000\n", 2000), ("1000", "1500", 1), ("max\n", "1000\n", None), ("9223372036854771712", "0", None)],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, free: int | None
) -> None:
    (tmp_path / "limit").write_text(limit)
    (tmp_path / "used").write_text(used)
    absent = (str(tmp_path / "absent"), str(tmp_path / "absent"))
    monkeypatch.setattr(resources, "CONTROL_GROUPS", (absent, (str(tmp_path / "limit"), str(tmp_path / "used"))))
    found = free_memory()
    assert found == free if free is not None else found > 2**20
