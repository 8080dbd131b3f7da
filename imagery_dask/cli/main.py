"""Entry point of ``imagery-dask``."""

from __future__ import annotations

import sys
from importlib import import_module

import click
from click.shell_completion import CompletionItem

__all__ = ["INTERRUPTED", "main"]

BAD_INPUT = 2
INTERRUPTED = 130

# First lines of the help texts of the commands, so that ``--help`` can list the commands without importing them.
COMMANDS = {
    "completion": "Print the script that completes commands and options in a shell.",
    "demo": "Make a small EM-like volume, export it to OME-Zarr on a local cluster, and write pictures of it.",
    "downsample": "Add levels to the OME-Zarr or precomputed volume URL, in place.",
    "export": "Write a region of imagery and segmentation.",
    "info": "Show the mips of SOURCE or of a datastack's layers: resolution, shape, chunks, encoding, size.",
    "plan": "Estimate what an export takes: blocks, bytes, requests, memory, time.",
    "status": "Show the progress of the exports at OUT.",
    "submit": "Run an export in a job of a batch system, which submits the jobs of its workers.",
    "verify": "Read the export OUT back and compare it with its receipts; or check a volume OUT of another program.",
    "versions": "Keep a region of a dynamic segmentation at several moments, and read each without a server.",
    "view": "Show sources and exports in Neuroglancer, served from this machine to this machine.",
}


class _LazyCommands(click.Group):
    """A click group that imports a command when it is run or completed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"imagery_dask.cli.cmd_{cmd_name}"), cmd_name)
        _keep_lines(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        named = [
            CompletionItem(name, help=click.Command(name, help=text).get_short_help_str())
            for name, text in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _keep_lines(command: click.Command) -> None:
    """Have click keep the lines of paragraphs that begin with a backslash and a b, as raw docstrings spell it."""
    command.help = (command.help or "").replace("\\b\n", "\b\n")
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _keep_lines(inner)


@click.group(cls=_LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="imagery_dask")
def commands() -> None:
    """Lazy cutouts and cluster-scale exports of connectomics volumes."""


def main() -> None:
    """Run the command line: exit code 0 done, 1 some blocks failed, 2 bad input, 130 interrupted."""
    from imagery_dask.errors import ImageryDaskError
    from imagery_dask.urls import redacted

    try:
        sys.exit(commands.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except (ImageryDaskError, ValueError, TypeError, OSError, ImportError) as error:
        click.echo(redacted(f"Error: {error}"), err=True)
        sys.exit(BAD_INPUT)
