"""Tokens stay where they were put: in no byte that a run leaves, in nothing that a scheduler or worker is sent."""

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

#: With characters that URLs, JSON and base64 write differently.
TOKEN = 'plant/ed+"f00d=baad&cafe7ac1e'
PLACES = ["environment", "file", "argument"]
WRONG = 'wrong/too+"beef=dead&facade5ca1e'


def forms(secret: str) -> list[bytes]:
    """How bytes may hold a secret: as it is, quoted for URLs and JSON, base64 at any offset, hexadecimal."""
    plain = secret.encode()
    found = [plain, quote(secret, safe="").encode(), quote(secret).encode(), json.dumps(secret)[1:-1].encode()]
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # Without the characters that neighbours decide too.
            found.append(encode(b"\0" * offset + plain)[(0, 2, 3)[offset] : -4])
    return [*found, plain.hex().encode(), plain.hex().upper().encode(), secret.encode("utf-16-le")]


def leaks(places: Mapping[str, bytes], *secrets: str) -> list[str]:
    """Names of what holds a secret in any form."""
    return [name for name, held in places.items() if any(form in held for each in secrets for form in forms(each))]


@dataclass(frozen=True)
class Planted:
    """A segmentation that needs a token, a cluster whose workers have it, and a home for those that start there."""

    folder: Path
    world: World
    server: CaveServer
    cluster: RecordedCluster
    home: Mapping[str, str]

    def places(self, run: Path) -> dict[str, bytes]:
        """Everything that a run left, or that was said meanwhile."""
        found = {f"file {path.relative_to(run)}": path.read_bytes() for path in run.rglob("*") if path.is_file()}
        found |= {f"name {path}": str(path).encode() for path in run.rglob("*")}
        found |= {f"log {log.name}": log.read_bytes() for log in self.cluster.logs}
        scratch = self.cluster.logs[0].parent / "scratch"
        found |= {f"scratch {path}": path.read_bytes() for path in scratch.rglob("*") if path.is_file()}
        found |= {f"stream {n}": stream for n, stream in enumerate(self.cluster.recorded)}
        return found | self.cluster.pages()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), (128, 128, 32))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[Planted]:
    folder = tmp_path_factory.mktemp("planted")
    with served(world, tokens=(TOKEN,)) as server:
        # The workers find the token in the file that CloudVolume keeps it in.
        with_file, without = homes(folder, server)
        with recorded_cluster(folder / "cluster", with_file) as cluster:
            yield Planted(folder, world, server, cluster, without)


def homes(folder: Path, server: CaveServer) -> tuple[dict[str, str], dict[str, str]]:
    """Environments of somebody who has the token in a file, and of somebody who has not."""
    found = []
    for name in ("with", "without"):
        home = folder / f"home-{name}"
        (home / ".cloudvolume" / "secrets").mkdir(parents=True)
        found.append({"HOME": str(home), "CLOUD_VOLUME_DIR": str(home / ".cloudvolume")})
    host = server.url.removeprefix("http://")
    file = folder / "home-with" / ".cloudvolume" / "secrets" / f"{host}-cave-secret.json"
    file.write_text(json.dumps({"token": TOKEN}))
    return found[0], found[1]


SCRIPT = """
import os, sys
import numpy as np
from imagery_dask import ImageryClient, to_zarr, verify_export

command, source, cluster, out, plan, bounds, moment = sys.argv[1:8]
# Not an argument: everybody on a machine sees those.
client = ImageryClient(segmentation_source=source, auth_token=sys.stdin.readline().rstrip(), missing="error")
bounds, mip = np.array(eval(bounds)), 0
options = {"resolution": (16, 16, 40), "timestamp": int(moment)}
if command == "plan":
    made = client.plan_export(bounds, out, chunks=(32, 32, 16), samples=2, **options)
    made.save(plan)
    print(made)
elif command == "verify":
    print(verify_export(out, sample=None, cluster=cluster))
else:
    array = client.segmentation_cutout(bounds, **options)
    print(to_zarr(array, out, chunks=(32, 32, 16), block_mib=0.1, cluster=cluster, report=out + ".html"))
"""


class Driver:
    """Runs commands as a user with a token in one of the places for tokens; keeps what they say in the run's folder."""

    def __init__(self, planted: Planted, place: str, run: Path) -> None:
        self.planted, self.place, self.run, self.count = planted, place, run, 0
        start = np.array(planted.world.voxel_offset)
        self.bounds = [start.tolist(), (start + (64, 64, 32)).tolist()]
        self.pages: dict[str, bytes] = {}
        self.moment = 1704240000 + 100 * PLACES.index(place)

    def __call__(self, command: str, out: str, token: str = TOKEN, later: int = 0) -> tuple[int, str]:
        """Run a command; what was looked up at another moment, some seconds later, nobody knows yet."""
        self.count += 1
        moment = self.moment + later
        planted, out = self.planted, str(self.run / out)
        env = environment(PLAIN | dict(planted.home))
        source, cluster = planted.server.segmentation_source, planted.cluster.address
        given = ""
        if self.place == "argument":
            given = f"{token}\n"
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
            if self.place == "environment":
                env |= {"CAVE_TOKEN": token}
            elif token == TOKEN:
                env |= homes_of(planted)
            else:
                host = planted.server.url.removeprefix("http://")
                file = Path(planted.home["CLOUD_VOLUME_DIR"]) / "secrets" / f"{host}-cave-secret.json"
                file.write_text(json.dumps({"token": token}))
        logs = [self.run / f"{self.count}-{command}.{name}" for name in ("out", "err")]
        with logs[0].open("wb") as said, logs[1].open("wb") as error:
            process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=error,
                cwd=self.run,
                env=env,
            )
            ended = threading.Event()
            looking = threading.Thread(target=self._look, args=(ended,))
            looking.start()
            process.communicate(given.encode(), timeout=200)
            ended.set()
            looking.join()
        for file in Path(planted.home["CLOUD_VOLUME_DIR"]).rglob("*.json"):
            file.unlink()
        return process.returncode, logs[0].read_text() + logs[1].read_text()

    def _look(self, ended: threading.Event) -> None:
        """Open the pages of the dashboard while blocks are under way."""
        number = 0
        while not ended.wait(2.0):  # drawing them keeps the scheduler from its work
            self.pages |= {f"{name} {self.count}.{number}": page for name, page in self.planted.cluster.pages().items()}
            number += 1


