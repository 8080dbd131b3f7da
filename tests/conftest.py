"""Fixtures for all tests, and an environment without the user's settings and credentials."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support.settings import Configure

if TYPE_CHECKING:
    from distributed import Client
    from support.buckets import GcsServer, S3Server
    from support.http_server import FaultHook, FileServer

# Set at import and not in a fixture, because CloudVolume, CloudFiles and dask read their environment when they are
# imported. Worker processes inherit it.
HOME = Path(tempfile.mkdtemp(prefix="imagery-dask-tests-home-"))
BEFORE = dict(os.environ)
CREDENTIALS = (
    "AWS_",
    "GOOGLE_",
    "CLOUDSDK_",
    "CAVE",
    "CLOUD_VOLUME_",
    "CLOUD_FILES_",
    "STORAGE_EMULATOR_HOST",
)
for variable in [name for name in os.environ if name.startswith(CREDENTIALS)]:
    del os.environ[variable]
os.environ |= {
    # Sampling frames can deadlock Python (seen in 3.11.7; python/cpython#106883).
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    # A cluster that waits for its next test measures itself less often, which takes 1 % of a core instead of 4 %.
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "HOME": str(HOME),
    "XDG_CACHE_HOME": BEFORE.get(
        "XDG_CACHE_HOME", str(Path.home() / ".cache")
    ),  # keeps font caches, which hold no secrets
    "CLOUD_VOLUME_DIR": str(HOME / "cloudvolume"),
    "CLOUD_FILES_DIR": str(HOME / "cloudfiles"),
    "DASK_CONFIG": str(HOME / "dask"),
    "DASK_TEMPORARY_DIRECTORY": str(HOME / "dask-scratch"),
    "DASK_LOGGING__DISTRIBUTED": "warning",
    "AWS_EC2_METADATA_DISABLED": "true",  # without keys, fail at once instead of requesting keys over the network
    "NO_GCE_CHECK": "true",
    # No lines of progress on a slow machine.
    "IMAGERY_DASK_RUN__PROGRESS_LINE_S": "3600",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}

# No test cuts the power, which is all that waiting for the disk protects against: it took a quarter of the time.
# `tests/integration/test_store_metadata.py` counts what is waited for.
os.fsync = lambda descriptor: None

# Every run draws other examples.
settings.register_profile("ci", deadline=None, derandomize=False, print_blob=True, max_examples=30)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_unconfigure() -> None:
    """Restore the environment and remove the home directory."""
    os.environ.clear()
    os.environ.update(BEFORE)
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def no_home() -> Path:
    """Return the empty home directory of this run; no test sees the user's secrets or settings."""
    return HOME


@pytest.fixture
def http_server_factory() -> Iterator[Callable[..., FileServer]]:
    """Return ``serve(root, latency_s=0, faults=None)``, which starts a server that closes after the test."""
    from support.http_server import FileServer  # imports the package, which must follow the changes of the environment

    with ExitStack() as stack:

        def serve(root: Path, *, latency_s: float = 0.0, faults: FaultHook | None = None) -> FileServer:
            return stack.enter_context(FileServer(root, latency_s=latency_s, faults=faults))

        yield serve


@pytest.fixture
def file_server(tmp_path: Path, http_server_factory: Callable[..., FileServer]) -> FileServer:
    """Serve ``tmp_path``: a volume in ``tmp_path / "em"`` has the URL ``file_server.url + "/em"``."""
    return http_server_factory(tmp_path)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run one S3 store for the session; tests use their own buckets, within ``s3_server.environment()``."""
    from support import buckets  # imports every storage client; other tests need none

    with ExitStack() as stack:
        try:
            server = stack.enter_context(buckets.seaweedfs(tmp_path_factory.mktemp("s3")))
        except buckets.BucketUnavailable as reason:
            pytest.skip(str(reason))
        yield server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """Run one emulator of Google Cloud Storage for the session; see `s3_server`."""
    from support import buckets

    with ExitStack() as stack:
        try:
            server = stack.enter_context(buckets.gcs_emulator(tmp_path_factory.mktemp("gcs")))
        except buckets.BucketUnavailable as reason:
            pytest.skip(str(reason))
        yield server


@pytest.fixture(scope="session")
def threads() -> Iterator[Client]:
    """Return a client with two worker threads in this process; it is not dask's default client."""
    from distributed import Client, LocalCluster  # slow to import; other tests do not need it

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Return a function that sets a value of `imagery_dask.config` by name; the value is restored after the test."""
    from imagery_dask.config import config  # imports the package, which must follow the changes of the environment

    with ExitStack() as stack:
        yield lambda name, value: stack.enter_context(config.set({name: value}))


@pytest.fixture(autouse=True)
def _short_pauses(configure: Configure) -> None:
    """Shorten the pauses between attempts in this process; other processes use the defaults."""
    configure("run.pauses_s", (0.05, 0.1, 0.2))
    configure("requests.first_pause_s", 0.02)


@pytest.fixture(autouse=True)
def _no_cached_chunks() -> Iterator[None]:
    """Empty the cache of decoded chunks: a server of a later test may have the same URL."""
    yield
    if (chunk_cache := sys.modules.get("imagery_dask.sources.volumes.chunk_cache")) is not None:
        chunk_cache._forget()


@pytest.fixture
def logged_warnings() -> Iterator[list[str]]:
    """Collect the warnings that the package logs; dask-jobqueue can silence the handler of pytest's `caplog`."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("imagery_dask")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
