"""Heavy modules are loaded only when needed. Each case runs in a process that prints its modules when it ends."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from imagery_dask.testing.volume import write_demo_volumes

HEAVY = {
    "caveclient", "cloudfiles", "cloudvolume", "dask", "distributed", "pandas", "pydantic", "scipy", "xarray", "zarr",
}  # fmt: skip
COMMANDS = (
    "completion", "demo", "downsample", "export", "info", "plan", "status", "submit", "verify", "versions", "view",
)  # fmt: skip
PRINT = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules)); "
# Runs command lines one after another, and prints the modules after each.
COMMAND_LINES = """
import importlib.metadata, json, sys
importlib.metadata.version = lambda name: "0"
from imagery_dask.cli import main
for sys.argv[1:] in json.loads(sys.argv[1]):
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    print("AFTER", *sys.modules)
"""


@functools.cache
def loaded(program: str, arguments: tuple[str, ...] = (), **variables: str) -> set[str]:
    """Return the heavy modules that a program has loaded when it ends."""
    return printed("LOADED", PRINT + program, arguments, **variables)[-1]


def command_lines(*lines: list[str]) -> list[set[str]]:
    """Return the heavy modules that one process has loaded after each of several command lines."""
    found = printed("AFTER", COMMAND_LINES, (json.dumps(lines),))
    assert len(found) == len(lines)
    return found


def printed(word: str, program: str, arguments: tuple[str, ...], **variables: str) -> list[set[str]]:
    """Return the heavy modules in each line that a program prints after a word."""
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | variables,
    )  # fmt: skip
    lines = [line for line in result.stdout.splitlines() if line.startswith(word)]
    assert lines, result.stderr
    assert result.returncode == 0, result.stderr
    return [HEAVY & set(line.split()) for line in lines]


def test_importing_the_package_loads_no_heavy_module():
    assert loaded("import imagery_dask; assert 'to_zarr' in dir(imagery_dask)") == set()


def test_help_loads_no_heavy_module():
    lines = [
        ["--help"], ["--version"], *([command, "--help"] for command in COMMANDS),
        *([group, form, "--help"] for group in ("export", "plan") for form in ("zarr", "precomputed", "png")),
        *(["versions", what, "--help"] for what in ("create", "add", "list", "remove", "verify")),
    ]  # fmt: skip
    found = {" ".join(line): modules for line, modules in zip(lines, command_lines(*lines), strict=True)}
    assert found == dict.fromkeys(found, set())


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


@pytest.mark.parametrize("incomplete", ["", "e", "s", "x", "--"])
def test_commands_are_completed_as_click_completes_them(incomplete):
    from imagery_dask.cli.main import commands

    context = click.Context(commands)
    by_click = click.Group.shell_complete(commands, context, incomplete)  # which imports every command
    completed = commands.shell_complete(context, incomplete)
    assert [(item.value, item.help) for item in completed] == [(item.value, item.help) for item in by_click]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return write_demo_volumes(tmp_path_factory.mktemp("volumes"), shape=(64, 64, 40))


@pytest.fixture(scope="module")
def exports(volumes, tmp_path_factory):
    """Return the URLs of finished exports of a flat local volume, by kind."""
    from imagery_dask import ImageryClient, to_png, to_precomputed, to_zarr

    data = ImageryClient(**sources(volumes)).dataset([[n - 16 for n in volumes.center], volumes.center])
    folder = tmp_path_factory.mktemp("exports")
    urls = {kind: str(folder / kind) for kind in ("zarr", "precomputed", "png")}
    for kind, write in (("zarr", to_zarr), ("precomputed", to_precomputed), ("png", to_png)):
        write(data, urls[kind], progress=False)
    return urls


def sources(volumes):
    return {"image_source": volumes.image_source, "segmentation_source": volumes.segmentation_source}


@pytest.mark.parametrize("selected", ["", "[:, :, 3]"], ids=["whole", "plane"])
def test_cutouts_of_flat_volumes_load_what_dask_loads(selected, volumes, http_server_factory):
    program = (
        "import json, sys; from imagery_dask import ImageryClient; c = ImageryClient(**json.loads(sys.argv[1])); "
        f"bounds = json.loads(sys.argv[2]); c.image_cutout(bounds){selected}.compute(); "
        f"c.segmentation_cutout(bounds){selected}.compute()"
    )
    bounds = [[n - 16 for n in volumes.center], volumes.center]
    # dask.array imports xarray if it is installed, and xarray imports pandas.
    of_dask = "import dask.array"
    image = Path(volumes.image_source.partition("file://")[2])
    served = f"precomputed://{http_server_factory(image.parent).url}/{image.name}"
    used = json.dumps(sources(volumes) | {"image_source": served})
    assert loaded(program, (used, json.dumps(bounds))) == loaded(of_dask)


def test_status_loads_no_library_of_arrays(exports):
    assert command_lines(*(["status", url] for url in exports.values())) == [{"pydantic"}] * len(exports)


@pytest.mark.parametrize(
    ("kinds", "libraries"), [(("png", "precomputed"), set()), (("zarr",), {"zarr"})], ids=["volumes", "zarr"]
)
def test_verify_loads_what_the_export_needs(kinds, libraries, exports):
    # In threads of this process, so that what reads the blocks is included.
    program = (
        "import sys; from imagery_dask import verify_export; "
        "assert all(verify_export(url, sample=None, progress=False).ok for url in sys.argv[1:])"
    )
    used = loaded(program, tuple(exports[kind] for kind in kinds))
    assert used & {"caveclient", "cloudfiles", "cloudvolume", "zarr"} == libraries


EXPORT_ON_A_WORKER = """
import json, sys
from distributed import Client, LocalCluster

def loaded():
    import sys
    return sorted(set(sys.modules) & {"cloudfiles", "cloudvolume", "dask.array", "pandas", "xarray"})

if __name__ == "__main__":
    from imagery_dask import ImageryClient, to_zarr  # here, because workers import the script

    data = ImageryClient(**json.loads(sys.argv[1])).dataset(json.loads(sys.argv[2]), scale_to_bounds=False)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        to_zarr(data, sys.argv[3], cluster=client, progress=False)
        print(*client.run(loaded).values())
"""


@pytest.mark.long
def test_a_worker_that_writes_cutouts_to_zarr_loads_neither_dask_array_nor_cloudvolume(volumes, tmp_path):
    (tmp_path / "export.py").write_text(EXPORT_ON_A_WORKER)
    bounds = [[n - 16 for n in volumes.center], volumes.center]
    words = [json.dumps(sources(volumes)), json.dumps(bounds), str(tmp_path / "out.zarr")]
    result = subprocess.run(
        [sys.executable, tmp_path / "export.py", *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_commands_without_a_cluster_load_no_scheduler(volumes, tmp_path):
    bounds = [str(n) for corner in ([n - 16 for n in volumes.center], volumes.center) for n in corner]
    urls = {kind: str(tmp_path / kind / "o") for kind in ("png", "precomputed", "zarr")}
    options = ["--image-source", volumes.image_source, "--bounds", *bounds, "--resolution", "8", "8", "40"]
    exports = [["export", kind, url, *options] for kind, url in urls.items()]
    used = command_lines(*exports)
    assert used[-1] & {"caveclient", "cloudfiles", "cloudvolume", "distributed"} == set()
    for first, again in zip(used, command_lines(*exports), strict=True):
        assert again - first <= {"pydantic"}  # nothing is left to do, as the plan says
    assert "distributed" not in command_lines(*(["verify", url] for url in urls.values()))[-1]
