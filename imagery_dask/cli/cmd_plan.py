"""``imagery-dask plan``: estimate an export without running it."""

from __future__ import annotations

import json
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import click

from imagery_dask.cli.flags.param_types import SizeType
from imagery_dask.cli.formats import FORMATS, Format
from imagery_dask.export.planning import SAMPLES

if TYPE_CHECKING:
    from imagery_dask.export.planning.estimate import PlannedExport

__all__ = ["plan"]


@click.group()
def plan() -> None:
    r"""Estimate what an export takes: blocks, bytes, requests, memory, time.

    Nothing is written to OUT. A few sample blocks are written to a temporary folder.

    \b
    Examples:
      imagery-dask plan zarr OUT.zarr --image-source gs://bucket/em --bounds 0 0 0 4096 4096 512
      imagery-dask plan zarr OUT.zarr --image-source gs://bucket/em --regions boxes.csv
      imagery-dask plan precomputed OUT --config OUT.receipts/config.yaml --workers 100 --worker-memory 4GiB
      imagery-dask plan png slices/em --image-source em --bounds 0 0 0 512 512 64 --save plan.json
    """


def _options(command: Any) -> Any:
    for option in reversed((
        click.option("--workers", type=click.IntRange(min=1), metavar="N",
                     help="Number of single-threaded workers to estimate for.  [default: one per core]"),
        click.option("--worker-memory", type=SizeType(),
                     help="Memory of each worker: 4GiB is 4 x 2**30 bytes, 4G or 4GB is 4 x 10**9.  "
                          "[default: an equal part of this machine's memory]"),
        click.option("--samples", type=click.IntRange(min=1), default=SAMPLES, show_default=True, metavar="N",
                     help="Number of sample blocks per volume."),
        click.option("--save", type=click.Path(dir_okay=False, writable=True), metavar="FILE",
                     help="Write the plan to a file, for imagery-dask export --plan."),
        click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON."),
    )):  # fmt: skip
        command = option(command)
    return command


def _command(form: Format) -> click.Command:
    def callback(
        out: str, workers: int | None, worker_memory: int | None, samples: int, save: str | None, as_json: bool,
        block_mib: float | None = None, **options: object,
    ) -> None:  # fmt: skip
        from imagery_dask.export.planning.estimate import plan_export

        planned = plan_export(
            form.build(out, options), workers=workers, worker_memory=worker_memory, samples=samples,
            block_mib=block_mib,
        )  # fmt: skip
        if save is not None:
            planned.save(save)
        if as_json:
            click.echo(json.dumps(planned.to_json(), indent=1))
        else:
            _show(planned)
            if save is not None:
                click.echo(f"Run it with: imagery-dask export --plan {save}")

    return form.command(callback, _options, _text(form))


def _text(form: Format) -> str:
    """Return the help text of a format, with the examples of its export."""
    _, _, examples = cleandoc(form.text).partition("\b\n")
    examples = examples.replace("imagery-dask export", "imagery-dask plan").replace(" --cluster cluster.yaml", "")
    text = f"Plan the export that export {form.name} writes to {form.argument} with the same options."
    return f"{text}\n\n\b\n{examples}"


for _form in FORMATS:
    plan.add_command(_command(_form))


def _show(planned: PlannedExport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in planned.rows():
        table.add_row(label, text)
    Console().print(table)
    for found in planned.tables:
        regions = Table(box=None, pad_edge=False, title=found.title, title_justify="left")
        for index, head in enumerate(found.heads):
            regions.add_column(head, justify="right" if index else "left")
        for row in found.rows:
            regions.add_row(*row)
        Console().print(regions)
    for problem in planned.problems:
        click.echo(f"Problem: {problem}", err=True)
