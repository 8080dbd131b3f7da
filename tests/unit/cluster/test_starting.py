"""Clusters of this machine that do not start are one message."""

from __future__ import annotations

import pytest

from imagery_dask.cluster import connect, starting


@pytest.mark.parametrize("spec", ["local", None])
def test_a_worker_that_is_killed_at_the_start_is_one_message(spec: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(**options: object) -> None:
        raise RuntimeError("Nanny failed to start.") from RuntimeError("Nanny failed to start\nworker process")

    monkeypatch.setattr(starting, "LocalCluster", killed)
    message = r"^The workers on this machine did not start: Nanny failed to start worker process\. One of them may"
    with pytest.raises(OSError, match=message), connect(spec, workers=2):
        pass
