"""``imagery-dask export``: write a region of a volume, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from imagery_dask.annotations import Keywords
from imagery_dask.cli.files.config_files import FORMAT, defaults_of, keep_config, read_config
from imagery_dask.cli.flags.param_types import PartType
from imagery_dask.cli.formats import FORMATS, Format
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
@click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="Run the export whose format, OUT and options a YAML or JSON file has.")  # fmt: skip
@run_options
@click.pass_context
def export(
    context: click.Context, /, plan_file: str | None, part: Part | None, config_file: str | None, **options: Any
) -> None:
    r"""Write a region of imagery and segmentation.

    Run the same command again to resume an interrupted export. If the export is complete, nothing is done.

    With --plan FILE --part I/N, independent jobs, such as those of a SLURM array, write one part each.

    Each export writes config.yaml among its records, OUT.receipts: with --config FILE, it is run again.

    \b
    Examples:
      imagery-dask export zarr OUT.zarr --image-source gs://bucket/em --bounds 0 0 0 512 512 64
      imagery-dask export zarr OUT.zarr --image-source gs://bucket/em --regions boxes.csv
      imagery-dask export --config OUT.zarr.receipts/config.yaml
      imagery-dask export --plan plan.json --part 3/8
    """
    if context.invoked_subcommand is not None:
        default = click.core.ParameterSource.DEFAULT
        given = [name for name in options if context.get_parameter_source(name) is not default]
        if plan_file is not None or part is not None or config_file is not None or given:
            raise click.UsageError(f"Options must come after {context.invoked_subcommand!r}; --plan excludes it.")
        return
    if config_file is not None:
        if plan_file is not None or part is not None:
            raise click.UsageError("--config and --plan exclude each other: a plan has the options of its export.")
        _run_config(context, config_file, options)
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


def _run_config(context: click.Context, config_file: str, options: Keywords) -> None:
    """Run the export that a file describes; options given on the command line win."""
    config = read_config(config_file)
    name = config.values.get(FORMAT)
    if name not in export.commands:
        raise ValueError(f"{config_file}: {FORMAT!r} must be one of {', '.join(export.commands)}; got {name!r}.")
    command = export.commands[str(name)]
    default = click.core.ParameterSource.DEFAULT
    given = {name: value for name, value in options.items() if context.get_parameter_source(name) is not default}
    values = defaults_of(config, command) | given
    with command.make_context(command.name, [], parent=context, default_map=values) as own:
        command.invoke(own)


def _command(form: Format) -> click.Command:
    def callback(out: str, **options: Any) -> None:
        context = click.get_current_context()
        run_keywords = {name: options[name] for name in (*RUN_OPTIONS, "block_mib") if name in options}
        run(lambda: form.build(out, options), out, lambda made: keep_config(context, made, out), **run_keywords)

    return form.command(callback, run_options, form.text)


for _form in FORMATS:
    export.add_command(_command(_form))
