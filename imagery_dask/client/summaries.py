"""What a client shows of itself: its layers, as text and as HTML with a small picture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np

from imagery_dask.annotations import Array
from imagery_dask.cards import Card, CardTable
from imagery_dask.client.settings import ClientSettings
from imagery_dask.geometry.grid import AXES, VoxelGrid
from imagery_dask.geometry.vec import Vec3
from imagery_dask.humanize import human_bytes
from imagery_dask.model.layer import Layer, Mip
from imagery_dask.model.moments import describe_moment
from imagery_dask.sources import SourceHandle, collect_counts

__all__ = ["SummarizesItself"]

# Decoded bytes of the chunks that are read for a thumbnail, and pixels along its longer side.
MOST_BYTES, MOST_PIXELS = 2**20, 256
# Seconds that a summary waits for its thumbnail. A later one has it.
PATIENCE_S = 2.0


class SummarizesItself:
    """Mixin of `ImageryClient`: its text and HTML."""

    _settings: ClientSettings
    # The thumbnail, when there is one.
    _thumbnails: dict[int, bytes]
    neuroglancer_url: Callable[..., str]

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        layer = self._settings.image or self._settings.segmentation_layer()
        mip = [mip for mip in layer.mips if not mip.is_placeholder][-1]
        box = thumbnail_box(layer, mip)
        if box is not None and not self._thumbnails:
            # Neither an error nor a server that does not answer keeps a notebook waiting.
            thread = threading.Thread(target=_draw, args=(layer, mip, box, self._thumbnails), daemon=True)
            thread.start()
            thread.join(PATIENCE_S)
        link = None
        with suppress(ValueError):  # sources that a public viewer cannot read
            grid = layer.mip(layer.first_mip).grid
            center = (grid.start + grid.shape // 2).map(float)
            link = self.neuroglancer_url(center, resolution=grid.resolution_nm)
        caption = "" if box is None else f"mip {mip.level}, z = {box.start[2]:,} of that mip"
        return self._card(self._thumbnails.get(0), caption, link).html()

    def _card(self, picture: bytes | None = None, caption: str = "", link: str | None = None) -> Card:
        settings = self._settings
        rows = [("resolution", f"{_by(settings.resolution)} nm, in which bounds are given")]
        if settings.dynamic.moment is not None:
            version = "" if settings.dynamic.version is None else f" (version {settings.dynamic.version})"
            rows.append(("timestamp", describe_moment(settings.dynamic.moment) + version))
        elif settings.segmentation is not None and settings.segmentation.graph is not None:
            rows.append(("state", "that of the time of each call"))
        tables = []
        for name, layer, own in (
            ("image", settings.image, settings.image_mip),
            ("segmentation", settings.segmentation, settings.segmentation_mip),
        ):
            if layer is None:
                continue
            mip = layer.mip(own)
            channels = "" if layer.channels == 1 else f", {layer.channels} channels"
            dynamic = "" if layer.graph is None else ", dynamic"
            rows += [
                (name, layer.path),
                ("", f"{layer.dtype}{channels}, {mip.encoding}{dynamic}; mip {own} of 0 to {len(layer.mips) - 1}: "
                 f"{_by(mip.grid.shape)} voxels of {_by(mip.grid.resolution_nm)} nm, {_size(layer, mip)}"),
                ("bounds", _extent(mip.grid, settings.resolution)),
            ]  # fmt: skip
            tables.append(_table(name, layer, own))
        return Card("ImageryClient", rows, tables, picture=picture, caption=caption, link=link)


def thumbnail_box(layer: Layer, mip: Mip, most: int = MOST_BYTES) -> VoxelGrid | None:
    """Return the part of the middle plane of a mip whose chunks have at most `most` bytes; None if none is so small."""
    grid, chunk = mip.grid, mip.chunk_shape.minimum(mip.grid.shape)
    chunks = most // (chunk.prod() * layer.channels * np.dtype(layer.dtype).itemsize)
    if chunks == 0 or grid.size == 0:
        return None
    cells = grid.shape.ceil_div(mip.chunk_shape)
    columns = min(cells.x, max(1, int(chunks**0.5), chunks // cells.y))
    wanted = Vec3(columns, min(cells.y, chunks // columns), 1)
    first = (cells - wanted) // 2 * mip.chunk_shape
    last = (first + wanted * mip.chunk_shape).minimum(grid.shape)
    z = grid.shape.z // 2
    return grid.crop((first.x, first.y, z), (last.x - first.x, last.y - first.y, 1))


def _draw(layer: Layer, mip: Mip, box: VoxelGrid, thumbnails: dict[int, bytes]) -> None:
    """Keep the picture of a box, unless it cannot be read or has nothing on it."""
    with suppress(Exception), collect_counts():  # counted reads log no missing chunks
        voxels = SourceHandle(layer.path, mip, "fill").read(box)[:, :, 0]
        if voxels.any():
            thumbnails[0] = _png(layer, voxels)


def _png(layer: Layer, voxels: Array) -> bytes:
    """Return a picture of a plane of voxels, shape (x, y, channel)."""
    from imagery_dask.render.overlays import overlay_page
    from imagery_dask.render.pages import contrast, encode_page, imagery_page

    step = -(-max(voxels.shape[:2]) // MOST_PIXELS)
    plane = voxels[::step, ::step]
    plane = plane if plane.shape[2] == 3 else plane[..., 0]
    page = overlay_page(plane, alpha=1) if layer.holds_ids else imagery_page(plane, contrast([plane]))
    return bytes(encode_page(page))


def _table(name: str, layer: Layer, own: int) -> CardTable:
    rows = []
    for mip in layer.mips:
        cells = [_by(mip.grid.resolution_nm), _by(mip.grid.shape), _by(mip.grid.start, ", ")]
        stored = "no data" if mip.is_placeholder else f"{mip.encoding}{', sharded' if mip.is_sharded else ''}"
        rows.append([
            f"{mip.level}{' (read)' if mip.level == own else ''}", *cells, _by(mip.chunk_shape), stored,
            _size(layer, mip),
        ])  # fmt: skip
    heads = ["mip", "nm", "voxels x, y, z", "first voxel", "storage chunk", "encoding", "uncompressed"]
    return CardTable(f"{name}: {len(rows)} mips", heads, rows)


def _size(layer: Layer, mip: Mip) -> str:
    return human_bytes(mip.grid.size * layer.channels * np.dtype(layer.dtype).itemsize)


def _extent(grid: VoxelGrid, own_nm: tuple[float, float, float]) -> str:
    """Say where a volume is, in voxels of the client's resolution and in nm."""
    ends = [(end * grid.resolution_nm).map(lambda at, nm: at / nm, own_nm) for end in (grid.start, grid.stop)]
    spans = ", ".join(f"{axis} {low:,.0f} to {high:,.0f}" for axis, low, high in zip(AXES, *ends, strict=True))
    return f"{spans}; {_by((grid.shape * grid.resolution_nm).map(round))} nm"


def _by(values: Iterable[float], sign: str = " x ") -> str:
    return sign.join(f"{value:,}" if isinstance(value, int) else f"{value:g}" for value in values)
