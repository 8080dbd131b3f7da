"""A token occurs in no file that a run leaves and in no message to a scheduler or worker."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import requests
from distributed import Client
from integration.stores import labels, written
from support.dynamic import served
from support.programs import PROGRAM, environment
from support.recording import PLAIN, RecordedCluster, recorded_cluster

from imagery_dask.testing.cave import CaveServer, World, make_world
from imagery_dask.testing.cave.http_base import Fault

#: Contains characters that URLs, JSON and base64 encode.
TOKEN = 'plant/ed+"f00d=baad&cafe7ac1e'
ORIGINS = ["environment", "file", "argument"]
WRONG = 'wrong/too+"beef=dead&facade5ca1e'


def forms(secret: str) -> list[bytes]:
    """Return the encodings of a secret to search for: plain, URL, JSON, base64 at any offset, hexadecimal, UTF-16."""
    plain = secret.encode()
    encoded = [plain, quote(secret, safe="").encode(), quote(secret).encode(), json.dumps(secret)[1:-1].encode()]
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Leave out characters that depend on the neighbouring bytes.
            encoded.append(encode(b"\0" * offset + plain)[(0, 2, 3)[offset] : -4])
    return [*encoded, plain.hex().encode(), plain.hex().upper().encode(), secret.encode("utf-16-le")]


def leaks(contents: Mapping[str, bytes], *secrets: str) -> list[str]:
    """Return the names of the contents that hold one of the secrets in any form."""
    searched_forms = [form for secret in secrets for form in forms(secret)]
    return [name for name, content in contents.items() if any(form in content for form in searched_forms)]


@dataclass(frozen=True)
class Planted:
    """A segmentation that needs a token, a cluster whose workers have it, and a home folder without it."""

    folder: Path
    world: World
    server: CaveServer
    cluster: RecordedCluster
    home: Mapping[str, str]

    def contents(self, run: Path) -> dict[str, bytes]:
        """Return everything that a run has left, logged or sent, by name."""
        contents = {f"file {path.relative_to(run)}": path.read_bytes() for path in run.rglob("*") if path.is_file()}
        contents |= {f"name {path}": str(path).encode() for path in run.rglob("*")}
        contents |= {f"log {log.name}": log.read_bytes() for log in self.cluster.logs}
        scratch = self.cluster.logs[0].parent / "scratch"
        contents |= {f"scratch {path}": path.read_bytes() for path in scratch.rglob("*") if path.is_file()}
        contents |= {f"stream {n}": stream for n, stream in enumerate(self.cluster.recorded)}
        return contents | self.cluster.pages()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (128, 128, 32))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[Planted]:
    folder = tmp_path_factory.mktemp("planted")
    with served(world, tokens=(TOKEN,)) as server:
        # The workers find the token in CloudVolume's secrets file.
        with_file, without = homes(folder, server)
        with recorded_cluster(folder / "cluster", with_file) as cluster:
            yield Planted(folder, world, server, cluster, without)


def homes(folder: Path, server: CaveServer) -> tuple[dict[str, str], dict[str, str]]:
    """Return environments with a home folder that contains the token, and with one that does not."""
    environments = []
    for name in ("with", "without"):
        home = folder / f"home-{name}"
        (home / ".cloudvolume" / "secrets").mkdir(parents=True)
        environments.append({"HOME": str(home), "CLOUD_VOLUME_DIR": str(home / ".cloudvolume")})
    host = server.url.removeprefix("http://")
    file = folder / "home-with" / ".cloudvolume" / "secrets" / f"{host}-cave-secret.json"
    file.write_text(json.dumps({"token": TOKEN}))
    return environments[0], environments[1]


SCRIPT = """
import os, sys
import numpy as np
from imagery_dask import ImageryClient, to_zarr, verify_export

command, source, cluster, out, plan, bounds, moment = sys.argv[1:8]
# The token is not an argument, since all users of a machine can see those.
client = ImageryClient(segmentation_source=source, auth_token=sys.stdin.readline().rstrip(), missing="error")
bounds, mip = np.array(eval(bounds)), 0
options = {"resolution": (16, 16, 40), "timestamp": int(moment)}
if command == "plan":
    planned = client.plan_export(bounds, out, chunks=(32, 32, 16), samples=2, **options)
    planned.save(plan)
    print(planned)
