"""``imagery-dask submit``: run the driver of an export as a job of a batch system, like its workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imagery_dask.cli.cmd_export import export, planned
from imagery_dask.cli.flags.region_flags import one_of_bounds
from imagery_dask.cli.formats import FORMATS
from imagery_dask.cli.run_flags import RUN_OPTIONS, run_options_of
from imagery_dask.urls import redacted
from imagery_dask.validate import expanded_path

if TYPE_CHECKING:
    from imagery_dask.cluster import ClusterFile
    from imagery_dask.export.core.base import Export
    from imagery_dask.export.core.run_options import RunOptions

__all__ = ["submit"]


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--cluster", metavar="FILE", help="Cluster file of a batch system (cluster_configs/slurm.yaml).")
@click.option("--dry-run", is_flag=True, help="Print the driver's script instead of submitting it.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="EXPORT...")
def submit(cluster: str | None, dry_run: bool, arguments: tuple[str, ...]) -> None:
    r"""Run an export in a job of a batch system, which submits the jobs of its workers.

    EXPORT is the arguments of imagery-dask export: zarr OUT ..., or --plan FILE. The job id is printed; imagery-dask
    status OUT shows the progress. The cluster's nodes must be able to submit jobs.

    \b
    Examples:
      imagery-dask submit --cluster slurm.yaml zarr OUT.zarr --image-source em --bounds 0 0 0 4096 4096 512
      imagery-dask submit --cluster slurm.yaml zarr OUT.zarr --image-source em --regions boxes.csv
      imagery-dask submit --cluster slurm.yaml zarr OUT.zarr --config config.yaml
      imagery-dask submit --cluster slurm.yaml --dry-run -- --plan plan.json
    """
    from imagery_dask.cluster import driver_script, load_cluster_file, submit_driver
    from imagery_dask.export.execution.resume import refuse_occupied
    from imagery_dask.records.drivers import Driver
    from imagery_dask.records.runs import now

    if not arguments:
        raise click.UsageError("Give an export: imagery-dask submit --cluster FILE zarr OUT --image-source URL ...")
    if secret := next((argument for argument in arguments if redacted(argument) != argument), None):
        raise ValueError(
            f"{redacted(secret)} has a password or token, and other users can read the driver's script and command "
            "line. Leave it out of the URL, and store it where the source's library looks for it (CloudVolume's "
            "secrets, ~/.netrc); or run imagery-dask export in a job of your own."
        )
    built, run_options = _export(arguments)
    if cluster and any(argument.partition("=")[0] == "--cluster" for argument in arguments):
        raise click.UsageError("--cluster is given twice: give it once, before or after the export's arguments.")
    named = cluster or run_options.cluster
    if named is None or named == "local":
        raise click.UsageError("submit needs a batch system: --cluster FILE (cluster_configs/slurm.yaml).")
    chosen = Path(expanded_path(named))
    file = load_cluster_file(chosen, run_options.retire_before_s)
    file.check_count(run_options.workers, run_options.max_workers)
    # Insert --cluster right after the name of the format, since the arguments may contain "--".
    format_words = 0 if run_options.plan else 1
    cluster_words = ["--cluster", str(chosen.absolute())] if cluster else []
    command = ["export", *arguments[:format_words], *cluster_words, *arguments[format_words:]]
    if dry_run:
        click.echo(driver_script(file, command))
        return
    built.target.check_writable()
    refuse_occupied(built, run_options.overwrite)
    _refuse_second(built, file)
    job = submit_driver(file, command)
    click.echo(f"Submitted job {job.job} ({job.system}).")
    if built.records is not None:
        Driver(**asdict(job), submitted=now()).write(built.records)
    click.echo(f"  script: {job.script}" + (f"; output: {job.logs}" if job.logs else ""))
    click.echo(f"  progress: imagery-dask status {built.url}")


def _refuse_second(built: Export, file: ClusterFile) -> None:
    """Raise if another driver of the export is running or queued."""
    from imagery_dask.cluster import is_listed, system_of
    from imagery_dask.records.drivers import driver_of

    driver = None if built.records is None or file.cluster is None else driver_of(built.records)
    if driver is not None and driver.system == system_of(file.cluster) and is_listed(driver.system, driver.job):
        raise ValueError(
            f"Job {driver.job} ({driver.system}) is already the driver of {built.url} (imagery-dask status "
            f"{built.url}). Cancel it, or wait until it ends."
        )


def _export(arguments: Sequence[str]) -> tuple[Export, RunOptions]:
    """Return the export that the arguments describe, and its run options; errors appear here rather than in the job."""
    form = next((form for form in FORMATS if form.name == arguments[0]), None)
    command, rest = (export, arguments) if form is None else (export.commands[form.name], arguments[1:])
    context = command.make_context(f"imagery-dask export {form.name if form else ''}".rstrip(), list(rest))
    options = context.params if form is None else context.params | one_of_bounds(context)
    run_keywords = {name: options[name] for name in (*RUN_OPTIONS, "block_mib") if name in options}
    if form is not None:
        return form.build(options["out"], options), run_options_of(**run_keywords)
    if options["plan_file"] is None:
        names = ", ".join(form.name for form in FORMATS)
        raise click.UsageError(f"An export begins with one of {names}, or is --plan FILE; got {arguments[0]!r}.")
    if options["part"] is not None:
        raise click.UsageError(
            "submit starts one driver for a whole export, and parts run without a driver. Submit an array of jobs that "
            "run imagery-dask export --plan FILE --part I/N (docs/how-to/clusters.md)."
        )
    from imagery_dask.export.registry import export_of

    plan = planned(options["plan_file"])
    return export_of(plan), run_options_of(**run_keywords, plan=plan)
