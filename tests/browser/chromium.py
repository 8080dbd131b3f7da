"""Chromium without a screen."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Debian's name, then those of other distributions.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root cannot use the sandbox
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    # provide WebGL2 without a graphics card
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    # one pixel of the picture is one pixel of the screen, in sRGB, whatever the screen
    "--force-device-scale-factor=1",
    "--force-color-profile=srgb",
    "--window-size=1100,700",
    "--mute-audio",
    "--no-first-run",
    "--no-default-browser-check",
    # no requests except the page's
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
    "--password-store=basic",
    # do not slow down a hidden page
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
    "--enable-logging=stderr",
)


class BrowserUnavailable(RuntimeError):
    """No browser is installed on this machine."""


def program() -> str:
    """Return the browser of this machine; raise `BrowserUnavailable` if it has none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise BrowserUnavailable(f"no browser is installed (none of {', '.join(PROGRAMS)})")
    return found


@contextmanager
def running(program: str, url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a browser that shows a page, with its profile and ``browser.log`` in a folder."""
    command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", url]
    # A killed test run cannot end the browser; the kernel does.
    setpriv = shutil.which("setpriv")
    command = [setpriv, "--pdeathsig", "TERM", *command] if setpriv else command
    with (folder / "browser.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # a browser has a dozen processes, which end as a group
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