elif command == "verify":
    print(verify_export(out, sample=None, cluster=cluster))
else:
    array = client.segmentation_cutout(bounds, **options)
    print(to_zarr(array, out, chunks=(32, 32, 16), block_mib=0.1, cluster=cluster, report=out + ".html"))
"""


class Driver:
    """Run commands with a token of one origin, and keep their output in the run's folder."""

    def __init__(self, planted: Planted, origin: str, run: Path) -> None:
        self.planted, self.origin, self.run, self.count = planted, origin, run, 0
        start = np.array(planted.world.voxel_offset)
        self.bounds = [start.tolist(), (start + (64, 64, 32)).tolist()]
        self.pages: dict[str, bytes] = {}
        self.moment = 1704240000 + 100 * ORIGINS.index(origin)

    def __call__(self, command: str, out: str, token: str = TOKEN, later: int = 0) -> tuple[int, str]:
        """Run a command with a timestamp moved by `later` seconds, for which no root is cached yet."""
        self.count += 1
        moment = self.moment + later
        planted, out = self.planted, str(self.run / out)
        env = environment(PLAIN | dict(planted.home))
        source, cluster = planted.server.segmentation_source, planted.cluster.address
        stdin = ""
        if self.origin == "argument":
            stdin = f"{token}\n"
            words = ["-c", SCRIPT, command, source, cluster, out, str(self.run / "plan.json"), str(self.bounds)]
            words.append(str(moment))
        else:
            region = ("--segmentation-source", source, "--bounds", *np.ravel(self.bounds), "--resolution", 16, 16, 40,
                      "--timestamp", moment, "--missing", "error", "--chunks", "32,32,16")  # fmt: skip
            words = ["-c", PROGRAM, command]
            if command == "plan":
                words += ["zarr", out, *region, "--samples", 2, "--save", self.run / "plan.json"]
            elif command == "verify":
                words += [out, "--all", "--cluster", cluster]
            else:
                words += ["zarr", out, *region, "--cluster", cluster, "--block-mib", 0.1, "--report", f"{out}.html"]
            if self.origin == "environment":
                env |= {"CAVE_TOKEN": token}
            elif token == TOKEN:
                env |= homes_of(planted)
            else:
                host = planted.server.url.removeprefix("http://")
                file = Path(planted.home["CLOUD_VOLUME_DIR"]) / "secrets" / f"{host}-cave-secret.json"
                file.write_text(json.dumps({"token": token}))
        logs = [self.run / f"{self.count}-{command}.{name}" for name in ("out", "err")]
        with logs[0].open("wb") as output, logs[1].open("wb") as error:
            process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=error,
                cwd=self.run,
                env=env,
            )
            ended = threading.Event()
            watcher = threading.Thread(target=self._open_pages, args=(ended,))
            if command != "plan":  # which runs nothing on the cluster
                watcher.start()
            process.communicate(stdin.encode(), timeout=200)
            ended.set()
            if watcher.ident:
                watcher.join()
        for file in Path(planted.home["CLOUD_VOLUME_DIR"]).rglob("*.json"):
            file.unlink()
        return process.returncode, logs[0].read_text() + logs[1].read_text()

    def _open_pages(self, ended: threading.Event) -> None:
        """Open the pages of the dashboard once while blocks run, since rendering them delays the scheduler."""
        if not ended.wait(2.0):
            self.pages |= {f"{name} {self.count}": page for name, page in self.planted.cluster.pages().items()}


