"""Joining a cluster that runs: what is wrong with its address or the certificates, at once and in one line.

dask tries for half a minute, and hides the reason. A connection is made by hand first: a scheduler greets as soon as
one is open, and a TLS server that refuses a certificate says why then.
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

ANSWER_S = 5.0
# A scheduler that is just starting.
REFUSED_S = 2.0
PROBED = ("tcp", "tls")


def scheduler_address(path: Path) -> str:
    """Address in a file that a scheduler wrote.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is not a scheduler file.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"There is no scheduler file {path}; 'dask scheduler --scheduler-file {path}' writes it where it starts."
        )
    try:
        content = json.loads(path.read_text())
        address = content["address"] if isinstance(content, dict) else None
    except (ValueError, KeyError):
        address = None
    if not isinstance(address, str) or "://" not in address:
        raise ValueError(f"{path} is no scheduler file: it has no 'address' (dask scheduler --scheduler-file FILE).")
    return address


def check_scheduler(address: str, security: Security | None, found_in: Path | None = None) -> None:
    """Connect once, and say what is wrong.

    Parameters
    ----------
    address : str
        ``tcp://HOST:PORT`` or ``tls://HOST:PORT``; others are left to dask.
    security : Security or None
        Certificates; by default those of dask's configuration.
    found_in : pathlib.Path, optional
        File that has the address.

    Raises
    ------
    ValueError
        The address is none, or `tls://` without certificates.
    ConnectionError
        Nothing listens there, or something else; or a certificate is refused, by either side.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in PROBED:
        return
    said = f"{address} (of {found_in})" if found_in else address
    try:
        host, port = get_address_host_port(address)
        if not 0 < port < 65536:
            raise ValueError
    except ValueError:
        raise ValueError(f"{said} is no address of a scheduler: {scheme}://HOST:PORT; got {rest!r}.") from None
    context = _context(said, security) if scheme == "tls" else None
    with open_connection(host, port, said) as connection:
        try:
            if context is None:
                greeting = connection.recv(1)
            else:
                with context.wrap_socket(connection, server_hostname=host) as encrypted:
                    greeting = encrypted.recv(1)
        except ssl.SSLError as error:
            raise ConnectionError(f"{said}: {_why(error)}") from None
        except TimeoutError:
            hint = "" if scheme == "tls" else "; an encrypted scheduler is tls://"
            raise ConnectionError(
                f"{said}: something listens there, but greets as no dask scheduler within {ANSWER_S:.0f} s{hint}."
            ) from None
        except OSError as error:
            raise ConnectionError(f"{said}: the connection broke: {error.strerror or error}.") from None
    if not greeting:
        raise ConnectionError(f"{said}: the connection was closed at once; is it the scheduler's port (8786)?")


def open_connection(host: str, port: int, said: str) -> socket.socket:
    """Connect, with some patience for what is just starting.

    Raises
    ------
    ConnectionError
        Nothing listens there, or nothing answers; it begins with what `said` calls the place.
    """
    deadline = time.monotonic() + REFUSED_S
    while True:
        try:
            return socket.create_connection((host, port), timeout=ANSWER_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise ConnectionError(f"{said}: nothing listens there. Is it running?") from None
            time.sleep(0.2)
        except socket.gaierror:
            raise ConnectionError(f"{said}: there is no host {host!r}.") from None
        except TimeoutError:
            raise ConnectionError(
                f"{said}: no answer within {ANSWER_S:.0f} s. Does a firewall lie between, or is the host another one?"
            ) from None
        except OSError as error:
            raise ConnectionError(f"{said}: cannot be reached: {error.strerror or error}.") from None


def _context(said: str, security: Security | None) -> ssl.SSLContext:
    try:
        context = (security or Security()).get_connection_args("client").get("ssl_context")
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{said}: the certificate or key cannot be loaded: {_reason(error)}.") from None
    if not isinstance(context, ssl.SSLContext):
        raise ValueError(
            f"{said} needs certificates: a cluster file with 'address' and 'security' (see cluster_configs/tls.yaml), "
            "or distributed.comm.tls in dask's configuration."
        )
    return context


def _why(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the scheduler's certificate is not one of this CA ({error.verify_message}); look at 'ca'."
    reason = _reason(error)
    if "WRONG VERSION" in reason or "RECORD LAYER" in reason:
        return "the scheduler there speaks no TLS; its address is tcp://."
    if "ALERT" in reason:
        return f"the scheduler refuses this client's certificate ({reason.lower()}); look at 'cert' and 'key'."
    return f"TLS failed ({reason.lower()}); look at 'ca', 'cert' and 'key'."


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error).replace("_", " ")
