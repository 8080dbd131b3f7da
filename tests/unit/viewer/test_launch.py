"""The viewer opens a browser where there is one, and prints its address elsewhere."""

from __future__ import annotations

import sys
import webbrowser
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from imagery_dask.viewer import launch, view_data

VOXELS = np.ones((8, 6, 4), np.uint8)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the addresses that are opened in a browser of this machine."""
    urls: list[str] = []
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr(webbrowser, "get", lambda: None)
    monkeypatch.setattr(webbrowser, "open", lambda url: urls.append(url) or True)
    return urls


def test_a_browser_is_opened(opened: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with view_data(VOXELS, resolution_nm=(8, 8, 40)) as view:
        assert opened == [view.url]
    assert capsys.readouterr().out == ""


def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    def get() -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", get)


def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)


@pytest.mark.parametrize("without", [no_display, no_browser, no_start])
def test_without_a_browser_the_address_is_printed(
    without: Any, opened: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if without is no_display and not sys.platform.startswith("linux"):
        pytest.skip("only Linux has browsers without windows")
    without(monkeypatch)
    with view_data(VOXELS, resolution_nm=(8, 8, 40)) as view:
        assert capsys.readouterr().out == f"Open {view.url} in a browser on this machine.\n"
    assert opened == []


def test_the_whole_of_the_first_layer_is_shown() -> None:
    coords = {"x": np.arange(8) * 16.0 + 168, "y": np.arange(6) * 16.0 + 8, "z": np.arange(4) * 40.0 + 20}
    array = xr.DataArray(VOXELS, dims=("x", "y", "z"), coords=coords)
    with view_data({"em": array}, browser=False) as view:
        state = view.viewer.state.to_json()
        assert state["position"] == [14.5, 3.5, 2.5]
        assert state["dimensions"]["x"] == [1.6e-8, "m"]
        assert view._repr_html_() == f'<a href="{view.url}" target="_blank">Open in Neuroglancer</a>'


def test_a_large_array_of_one_level_is_not_shown_as_a_whole() -> None:
    large = da.zeros((40_000, 30_000, 64), chunks=512, dtype=np.uint8)
    with view_data(large, resolution_nm=(4, 4, 40), browser=False) as view:
        state = view.viewer.state.to_json()
        assert (state["position"], state["crossSectionScale"]) == ([20_000.5, 15_000.5, 32.5], 2)


def test_layers_have_different_names() -> None:
    served = launch.layers_of({"em": VOXELS}, (8, 8, 40))
    with pytest.raises(ValueError, match="em is there twice"):
        launch.launch([*served, *served], browser=False)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    monkeypatch.delitem(sys.modules, "imagery_dask.viewer.loopback", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'imagery_dask\[browser\]'"):
        view_data(VOXELS, resolution_nm=(8, 8, 40), browser=False)
