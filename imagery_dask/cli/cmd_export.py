"""``imagery-dask export``: a region of a volume, written block by block on a cluster."""

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
              help="Run what imagery-dask plan has saved; or go on with OUT, by the plan beside it.")  # fmt: skip
@click.option("--part", "part", type=PartType(),
              help="Of a plan: only every N-th block, from the I-th. The last part closes the store.")  # fmt: skip
@run_options
@click.pass_context
def export(context: click.Context, /, plan_file: str | None, part: Part | None, **options: object) -> None:
    """Write a region of imagery and segmentation.

    The same command again goes on with what was interrupted, and does nothing when all of it is there.

    With --plan FILE --part I/N, jobs that know nothing of each other do a part each: a SLURM array, for example.
    """
    if context.invoked_subcommand is not None:
        default = click.core.ParameterSource.DEFAULT
        given = [name for name in options if context.get_parameter_source(name) is not default]
        if plan_file is not None or part is not None or given:
            raise click.UsageError(f"Options come after {context.invoked_subcommand}; --plan takes its place.")
        return
    if plan_file is None and part is not None:
        raise click.UsageError("--part is of a plan, which all parts part: export --plan FILE --part I/N.")
    if plan_file is None:
        click.echo(context.get_help())
        return
    from imagery_dask.export.registry import export_of

    plan = planned(plan_file)
    run(lambda: export_of(plan), plan.url, plan=plan, part=part, **options)


def planned(plan_file: str) -> ExportPlan:
    """Read a plan that has everything it takes to run it."""
    from imagery_dask.export.registry import read_plan

    plan = read_plan(plan_file)
    if any("cutout" not in volume for volume in plan.volumes):
        raise ValueError(
            f"{plan_file} is of an array that was computed, which a plan does not hold; call the writer again with it "
            "(overwrite=False goes on, repair=True repairs)."
        )
    return plan


def _command(form: Format) -> click.Command:
    def callback(out: str, **options: object) -> None:
        of_run = {name: options[name] for name in (*RUN_OPTIONS, "block_mib") if name in options}
        run(lambda: form.build(out, options), out, **of_run)

    return form.command(callback, run_options, form.text)


for _form in FORMATS:
    export.add_command(_command(_form))
