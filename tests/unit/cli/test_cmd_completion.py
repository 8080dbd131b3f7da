"""Scripts for shells, and the examples that every command's help has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from inspect import cleandoc

import click
import pytest
from click.testing import CliRunner

from imagery_dask.cli.main import COMMANDS, commands


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Yield the commands and their subcommands by name."""
    for name in COMMANDS:
        command = commands.get_command(click.Context(commands), name)
        assert command is not None
        yield name, command
        for inner in getattr(command, "commands", {}).values():
            yield f"{name} {inner.name}", inner


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed(shell: str) -> None:
    result = CliRunner().invoke(commands, ["completion", shell])
    assert result.exit_code == 0
    assert "_IMAGERY_DASK_COMPLETE" in result.output
    if shell == "bash" and shutil.which("bash"):
        checked = subprocess.run(["bash", "-n"], input=result.output, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_another_shell_is_refused() -> None:
    assert CliRunner().invoke(commands, ["completion", "csh"]).exit_code == 2


def examples() -> Iterator[str]:
    for _, command in all_commands():
        _, _, text = cleandoc(command.help or "").partition("Examples:\n")
        lines = re.sub(r"\\\n\s*", " ", text).splitlines()
        yield from (line.strip() for line in lines if line.strip().startswith("imagery-dask"))


@pytest.mark.parametrize(
    ("name", "command"), list(all_commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_examples(name: str, command: click.Command) -> None:
    assert f"imagery-dask {name}" in (command.help or "").partition("Examples:")[2]


@pytest.mark.parametrize("line", list(dict.fromkeys(examples())))
def test_examples_are_valid_command_lines(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "imagery-dask"
    words = words[: words.index(">")] if ">" in words else words[: words.index(">>")] if ">>" in words else words
    # Files that the reader has are not here.
    words = [word for word in words if not word.endswith("config.yaml")]
    words = [word for word in words if word != "--config"]
    command: click.Command = commands
    context = click.Context(commands, info_name="imagery-dask")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        inner = command.get_command(context, name)
        assert inner is not None, name
        command = inner
    command.make_context(command.name, words, parent=context)
