"""Check the address and the certificates of a running scheduler before dask connects to it.

dask tries for half a minute and hides the reason of a failure. So a plain socket is connected first: a scheduler sends
a greeting at once, and a TLS server that refuses a certificate gives the reason. Errors are one line.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from pathlib import Path

from distributed.comm import get_address_host_port
from distributed.security import Security

__all__ = ["ANSWER_S", "check_scheduler", "open_connection", "scheduler_address"]

# Seconds to wait for an answer.
ANSWER_S = 5.0
# Seconds during which a refused connection is tried again, since the scheduler may be starting.
REFUSED_S = 2.0
# Schemes of the addresses that are checked.
PROBED = ("tcp", "tls")


def scheduler_address(path: Path) -> str:
    """Return the address in a scheduler file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is not a scheduler file.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"There is no scheduler file {path}; 'dask scheduler --scheduler-file {path}' writes it."
        )
    try:
        content = json.loads(path.read_text())
        address = content["address"] if isinstance(content, dict) else None
    except (ValueError, KeyError):
        address = None
    if not isinstance(address, str) or "://" not in address:
        raise ValueError(f"{path} is not a scheduler file: it has no 'address' (dask scheduler --scheduler-file FILE).")
    return address


def check_scheduler(address: str, security: Security | None, scheduler_file: Path | None = None) -> None:
    """Raise if no scheduler listens at an address, or a certificate is refused.

    Parameters
    ----------
    address : str
        ``tcp://HOST:PORT`` or ``tls://HOST:PORT``; other addresses are not checked.
    security : Security or None
        Certificates. None uses those of dask's configuration.
    scheduler_file : pathlib.Path, optional
        Scheduler file with the address, for messages.

    Raises
    ------
    ValueError
        If the address is invalid, or is ``tls://`` and there are no certificates.
    ConnectionError
        If nothing or something other than a scheduler listens there, or either side refuses a certificate.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in PROBED:
        return
    scheduler = f"{address} (of {scheduler_file})" if scheduler_file else address
    try:
        host, port = get_address_host_port(address)
        if not 0 < port < 65536:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{scheduler} is not the address of a scheduler ({scheme}://HOST:PORT); got {rest!r}."
        ) from None
    context = _context(scheduler, security) if scheme == "tls" else None
    with open_connection(host, port, scheduler) as connection:
        try:
            if context is None:
                greeting = connection.recv(1)
            else:
                with context.wrap_socket(connection, server_hostname=host) as encrypted:
                    greeting = encrypted.recv(1)
        except ssl.SSLError as error:
            raise ConnectionError(f"{scheduler}: {_tls_reason(error)}") from None
        except TimeoutError:
            hint = "" if scheme == "tls" else "; the address of an encrypted scheduler begins with tls://"
            raise ConnectionError(
                f"{scheduler}: a server that listens there sent no greeting of dask within {ANSWER_S:.0f} s{hint}."
            ) from None
        except OSError as error:
            raise ConnectionError(f"{scheduler}: the connection broke: {error.strerror or error}.") from None
    if not greeting:
        raise ConnectionError(f"{scheduler}: the connection was closed at once. Is this the scheduler's port (8786)?")


def open_connection(host: str, port: int, server: str) -> socket.socket:
    """Open a connection; a refused one is tried again for two seconds, since the server may be starting.

    Parameters
    ----------
    host, port : str, int
        Where to connect.
    server : str
        Name of the server, with which messages begin.

    Raises
    ------
    ConnectionError
        If nothing listens there, or nothing answers.
    """
    deadline = time.monotonic() + REFUSED_S
    while True:
        try:
            return socket.create_connection((host, port), timeout=ANSWER_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise ConnectionError(f"{server}: nothing listens there. Is it running?") from None
            time.sleep(0.2)
        except socket.gaierror:
            raise ConnectionError(f"{server}: there is no host {host!r}.") from None
        except TimeoutError:
            raise ConnectionError(
                f"{server}: no answer within {ANSWER_S:.0f} s. Is the host right, and is there a firewall?"
            ) from None
        except OSError as error:
            raise ConnectionError(f"{server}: cannot be reached: {error.strerror or error}.") from None


def _context(scheduler: str, security: Security | None) -> ssl.SSLContext:
    try:
        context = (security or Security()).get_connection_args("client").get("ssl_context")
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{scheduler}: the certificate or key cannot be loaded: {_reason(error)}.") from None
    if not isinstance(context, ssl.SSLContext):
        raise ValueError(
            f"{scheduler} needs certificates: a cluster file with 'address' and 'security' (cluster_configs/tls.yaml), "
            "or distributed.comm.tls in dask's configuration."
        )
    return context


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the scheduler's certificate is not signed by this CA ({error.verify_message}); check 'ca'."
    reason = _reason(error)
    if "WRONG VERSION" in reason or "RECORD LAYER" in reason:
        return "the scheduler does not use TLS; its address begins with tcp://."
    if "ALERT" in reason:
        return f"the scheduler refuses this client's certificate ({reason.lower()}); check 'cert' and 'key'."
    return f"TLS failed ({reason.lower()}); check 'ca', 'cert' and 'key'."


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error).replace("_", " ")
