"""``imagery-dask export``: write a region of a volume, block by block, on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imagery_dask.cli.formats import FORMATS, Format
from imagery_dask.cli.param_types import PartType
from imagery_dask.cli.run_flags import RUN_OPTIONS, run, run_options

if TYPE_CHECKING:
    from imagery_dask.export.core.plans import ExportPlan
    from imagery_dask.records.parts import Part

__all__ = ["export", "planned"]


@click.group(invoke_without_command=True)
@click.option("--plan", "plan_file", metavar="FILE|OUT",
              help="Run a plan saved by imagery-dask plan, or resume OUT with the plan stored beside it.")  # fmt: skip
@click.option("--part", "part", type=PartType(),
              help="Write only part I of N of a plan. The part that ends last completes the store.")  # fmt: skip
@run_options
@click.pass_context
def export(context: click.Context, /, plan_file: str | None, part: Part | None, **options: object) -> None:
    """Write a region of imagery and segmentation.

    Run the same command again to resume an interrupted export. If the export is complete, nothing is done.

    With --plan FILE --part I/N, independent jobs, such as those of a SLURM array, write one part each.
    """
    if context.invoked_subcommand is not None:
        default = click.core.ParameterSource.DEFAULT
        given = [name for name in options if context.get_parameter_source(name) is not default]
        if plan_file is not None or part is not None or given:
            raise click.UsageError(f"Options must come after {context.invoked_subcommand!r}; --plan excludes it.")
        return
    if plan_file is None and part is not None:
        raise click.UsageError("--part needs a plan: imagery-dask export --plan FILE --part I/N.")
    if plan_file is None:
        click.echo(context.get_help())
        return
    from imagery_dask.export.registry import export_of

    plan = planned(plan_file)
    run(lambda: export_of(plan), plan.url, plan=plan, part=part, **options)


def planned(plan_file: str) -> ExportPlan:
    """Return a plan that can be run from its file alone; raise ValueError for the plan of a computed array."""
    from imagery_dask.export.registry import read_plan

    plan = read_plan(plan_file)
    if any("cutout" not in volume for volume in plan.volumes):
        raise ValueError(
            f"{plan_file} is the plan of a computed array, which it does not contain. Call the writer again in Python "
            "with the array: overwrite=False resumes the export, repair=True repairs it."
        )
    return plan


def _command(form: Format) -> click.Command:
    def callback(out: str, **options: object) -> None:
        run_keywords = {name: options[name] for name in (*RUN_OPTIONS, "block_mib") if name in options}
        run(lambda: form.build(out, options), out, **run_keywords)

    return form.command(callback, run_options, form.text)


for _form in FORMATS:
    export.add_command(_command(_form))
