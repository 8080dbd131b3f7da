"""``imagery-dask completion``: the script with which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

PROGRAM, VARIABLE = "imagery-dask", "_IMAGERY_DASK_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print the script that completes commands and options in a shell.

    Bash needs version 4.4 or later. Open a new shell after the script is in its place.

    \b
    Examples:
      imagery-dask completion bash >> ~/.bashrc
      imagery-dask completion zsh >> ~/.zshrc
      imagery-dask completion fish > ~/.config/fish/completions/imagery-dask.fish
    """
    from imagery_dask.cli.main import commands

    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"This version of click completes nothing in {shell}.")
    click.echo(made(commands, {}, PROGRAM, VARIABLE).source())
