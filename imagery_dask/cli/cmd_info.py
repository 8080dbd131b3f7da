"""``imagery-dask info``: print the metadata of a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imagery_dask.cli.flags.source_flags import cave_options, source_client
from imagery_dask.humanize import human_bytes
from imagery_dask.urls import redacted

if TYPE_CHECKING:
    from rich.table import Table

    from imagery_dask.model.layer import Layer, Mip

__all__ = ["info"]

WIDE = 250
NARROW = 120


@click.command()
@click.argument("source", required=False)
@cave_options
def info(
    source: str | None, datastack: str | None, server: str | None, version: int | None, timestamp: str | None
) -> None:
    r"""Show the mips of SOURCE or of a datastack's layers: resolution, shape, chunks, encoding, size.

    \b
    Examples:
      imagery-dask info gs://bucket/em
      imagery-dask info https://host/segmentation
      imagery-dask info --datastack minnie65_public --version 1300
    """
    from imagery_dask.sources import open_volume, volumes_at

    if (source is None) == (datastack is None):
        raise ValueError("Give a SOURCE, or a --datastack (and its --server).")
    if source is not None:
        if server is not None or version is not None or timestamp is not None:
            raise ValueError("--server, --version and --timestamp need a --datastack.")
        for found in volumes_at(source):
            _show(open_volume(found).layer)
        return
    client = source_client(datastack, server, version, timestamp)
    click.echo(f"{client!r}\n")
    for path in (client.image_source, client.segmentation_source):
        if path is not None:
            _show(open_volume(path).layer)


def _show(layer: Layer) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal or console.width < NARROW:
        # Never wrap within a row: a pipe or file has no width, and a narrow terminal wraps whole lines itself.
        console = Console(width=WIDE)
    console.print(f"[bold]{redacted(layer.path)}[/bold]", highlight=False, soft_wrap=True)
    channels = "" if layer.channels == 1 else f", {layer.channels} channels"
    console.print(f"{layer.kind}, {layer.dtype}{channels}, {len(layer.mips)} mips", highlight=False)
    if layer.graph is not None:
        graph = layer.graph
        console.print(
            f"dynamic: table {graph.table} of {graph.server}, {graph.layers} layers, graph chunks of "
            f"{'x'.join(map(str, graph.chunk_shape))} voxels at {'x'.join(f'{n:g}' for n in graph.resolution_nm)} nm",
            highlight=False,
        )
    console.print(_table(layer))
    console.print("Bounds (from, to) are in voxels of the mip, upper exclusive; size is uncompressed.", style="dim")


def _table(layer: Layer) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("mip", "nm", "shape", "chunk", "encoding", "sharded", "from", "to", "size"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("mip", "size") else "left")
    for mip in layer.mips:
        table.add_row(*_row(layer, mip))
    return table


def _row(layer: Layer, mip: Mip) -> tuple[str, ...]:
    import numpy as np

    grid = mip.grid
    size = grid.size * layer.channels * np.dtype(layer.dtype).itemsize
    return (
        str(mip.level),
        "x".join(f"{value:g}" for value in grid.resolution_nm),
        "x".join(map(str, grid.shape)),
        "x".join(map(str, mip.chunk_shape)),
        "refused" if mip.refusal else "placeholder" if mip.is_placeholder else mip.encoding,
        "yes" if mip.is_sharded else "no",
        ",".join(map(str, grid.start)),
        ",".join(map(str, grid.stop)),
        human_bytes(size),
    )
