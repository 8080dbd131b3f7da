from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from support.http_server import Fault, FileServer

from imagery_dask.errors import AccessRefusedError, InvalidInfoError
from imagery_dask.sources.files.in_flight import BYTES_IN_FLIGHT
from imagery_dask.sources.requests.transport import Transport
from imagery_dask.sources.zarr.nodes import DESCRIBING, LARGEST_METADATA, read_nodes, read_root

ALL = list(DESCRIBING.values())
V3: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": {"a": 1}}
V2_ARRAY: dict[str, Any] = {"zarr_format": 2, "shape": [1]}


def write(folder: Path, **files: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(content if isinstance(content, str) else json.dumps(content))
    return f"file://{folder}"


def test_of_several_descriptions_the_first_counts(tmp_path: Path) -> None:
    path = write(tmp_path, _zarray=V2_ARRAY, _zattrs={"b": 2}, attributes_json={"dimensions": [1]})
    node = read_root(Transport(path), ALL)
    assert node is not None
    assert (node.name, node.format, node.array, node.attributes) == (".zarray", "zarr2", V2_ARRAY, {"b": 2})
    write(tmp_path, zarr_json=V3)
    node = read_root(Transport(path), ALL)
    assert node is not None
    assert (node.name, node.array, node.attributes) == ("zarr.json", None, {"a": 1})
    only_n5 = read_root(Transport(path), ["n5"])
    assert only_n5 is not None
    assert only_n5.array == {"dimensions": [1]}


def test_folders_are_read_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, zarr_json=V3)
    write(tmp_path / "0", _zarray=V2_ARRAY)
    write(tmp_path / "2", _zgroup={})
    found = read_nodes(Transport(path), ["2/", "1/", "0/"], ["zarr2"], "zarr.json")
    assert [None if node is None else node.name for node in found] == [".zgroup", None, ".zarray"]


@pytest.mark.parametrize("name", ["zarr_json", "_zarray", "_zattrs", "attributes_json"])
@pytest.mark.parametrize("content", ["[1]", "{", ""])
def test_what_is_no_object_of_json_is_named(name: str, content: str, tmp_path: Path) -> None:
    path = write(tmp_path, **({"_zgroup": {}} if name == "_zattrs" else {}), **{name: content})
    with pytest.raises(InvalidInfoError, match=name.replace("_", r"\.", 1)):
        read_root(Transport(path), ALL)


@pytest.mark.parametrize("hides", [True, False], ids=["absent files are refused", "absent files are absent"])
@pytest.mark.parametrize("name", ["zarr_json", "_zarray", "attributes_json"])
def test_refusals_beside_a_node(
    hides: bool, name: str, tmp_path: Path, http_server_factory: Callable[..., FileServer]
) -> None:
    """A bucket that cannot be listed refuses what is absent; another server refuses what it has."""
    write(tmp_path / "em", **{name: V2_ARRAY | V3})
    server, refused = http_server_factory(tmp_path), Fault(HTTPStatus.FORBIDDEN)
    stored = f"/em/{name.replace('_', '.', 1)}"
    asked = [f"/em/{one}" for one in (*DESCRIBING, ".zattrs")]
    before = asked[: asked.index(stored)]
    server.faults = lambda path, _: refused if (path != stored if hides else path in before) else None
    transport = Transport(f"{server.url}/em")
    if hides or not before:
        node = read_root(transport, ALL)
        assert node is not None
        assert f"/em/{node.name}" == stored
    else:
        with pytest.raises(AccessRefusedError, match=before[0]):
            read_root(transport, ALL)
    server.faults = lambda *_: refused
    with pytest.raises(AccessRefusedError):
        read_root(Transport(f"{server.url}/em"), ALL)


def test_many_files_are_asked_for_at_once() -> None:
    assert BYTES_IN_FLIGHT // LARGEST_METADATA >= 64