def homes_of(planted: Planted) -> dict[str, str]:
    home = planted.folder / "home-with"
    return {"HOME": str(home), "CLOUD_VOLUME_DIR": str(home / ".cloudvolume")}


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.long
def test_a_token_is_in_no_file_log_page_or_message(planted: Planted, tmp_path: Path, origin: str) -> None:
    driver, server = Driver(planted, origin, tmp_path), planted.server
    server.faults, server.latency_s = None, 0.05
    bytes_before = sum(map(len, planted.cluster.recorded))

    code, output = driver("plan", "out.zarr")
    assert code == 0, output
    assert "fingerprint" in output
    assert (tmp_path / "plan.json").exists()

    server.reset()
    code, output = driver("export", "out.zarr")
    assert code == 0, output
    voxels = (written if origin == "argument" else labels)(tmp_path / "out.zarr")
    np.testing.assert_array_equal(voxels, planted.world.roots_volume(driver.moment)[:64, :64])
    assert server.count("roots_binary") > 0  # sent by the workers, which have the token, too
    assert {request.status for request in server.requests} == {200}
    code, output = driver("verify", "out.zarr")
    assert code == 0, output

    if origin == "environment":  # the runs that fail do not depend on the token's origin
        _run_failing_commands(driver, tmp_path)

    # Check that the search covers enough content.
    assert sum(map(len, planted.cluster.recorded)) - bytes_before > 20_000
    assert sum("200" in name.split() for name in driver.pages) > 10
    assert any(b"+write" in stream for stream in planted.cluster.recorded)
    contents = planted.contents(tmp_path) | driver.pages
    assert any(name.startswith("file out.zarr.receipts/") for name in contents)
    assert leaks(contents, TOKEN, WRONG) == []


def _run_failing_commands(driver: Driver, folder: Path) -> None:
    # The server accepts the token, but not for roots.
    driver.planted.server.faults = lambda name, n: Fault(403, body=TOKEN.encode()) if name == "roots_binary" else None
    code, output = driver("export", "refused.zarr", later=1)
    assert (code, "refused" in output) == (1, True), output
    # The server fails and quotes the token in its answer.
    driver.planted.server.faults = lambda name, n: (
        Fault(400, body=f"Bearer {TOKEN}".encode()) if name == "roots_binary" else None
    )
    code, output = driver("export", "failing.zarr", later=2)
    assert (code, "FAILED" in output or "blocks failed" in output) == (1, True), output
    assert (folder / "failing.zarr.receipts").exists()
    driver.planted.server.faults = None
    code, output = driver("export", "wrong.zarr", WRONG)
    assert (code in (1, 2), "refused" in output) == (True, True), output
    assert not (folder / "wrong.zarr").exists()
    code, output = driver("plan", "wrong.zarr", WRONG)
    assert code in (1, 2), output


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedCluster]:
    with recorded_cluster(tmp_path_factory.mktemp("searched") / "cluster", {}, workers=1) as cluster:
        yield cluster


@pytest.mark.parametrize("form", ["plain", "base64", "quoted"])
@pytest.mark.long
def test_the_search_finds_a_token_in_a_task(searched: RecordedCluster, form: str) -> None:
    """Show that the searched content would contain a token that was sent."""
    secret = f"c0ntrol/{form}+=of-the-search"
    value = {
        "plain": secret,
        "base64": base64.b64encode(f"x{secret}y".encode()).decode(),
        "quoted": quote(secret, safe=""),
    }[form]
    with Client(searched.address, set_as_default=False) as client:
        assert client.submit(len, {value: 1}, key=f"control-{form}").result(timeout=60) == 1
        streams = {f"stream {n}": stream for n, stream in enumerate(searched.recorded)}
        assert leaks(streams, secret)
        assert not leaks(streams, "n0t-there/" + secret)
        assert not leaks({log.name: log.read_bytes() for log in searched.logs}, secret)
        client.run(print, value, flush=True)
        assert leaks({log.name: log.read_bytes() for log in searched.logs}, secret) == ["worker-0.log"]
        future = client.submit(_raise_with_secret, secret, key=f"failing-{form}")
        future.exception(timeout=60)
        key = quote(future.key, safe="")
        page = requests.get(f"{searched.dashboard}/info/task/{key}.html", timeout=10)
        assert page.status_code == 200
        assert leaks({"page": page.content}, secret)


def _raise_with_secret(value: str) -> None:
    """Raise an error whose message contains a secret, which real tasks must not do."""
    raise ValueError(value)


@pytest.mark.parametrize("secret", [TOKEN, WRONG])
def test_the_search_finds_every_form(secret: str) -> None:
    prefix = b"Authorization: "
    for offset in range(6):
        text = prefix[:offset] + secret.encode() + b" and more"
        assert leaks({"base64": base64.b64encode(text)}, secret)
        assert leaks({"url": base64.urlsafe_b64encode(text)}, secret)
    assert leaks({"query": f"?token={quote(secret, safe='')}&x".encode()}, secret)
    assert leaks({"json": json.dumps({"token": secret}).encode()}, secret)
    assert not leaks({"other": base64.b64encode(b"something else")}, secret)
