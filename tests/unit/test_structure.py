"""The tree of the package: mirrored unit tests, distinct module names, small folders without import cycles."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import imagery_dask

PACKAGE = Path(imagery_dask.__file__).parent
UNIT_TESTS = Path(__file__).parent
# Tests that belong to no single module, with the reason.
WITHOUT_MODULE = {
    "test_light_imports.py": "the package as a whole",
    "test_public.py": "the package as a whole",
    "test_structure.py": "the package as a whole",
    "cluster/test_units.py": "times and sizes mean the same in cluster files and on the command line",
}
MAX_MODULES_IN_A_FOLDER = 16

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})


@pytest.mark.parametrize(
    "test", sorted(UNIT_TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(UNIT_TESTS))
)
def test_unit_tests_mirror_the_package(test: Path) -> None:
    relative = test.relative_to(UNIT_TESTS)
    if str(relative) not in WITHOUT_MODULE:
        assert relative.with_name(relative.name.removeprefix("test_")) in MODULES


def test_no_two_modules_share_a_name() -> None:
    paths: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        if not path.stem.startswith("__"):
            paths[path.stem].append(str(path))
    assert {name: same for name, same in paths.items() if len(same) > 1} == {}


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_folders_have_a_docstring_of_several_sentences(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())) or ""
    assert text.count(". ") + text.count(".\n") + text.endswith(".") >= 2, f"{folder} has a docstring of one sentence"


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_folders_are_small(folder: Path) -> None:
    assert (
        len([path for path in MODULES if path.parent == folder and path.stem != "__init__"]) <= MAX_MODULES_IN_A_FOLDER
    )


def imports_of(path: Path) -> Iterator[str]:
    """Yield the names that a module imports, also within functions, but not under ``TYPE_CHECKING``."""
    ignored: set[ast.AST] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            ignored.update(inner for statement in node.body for inner in ast.walk(statement))
        if node in ignored:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(name: str) -> Path:
    """Return the folder of the package that contains an imported name."""
    parts = name.split(".")[1:]
    folder = Path()
    for part in parts:
        if not (PACKAGE / folder / part).is_dir():
            break
        folder /= part
    return folder


def test_folders_import_each_other_in_one_direction() -> None:
    imported: dict[Path, set[Path]] = defaultdict(set)
    for path in MODULES:
        if path.parent == Path():  # top-level modules are above or below all folders
            continue
        for name in imports_of(path):
            if name.split(".")[0] == "imagery_dask":
                imported[path.parent].add(folder_of(name))
    left = {folder: others - {folder, Path()} for folder, others in imported.items()}
    while lowest := {folder for folder, others in left.items() if not others & left.keys()}:
        left = {folder: others for folder, others in left.items() if folder not in lowest}
    assert left == {}, "these folders, or folders below them, import each other"
