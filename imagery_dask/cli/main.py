"""Entry point of ``imagery-dask``."""

from __future__ import annotations

import sys

import click

from imagery_dask.cli.cmd_demo import demo
from imagery_dask.cli.cmd_export import export
from imagery_dask.cli.cmd_info import info
from imagery_dask.cli.cmd_plan import plan
from imagery_dask.cli.cmd_status import status
from imagery_dask.cli.cmd_submit import submit
from imagery_dask.cli.cmd_verify import verify
from imagery_dask.cli.run_flags import INTERRUPTED
from imagery_dask.errors import ImageryDaskError

__all__ = ["main"]

BAD_INPUT = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="imagery_dask")
def commands() -> None:
    """Lazy cutouts and cluster-scale exports of connectomics volumes."""


commands.add_command(demo)
commands.add_command(info)
commands.add_command(plan)
commands.add_command(export)
commands.add_command(submit)
commands.add_command(verify)
commands.add_command(status)


def main() -> None:
    """Run the command line: exit code 0 done, 1 some blocks failed, 2 bad input, 130 interrupted."""
    try:
        sys.exit(commands.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except (ImageryDaskError, ValueError, TypeError, OSError, ImportError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(BAD_INPUT)
