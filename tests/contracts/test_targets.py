"""Every target fulfils the contract: when it is free, when it may be replaced, and that it is replaced as a whole."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.buckets import SHARED

from imagery_dask.export.images.slice_files import SliceNames, SliceTarget, SliceTargets
from imagery_dask.storage import zarr_stores
from imagery_dask.storage.atomic_files import Files, split_prefix
from imagery_dask.storage.targets import StoreTarget, VolumesTarget, VolumeTarget

Target = StoreTarget | VolumeTarget | VolumesTarget | SliceTarget | SliceTargets


@dataclass(frozen=True)
class Kind:
    """A kind of target, with functions that write to it and read from it."""

    make: Callable[[str], Target]
    # Write a number to a URL in the files of a run, and read it.
    write: Callable[[str, int], None]
    read: Callable[[str], int]


def write_zarr(url: str, value: int) -> None:
    group = zarr_stores.create_group(url, 3)
    group.create_array("0", data=np.full((2, 2, 2), value))


def read_zarr(url: str) -> int:
    return int(np.asarray(zarr.open_array(zarr_stores.open_store(url), path="0", mode="r")[...]).max())


def write_volume(url: str, value: int) -> None:
    files = Files.at(url)
    files.put("info", b'{"scales": [{"key": "8_8_40"}]}')
    files.put("8_8_40/0-1_0-1_0-1", str(value).encode())


def read_volume(url: str) -> int:
    return int(Files.at(url).get("8_8_40/0-1_0-1_0-1") or b"-1")


def slices(url: str) -> SliceTarget:
    files, stem = split_prefix(url)
    names = SliceNames(stem, 2, (8, 8, 1), None, False, "png")
    return SliceTarget(files, names, ((0, 8), (0, 8), (0, 1)), ("imagery",), False)


def write_slices(url: str, value: int) -> None:
    target = slices(url)
    target.files.put(target.names.name("imagery", 0), str(value).encode())


def read_slices(url: str) -> int:
    target = slices(url)
    return int(target.files.get(target.names.name("imagery", 0)) or b"-1")


def write_zarr_regions(url: str, value: int) -> None:
    zarr_stores.create_group(url, 3)
    write_zarr(f"{url}/a", value)


def region_slices(url: str) -> SliceTargets:
    return SliceTargets(url, {"a": slices(f"{url}/a/a")})


KINDS = {
    "zarr": Kind(StoreTarget, write_zarr, read_zarr),
    "zarr regions": Kind(StoreTarget, write_zarr_regions, lambda url: read_zarr(f"{url}/a")),
    "precomputed regions": Kind(
        VolumesTarget,
        lambda url, value: write_volume(f"{url}/a/image", value),
        lambda url: read_volume(f"{url}/a/image"),
    ),
    "slices of regions": Kind(
        region_slices, lambda url, value: write_slices(f"{url}/a/a", value), lambda url: read_slices(f"{url}/a/a")
    ),
    "precomputed": Kind(VolumeTarget, write_volume, read_volume),
    "slices": Kind(slices, write_slices, read_slices),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(params=["folder", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return the URL of a target that does not exist yet."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    if request.param == "folder":
        yield str(tmp_path / "some" / "out")
    elif request.param == "memory":
        yield f"memory://{name}/some/out"
    else:
        pytest.importorskip("obstore")
        server = request.getfixturevalue("s3_server")
        with server.environment():
            yield f"s3://{SHARED}/{name}/out"


def test_a_free_target_becomes_occupied(kind: Kind, url: str) -> None:
    target = kind.make(url)
    assert not target.occupied()
    target.check_writable()
    kind.write(url, 1)
    assert target.occupied()
    assert kind.make(url).occupied()


def test_checks_leave_no_files(kind: Kind, tmp_path: Path) -> None:
    target = kind.make(str(tmp_path / "out"))
    target.check_writable()
    target.occupied()
    target.recover()
    assert list(tmp_path.iterdir()) == []


def test_the_refusal_names_the_remedy(kind: Kind, url: str) -> None:
    kind.write(url, 1)
    refusal = kind.make(url).refusal()
    assert isinstance(refusal, FileExistsError)
    assert "exists already" in str(refusal)
    assert "overwrite=True (--overwrite)" in str(refusal)
    assert url.rpartition("/")[0] in str(refusal)


def test_clearing_keeps_a_neighbour_whose_name_begins_alike(kind: Kind, url: str) -> None:
    kind.write(url, 1)
    kind.write(f"{url}2", 2)
    target = kind.make(url)
    assert target.occupied()
    target.clear(target.beside("1234abcd"))
    assert kind.read(f"{url}2") == 2
    assert kind.make(f"{url}2").occupied()


def test_a_neighbour_does_not_make_a_target_occupied(kind: Kind, url: str) -> None:
    kind.write(f"{url}2", 2)
    assert not kind.make(url).occupied()


def test_a_target_is_replaced_as_a_whole(kind: Kind, url: str) -> None:
    target = kind.make(url)
    kind.write(url, 1)
    new_url = target.beside("1234abcd")
    if new_url == target.url:
        target.clear(new_url)  # buckets cannot rename
    else:
        assert kind.read(url) == 1
    kind.write(new_url, 2)
    if new_url != target.url:
        assert kind.read(url) == 1
        target.swap(new_url)
    target.recover()
    assert kind.read(url) == 2
    assert target.occupied()


def test_a_target_holds_the_files_of_a_run(kind: Kind, url: str) -> None:
    target = kind.make(url)
    assert not target.holds(url, written=True)
    kind.write(url, 1)
    assert target.holds(url, written=True)
    assert target.holds(url, written=False)


def test_a_target_can_be_made_for_another_url(kind: Kind, url: str) -> None:
    kind.write(f"{url}-b", 2)
    target = kind.make(url)
    other = target.at(f"{url}-b")
    assert type(other) is type(target)
    assert other.occupied()
    assert not target.occupied()


@pytest.mark.parametrize("name", ["zarr", "precomputed"])
def test_an_interrupted_replacement_is_undone(name: str, tmp_path: Path) -> None:
    kind, url = KINDS[name], str(tmp_path / "out")
    kind.write(str(tmp_path / ".out.replaced-1234abcd"), 1)
    target = kind.make(url)
    target.recover()
    assert kind.read(url) == 1
    kind.write(str(tmp_path / ".out.replaced-5678abcd"), 2)
    target.recover()
    assert kind.read(url) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["zarr", "precomputed"])
def test_files_of_other_programs_are_not_replaced(name: str, tmp_path: Path) -> None:
    kind, url = KINDS[name], str(tmp_path / "out")
    files = Files.at(url)
    files.put("chapter.tex", b"years of work")
    with pytest.raises(FileExistsError, match=f"is not a {'zarr store' if name == 'zarr' else 'precomputed volume'}"):
        kind.make(url).occupied()
    kind.write(url, 1)
    with pytest.raises(FileExistsError, match=r"chapter\.tex"):
        kind.make(url).occupied()
    assert files.get("chapter.tex") == b"years of work"


def test_clearing_slices_keeps_other_files_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "chapter.tex").write_bytes(b"years of work")
    target = slices(str(tmp_path / "out"))
    assert not target.occupied()
    write_slices(str(tmp_path / "out"), 1)
    target.clear(target.url)
    assert (tmp_path / "chapter.tex").read_bytes() == b"years of work"
