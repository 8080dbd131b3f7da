"""One browser for the tests of a module: it takes seconds to start, and uses CPU while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser.viewing import Screen


@pytest.fixture(scope="module")
def screen() -> Iterator[Screen]:
    """Run Neuroglancer in a headless browser, or skip the test with the name of the missing program."""
    pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")
    from browser import chromium, viewing

    try:
        with viewing.screen() as running:
            yield running
    except chromium.BrowserUnavailable as reason:
        pytest.skip(str(reason))
