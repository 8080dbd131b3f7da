"""Heavy modules are loaded only when needed. Each case runs in a process that prints its modules when it ends."""

import os
import subprocess
import sys

import pytest

from imagery_dask.testing.volume import write_demo_volumes

HEAVY = {
    "caveclient", "cloudfiles", "cloudvolume", "dask", "distributed", "pandas", "pydantic", "scipy", "xarray", "zarr",
}  # fmt: skip
COMMANDS = ("demo", "export", "info", "plan", "status", "submit", "verify")
PRINT = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules)); "


def loaded(program: str, arguments: tuple[str, ...] = (), **variables: str) -> set[str]:
    """Return the heavy modules that a program has loaded when it ends."""
    result = subprocess.run(
        [sys.executable, "-c", PRINT + program, *arguments], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | variables,
    )  # fmt: skip
    lines = [line for line in result.stdout.splitlines() if line.startswith("LOADED")]
    assert lines, result.stderr
    assert result.returncode == 0, result.stderr
    return HEAVY & set(lines[-1].split())


def command_line(*arguments: str, **variables: str) -> set[str]:
    program = "import importlib.metadata as m; m.version = lambda name: '0'; from imagery_dask.cli import main; main()"
    return loaded(program, arguments, **variables)


def test_importing_the_package_loads_no_heavy_module():
    assert loaded("import imagery_dask; assert 'to_zarr' in dir(imagery_dask)") == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",), ("--version",), *((command, "--help") for command in COMMANDS),
        *((group, form, "--help") for group in ("export", "plan") for form in ("zarr", "precomputed", "png")),
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_loads_no_heavy_module(arguments):
    assert command_line(*arguments) == set()


@pytest.mark.parametrize("words", ["imagery-dask ", "imagery-dask export zarr --co"])
def test_completion_loads_no_heavy_module(words):
    program = "import sys; sys.argv[0] = 'imagery-dask'; from imagery_dask.cli import main; main()"
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    assert loaded(program, _IMAGERY_DASK_COMPLETE="bash_complete", **variables) == set()


def test_the_list_of_commands_has_the_first_paragraphs_of_their_help():
    from imagery_dask.cli.main import COMMANDS as texts
    from imagery_dask.cli.main import commands

    assert tuple(texts) == COMMANDS
    for name, text in texts.items():
        command = commands.get_command(None, name)
        assert " ".join(command.help.split("\n\n")[0].split()) == text


def test_a_plane_of_a_flat_volume_loads_neither_caveclient_nor_zarr(tmp_path):
    volumes = write_demo_volumes(tmp_path)
    program = (
        "import sys; from imagery_dask import ImageryClient; c = ImageryClient(image_source=sys.argv[1]); "
        "c.image_volume  # a method\nlower = c._settings.image_layer().mips[0].grid.start\n"
        "c.image_cutout([lower, [n + 8 for n in lower]], mip=0)[:, :, 0].compute()"
    )
    # pandas is not compared, because dask.array imports xarray if it is installed, and xarray imports pandas.
    assert loaded(program, (volumes.image_source,)) & {"caveclient", "zarr"} == set()
