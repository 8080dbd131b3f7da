"""What a view serves, read by other programs over HTTP, is equal to the volume; the command serves until Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorstore
from cloudvolume import CloudVolume
from support.http_server import Fault, FileServer
from support.programs import PROGRAM, environment
from support.volumes import coordinate_volume, downsample, random_labels, write_volume

from imagery_dask import ImageryClient, to_precomputed, to_zarr
from imagery_dask.cli import main
from imagery_dask.sources.requests.credentials import TOKEN_VARIABLE
from imagery_dask.testing.cave import CaveServer, make_world

pytest.importorskip("neuroglancer", reason="needs neuroglancer: pip install 'imagery_dask[browser]'")

SHAPE, OFFSET, CHUNK = (70, 50, 20), (-32, 64, 7), (32, 16, 8)
IMAGE = coordinate_volume(SHAPE, OFFSET, np.uint8)
IDS = random_labels(SHAPE, n=20, above_2_63=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewed")
    options: Any = {"voxel_offset": OFFSET, "chunk_size": CHUNK, "mips": 2}
    write_volume(folder / "em", IMAGE, **options)
    write_volume(folder / "seg", IDS, layer_type="segmentation", encoding="compressed_segmentation", **options)
    return folder


def opened(url: str, mip: int = 0) -> Any:
    return CloudVolume(f"precomputed://{url}", mip=mip, progress=False, parallel=1, green_threads=False)


def read_by_tensorstore(url: str, mip: int = 0) -> Any:
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"{url}/", "scale_index": mip}
    return tensorstore.open(spec).result().read().result()[..., 0]


def test_other_readers_find_the_voxels_of_every_mip(folder: Path) -> None:
    client = ImageryClient(image_source=str(folder / "em"), segmentation_source=str(folder / "seg"))
    with client.view(browser=False) as view:
        for number, data in enumerate((IMAGE, IDS)):
            for mip in range(2):
                url, expected = view.data_url(number), downsample(data, mip)
                np.testing.assert_array_equal(opened(url, mip)[:][..., 0], expected)
                np.testing.assert_array_equal(read_by_tensorstore(url, mip), expected)


def chunks(server: FileServer) -> list[str]:
    return [request.path for request in server.requests if not request.path.endswith("/info")]


def test_a_slice_in_the_viewer_reads_its_chunks(folder: Path, http_server_factory: Callable[..., FileServer]) -> None:
    server = http_server_factory(folder)
    client = ImageryClient(image_source=f"{server.url}/em", segmentation_source=f"{server.url}/seg")
    server.reset()
    with client.view([[0, 70, 10], [20, 90, 11]], browser=False) as view:
        assert server.requests == []
        np.testing.assert_array_equal(opened(view.data_url(0))[0:32, 64:80, 7:15][..., 0], IMAGE[32:64, :16, :8])
        assert len(chunks(server)) == 1
        opened(view.data_url(0))[0:32, 64:80, 7:15]
        assert len(chunks(server)) == 1  # decoded chunks are kept


def test_missing_and_refused_chunks(folder: Path, http_server_factory: Callable[..., FileServer]) -> None:
    chunk = "0-32_64-80_7-15"
    for status, answer in ((404, 200), (403, 403)):
        server = http_server_factory(
            folder, faults=lambda path, n, status=status: Fault(status=status) if path.endswith(chunk) else None
        )
        client = ImageryClient(image_source=f"{server.url}/em", segmentation=False)
        with client.view(browser=False) as view:
            found = requests.get(f"{view.data_url(0)}/0/{chunk}", timeout=20)
            assert found.status_code == answer
            assert answer == 403 or found.content == bytes(32 * 16 * 8)


def test_roots_at_a_moment(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    before, after = world.times["created"], max(world.times.values())
    with CaveServer(world) as server:
        client = ImageryClient(server.client(), imagery=False, timestamp=before)
        roots = {moment: client.segmentation_volume(timestamp=moment).values for moment in (before, after)}
        assert (roots[before] != roots[after]).any()
        server.reset()
        with client.view(browser=False) as then, client.view(timestamp=after, browser=False) as now:
            assert server.count("roots_binary") == 0
            np.testing.assert_array_equal(opened(then.data_url(0))[:][..., 0], roots[before])
            np.testing.assert_array_equal(opened(now.data_url(0))[:][..., 0], roots[after])
        root = int(roots[before].max())
        replaced = np.setdiff1d(roots[before], roots[after])
        with client.view(root_ids=[root], browser=False) as view:
            assert view.root_ids == [root]
        with pytest.raises(ValueError, match=f"root_ids: 1 of 1 were not valid at .*{replaced[0]}"):
            client.view(root_ids=[replaced[0]], timestamp=after, browser=False)


# ---------------------------------------- the command


@contextmanager
def viewing(*arguments: Any, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run the command, yield the address that it prints, and stop it by Ctrl-C, after which it exits with 0."""
    command = [sys.executable, "-c", PROGRAM, "view", "--no-browser", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(env), bufsize=1
    )
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]
        found = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+/v/[0-9a-f]{40}/) in a browser on this machine\.\n", line)
        assert found, line + process.communicate(timeout=20)[1]
        assert process.stdout.readline() == "Press Ctrl-C to stop.\n"  # type: ignore[union-attr]
        yield found[1]
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
        assert (process.returncode, out, error) == (0, "Stopped.\n", "")
    finally:
        process.kill()
        process.wait()


