"""``imagery-dask submit``: an export whose driver is a job of a batch system, as its workers are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imagery_dask.cli.cmd_export import export, planned
from imagery_dask.cli.formats import FORMATS
from imagery_dask.cli.run_flags import RUN_OPTIONS, run_options_of

if TYPE_CHECKING:
    from imagery_dask.cluster import ClusterFile
    from imagery_dask.export.core.base import Export
    from imagery_dask.export.core.run_options import RunOptions

__all__ = ["submit"]

PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--cluster", metavar="FILE", help="Cluster file of a batch system (cluster_configs/slurm.yaml).")
@click.option("--dry-run", is_flag=True, help="Print the driver's script; submit nothing.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="EXPORT...")
def submit(cluster: str | None, dry_run: bool, arguments: tuple[str, ...]) -> None:
    """Run an export in a job of a batch system, which submits the jobs of its workers.

    EXPORT is what follows imagery-dask export: zarr OUT ..., or --plan FILE. The job id is printed; imagery-dask status
    OUT says how far it is. Nodes must be able to submit jobs.
    """
    from imagery_dask.cluster import driver_script, load_cluster_file, submit_driver
    from imagery_dask.export.execution.resume import refuse_occupied
    from imagery_dask.records.drivers import Driver
    from imagery_dask.records.runs import now

    if not arguments:
        raise click.UsageError("Say what to export: submit --cluster FILE zarr OUT --image-source URL ...")
    if any(PASSWORD.search(each) for each in arguments):
        raise ValueError(
            "A script is read by others: leave the password out of the URL, and put it where the source's library "
            "looks for it (CloudVolume's secrets, ~/.netrc)."
        )
    built, run_options = _export(arguments)
    if cluster and any(each.partition("=")[0] == "--cluster" for each in arguments):
        raise click.UsageError("--cluster is said twice: once is enough, before what is exported or behind it.")
    if (cluster or run_options.cluster) == "local":
        raise click.UsageError("Say which batch system: --cluster FILE (cluster_configs/slurm.yaml).")
    chosen = Path(cluster or run_options.cluster)
    file = load_cluster_file(chosen, run_options.retire_before_s)
    file.check_count(run_options.workers)
    # Right behind the name of the format: a "--" may come.
    begin = 0 if run_options.plan else 1
    added = ["--cluster", str(chosen.absolute())] if cluster else []
    command = ["export", *arguments[:begin], *added, *arguments[begin:]]
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
    click.echo(f"  its script: {job.script}" + (f"; its output: {job.logs}" if job.logs else ""))
    click.echo(f"  how far it is: imagery-dask status {built.url}")


def _refuse_second(built: Export, file: ClusterFile) -> None:
    """Refuse a driver beside another one, which waits in the queue or is at work."""
    from imagery_dask.cluster import is_listed, system_of
    from imagery_dask.records.drivers import driver_of

    there = None if built.records is None or file.cluster is None else driver_of(built.records)
    if there is not None and there.system == system_of(file.cluster) and is_listed(there.system, there.job):
        raise ValueError(
            f"Job {there.job} ({there.system}) is the driver of {built.url} already (imagery-dask status {built.url}); "
            "end it first, or wait for it."
        )


def _export(arguments: Sequence[str]) -> tuple[Export, RunOptions]:
    """Export that some arguments mean, and how it runs, so that errors come now and not in the job."""
    form = next((each for each in FORMATS if each.name == arguments[0]), None)
    command, rest = (export, arguments) if form is None else (export.commands[form.name], arguments[1:])
    options = command.make_context(f"imagery-dask export {form.name if form else ''}".rstrip(), list(rest)).params
    of_run = {name: options[name] for name in (*RUN_OPTIONS, "block_mib") if name in options}
    if form is not None:
        return form.build(options["out"], options), run_options_of(**of_run)
    if options["plan_file"] is None:
        names = ", ".join(each.name for each in FORMATS)
        raise click.UsageError(f"What to export begins with one of {names}, or is --plan FILE; got {arguments[0]!r}.")
    if options["part"] is not None:
        raise click.UsageError(
            "submit starts one driver for all of an export. Parts need none: let an array of jobs run imagery-dask "
            "export --plan FILE --part I/N (docs/clusters.md)."
        )
    from imagery_dask.export.registry import export_of

    plan = planned(options["plan_file"])
    return export_of(plan), run_options_of(**of_run, plan=plan)
