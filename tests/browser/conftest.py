"""One browser for the tests of a module: it takes seconds to start, and draws while it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser.viewing import Screen


@pytest.fixture(scope="module")
def screen() -> Iterator[Screen]:
    """Neuroglancer in a headless browser, or a skip that says what is not installed."""
    pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")
    from browser import viewing

    try:
        with viewing.screen() as running:
            yield running
    except viewing.BrowserUnavailable as reason:
        pytest.skip(str(reason))
