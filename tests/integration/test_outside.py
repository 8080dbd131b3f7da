"""What lies wholly outside of a volume is refused, and what lies partly outside is said once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.volumes import coordinate_volume, random_labels, write_volume

from imagery_dask import ImageryClient

SHAPE, START = (40, 32, 16), (100, -16, 8)
STOP = tuple(np.add(START, SHAPE).tolist())
INSIDE = (START, STOP)
OUTSIDE = [
    ((0, -16, 8), (100, 16, 24)),
    ((140, -16, 8), (141, 16, 24)),
    ((100, 16, 8), (140, 20, 24)),
    ((100, -16, -5), (140, 16, 8)),
    ((10**9, 10**9, 10**9), (10**9 + 4, 10**9 + 4, 10**9 + 4)),
]
PARTLY = ((100, -16, 8), (180, 16, 24))  # half of it


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    image = coordinate_volume(SHAPE, START, np.uint8)
    return {
        "image_source": write_volume(tmp_path / "image", image, voxel_offset=START),
        "segmentation_source": write_volume(
            tmp_path / "ids", random_labels(SHAPE), voxel_offset=START, layer_type="segmentation"
        ),
    }


CALLS: dict[str, Callable[[ImageryClient, Any], Any]] = {
    "image": lambda client, bounds: client.image_cutout(bounds, mip=0),
    "scaled": lambda client, bounds: client.image_cutout(bounds, scale_to_bounds=True),
    "segmentation": lambda client, bounds: client.segmentation_cutout(bounds),
    "masks": lambda client, bounds: client.split_segmentation_cutout(bounds),
    "pair": lambda client, bounds: client.image_and_segmentation_cutout(bounds),
    "dataset": lambda client, bounds: client.dataset(bounds),
    "roots": lambda client, bounds: client.unique_roots(bounds),
    "pictures": lambda client, bounds: client.save_imagery("never", bounds),
    "plan": lambda client, bounds: client.plan_export(bounds, "never", samples=1),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_wholly_outside_is_refused_unless_asked_for(sources: dict[str, str], call: str) -> None:
    client = ImageryClient(**sources)
    for bounds in OUTSIDE:
        with pytest.raises(ValueError, match=r"lie outside the (image|segmentation) .*\(100, -16, 8\).*outside='fill'"):
            CALLS[call](client, bounds)
    filled = ImageryClient(**sources, outside="fill")
    if call not in ("pictures", "plan"):
        CALLS[call](filled, OUTSIDE[0])
    assert not filled.image_cutout(OUTSIDE[0]).compute().any()


@pytest.mark.parametrize("call", ["image", "scaled", "segmentation", "masks", "pair", "dataset", "roots"])
def test_bounds_in_nanometres_are_named(sources: dict[str, str], call: str) -> None:
    client = ImageryClient(**sources)
    assert client.resolution.tolist() == [8, 8, 40]
    nm = [np.multiply(corner, (8, 8, 40)).tolist() for corner in ((110, 1, 10), (130, 9, 20))]
    with pytest.raises(
        ValueError, match=r"look like nanometres.* divide them by \(8.0, 8.0, 40.0\).*resolution=\(1, 1, 1\)"
    ):
        CALLS[call](client, nm)
    assert client.image_cutout(nm, resolution=(1, 1, 1), mip=0).shape == (20, 8, 10)
    for bounds in OUTSIDE:
        with pytest.raises(ValueError, match=r"Check the resolution"):
            CALLS[call](client, bounds)


@pytest.mark.parametrize("call", ["image", "segmentation", "masks", "roots"])
def test_what_is_partly_outside_is_said_once(
    sources: dict[str, str], call: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = ImageryClient(**sources)
    with caplog.at_level(logging.WARNING, "imagery_dask"):
        CALLS[call](client, INSIDE)
        assert not caplog.messages
        CALLS[call](ImageryClient(**sources, outside="fill"), PARTLY)
        assert not caplog.messages
        for _ in range(2):
            CALLS[call](client, PARTLY)
    (message,) = caplog.messages
    assert message.startswith("50% of the bounds lie outside the")
    assert "(140, 16, 24)" in message


def test_points_outside_are_said(sources: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    client = ImageryClient(**sources)
    with caplog.at_level(logging.WARNING, "imagery_dask"):
        client.root_at([START, np.subtract(STOP, 1)])
        assert not caplog.messages
        assert client.root_at([START, STOP, (0, 0, 0)])[1:].tolist() == [0, 0]
    (message,) = caplog.messages
    assert message.startswith("2 of 3 points lie outside the segmentation")


def test_the_option_is_checked(sources: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="outside must be 'error' or 'fill'"):
        ImageryClient(**sources, outside="zeros")  # type: ignore[arg-type]
