"""One browser for all tests of this folder: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser.viewing import Screen


@pytest.fixture(scope="session")
def screen() -> Iterator[Screen]:
    """Neuroglancer in a headless browser, or a skip that says what is not installed."""
    pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")
    from browser import viewing

    try:
        with viewing.screen() as running:
            yield running
    except viewing.BrowserUnavailable as reason:
        pytest.skip(str(reason))