def test_the_command_serves_sources_and_exports(folder: Path) -> None:
    client = ImageryClient(image_source=str(folder / "em"), segmentation_source=str(folder / "seg"))
    data = client.dataset([[-31, 65, 8], [33, 113, 24]])
    to_zarr(data, folder / "out.zarr", progress=False)
    to_precomputed(data, folder / "out", progress=False)
    places = [folder / "seg", folder / "out.zarr", f"precomputed://file://{folder}/em", folder / "out"]
    bounds = ("--bounds", -31, 65, 8, 33, 113, 24)
    with viewing(*places, *bounds, "--root-ids", int(IDS.max())) as url:
        data_url = url.replace("/v/", "/data/")
        expected = [IDS, None, None, IMAGE, data.image.values, data.segmentation.values]
        for number, voxels in enumerate(expected):
            if voxels is not None:
                np.testing.assert_array_equal(opened(f"{data_url}{number}")[:][..., 0], voxels)
        for number, group in ((1, ""), (2, "labels/segmentation/")):
            array = (folder / "out.zarr" / f"{group}0" / "zarr.json").read_bytes()
            assert requests.get(f"{data_url}{number}/0/zarr.json", timeout=20).content == array
            part = requests.get(f"{data_url}{number}/0/zarr.json", headers={"Range": "bytes=-7"}, timeout=20)
            assert (part.status_code, part.content) == (206, array[-7:])
            assert part.headers["Content-Range"] == f"bytes {len(array) - 7}-{len(array) - 1}/{len(array)}"
        assert requests.get(f"{data_url}1/..%2f..%2fem/info", timeout=20).status_code == 404


def test_the_command_serves_a_datastack_and_a_graph_at_a_moment(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    moment = int(world.times["split_1"])
    with CaveServer(world) as server:
        client = ImageryClient(server.client(), timestamp=moment)
        image, ids = client.image_volume().values, client.segmentation_volume().values
        datastack = ("--datastack", server.datastack, "--server", server.url)
        root = int(ids.max())
        for what, number in ((datastack, 1), ([server.segmentation_source], 0)):
            arguments = [*what, "--timestamp", moment, "--root-ids", root]
            with viewing(*arguments, env={TOKEN_VARIABLE: server.tokens[0]}) as url:
                data_url = url.replace("/v/", "/data/")
                np.testing.assert_array_equal(opened(f"{data_url}{number}")[:][..., 0], ids)
                if number:
                    np.testing.assert_array_equal(opened(f"{data_url}0")[:][..., 0], image)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "Give what to show"),
        (["NOWHERE"], "NOWHERE.* is no precomputed volume, and no export"),
        (["em", "--root-ids", "5"], "--root-ids need a segmentation"),
        (["em", "--bounds", *"000", *"011"], "bounds are inverted or empty along x"),
        (["em", "--timestamp", "2999-01-01"], "in the future"),
        (["em", "--version", "5"], "--version need a --datastack"),
    ],
)
def test_bad_input_of_the_command(
    folder: Path, arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["imagery-dask", "view", "--no-browser", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert re.search(named, error), error