def homes_of(planted: Planted) -> dict[str, str]:
    home = planted.folder / "home-with"
    return {"HOME": str(home), "CLOUD_VOLUME_DIR": str(home / ".cloudvolume")}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.long
def test_a_token_is_nowhere(planted: Planted, tmp_path: Path, place: str) -> None:
    driver, server = Driver(planted, place, tmp_path), planted.server
    server.faults, server.latency_s = None, 0.05
    said_before = sum(map(len, planted.cluster.recorded))

    code, said = driver("plan", "out.zarr")
    assert code == 0, said
    assert "fingerprint" in said
    assert (tmp_path / "plan.json").exists()

    server.reset()
    code, said = driver("export", "out.zarr")
    assert code == 0, said
    found = (written if place == "argument" else labels)(tmp_path / "out.zarr")
    np.testing.assert_array_equal(found, planted.world.roots_volume(driver.moment)[:64, :64])
    assert server.count("roots_binary") > 0  # by the workers, which have the token too
    assert {request.status for request in server.requests} == {200}
    code, said = driver("verify", "out.zarr")
    assert code == 0, said

    if place == "environment":  # where the token comes from changes nothing of what follows
        _runs_that_end_badly(driver, tmp_path)

    # There was much to search.
    assert sum(map(len, planted.cluster.recorded)) - said_before > 20_000
    assert sum("200" in name.split() for name in driver.pages) > 10
    assert any(b"+write" in stream for stream in planted.cluster.recorded)
    places = planted.places(tmp_path) | driver.pages
    assert any(name.startswith("file out.zarr.receipts/") for name in places)
    assert leaks(places, TOKEN, WRONG) == []


def _runs_that_end_badly(driver: Driver, folder: Path) -> None:
    # The server takes the token, but not for everything.
    driver.planted.server.faults = lambda name, n: Fault(403, body=TOKEN.encode()) if name == "roots_binary" else None
    code, said = driver("export", "refused.zarr", later=1)
    assert (code, "refused" in said) == (1, True), said
    # It breaks, and quotes what it was sent.
    driver.planted.server.faults = lambda name, n: (
        Fault(400, body=f"Bearer {TOKEN}".encode()) if name == "roots_binary" else None
    )
    code, said = driver("export", "failing.zarr", later=2)
    assert (code, "FAILED" in said or "blocks failed" in said) == (1, True), said
    assert (folder / "failing.zarr.receipts").exists()
    driver.planted.server.faults = None
    code, said = driver("export", "wrong.zarr", WRONG)
    assert (code in (1, 2), "refused" in said) == (True, True), said
    assert not (folder / "wrong.zarr").exists()
    code, said = driver("plan", "wrong.zarr", WRONG)
    assert code in (1, 2), said


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedCluster]:
    with recorded_cluster(tmp_path_factory.mktemp("searched") / "cluster", {}, workers=1) as cluster:
        yield cluster


@pytest.mark.parametrize("form", ["plain", "base64", "quoted"])
@pytest.mark.long
def test_the_search_finds_a_token_in_a_task(searched: RecordedCluster, form: str) -> None:
    """A control: what is searched above would have held it."""
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
        future = client.submit(_failing, secret, key=f"failing-{form}")
        future.exception(timeout=60)
        key = quote(future.key, safe="")
        page = requests.get(f"{searched.dashboard}/info/task/{key}.html", timeout=10)
        assert page.status_code == 200
        assert leaks({"page": page.content}, secret)


def _failing(value: str) -> None:
    """Fail as tasks should not: with a secret in what they say."""
    raise ValueError(value)


@pytest.mark.parametrize("secret", [TOKEN, WRONG])
def test_every_form_is_found(secret: str) -> None:
    around = b"Authorization: "
    for offset in range(6):
        text = around[:offset] + secret.encode() + b" and more"
        assert leaks({"base64": base64.b64encode(text)}, secret)
        assert leaks({"url": base64.urlsafe_b64encode(text)}, secret)
    assert leaks({"query": f"?token={quote(secret, safe='')}&x".encode()}, secret)
    assert leaks({"json": json.dumps({"token": secret}).encode()}, secret)
    assert not leaks({"other": base64.b64encode(b"something else")}, secret)
