"""Check the address of a dask-gateway server and the user's authentication before a cluster is started.

The client of dask-gateway waits for minutes if nothing answers, and reports a refusal only by its HTTP status. So the
server is asked for its cluster options first, which starts nothing, and errors are one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from distributed.comm import get_address_host_port

from imagery_dask.cluster.joining import ANSWER_S, open_connection
from imagery_dask.errors import REFUSED_STATUS

if TYPE_CHECKING:
    from distributed.deploy import Cluster

__all__ = ["check_gateway", "closed_for_good", "is_gateway"]

# Arguments of the cluster class for the addresses of the gateway and the authentication.
CLIENT = ("address", "proxy_address", "public_address", "auth")
WORDS_SHOWN = 200


def is_gateway(cluster_class: type) -> bool:
    """Return True if a cluster class starts its clusters through a dask-gateway server."""
    return str(getattr(cluster_class, "__module__", "")).startswith("dask_gateway.")


def closed_for_good(cluster: Cluster) -> None:
    """Keep a closed cluster from closing its client again when it is garbage-collected, which prints a traceback."""
    # The only attribute that the client's __del__ reads (dask-gateway 2026.3).
    cluster.gateway._asynchronous = True


def check_gateway(arguments: Mapping[str, object], file: str) -> None:
    """Raise if a gateway or its proxy for schedulers cannot be reached, or refuses this user.

    The gateway is asked for its options, and one connection to the proxy is opened.

    Parameters
    ----------
    arguments : mapping
        Arguments of the cluster class. dask's configuration (``gateway``) has the defaults.
    file : str
        The cluster file, with which messages begin.

    Raises
    ------
    ValueError
        If the address is not a URL, or the authentication is unknown or has no token.
    ImportError
        If the authentication needs a package that is not installed.
    PermissionError
        If the gateway refuses this user.
    ConnectionError
        If nothing answers, or something other than a gateway.
    """
    options = {name: arguments[name] for name in CLIENT if name in arguments}
    # In another thread, since a notebook has a running event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        proxy_address = pool.submit(asyncio.run, _ask(options, file)).result()
    host, port = get_address_host_port(proxy_address.replace("gateway://", "tcp://"))
    proxy = f"{file}: the gateway's proxy for schedulers ('proxy_address') {proxy_address}"
    with open_connection(host, port, proxy):
        pass


async def _ask(options: Mapping[str, object], file: str) -> str:
    """Ask a gateway for its options, and return the address of its proxy for schedulers."""
    from aiohttp import ClientError, ClientResponseError, InvalidURL
    from dask_gateway import Gateway

    try:
        gateway = Gateway(asynchronous=True, **options)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{file}: the authentication {options.get('auth')!r} needs the package {error.name!r}, which is not "
            "installed; 'auth' is basic, kerberos, jupyterhub, or the dotted name of a class."
        ) from None
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"{file}: {_one_line(error)}") from None
    server = f"{file}: the gateway {gateway.address}"
    no_url = f"{server}: 'address' must be https://HOST[:PORT][/PATH]."
    if not gateway.address.startswith(("http://", "https://")):
        raise ValueError(no_url)
    async with gateway:
        try:
            await asyncio.wait_for(gateway.cluster_options(), ANSWER_S)
        except TimeoutError:
            raise ConnectionError(f"{server}: no answer within {ANSWER_S:.0f} s. Is there a firewall?") from None
        except ModuleNotFoundError as error:
            raise ImportError(f"{server}: its authentication needs the package {error.name!r}.") from None
        except ClientResponseError as error:
            if error.status in REFUSED_STATUS:
                raise PermissionError(
                    f"{server} refuses this user ({error.status} {error.message}); check 'auth', and the user and "
                    "password in dask's configuration (gateway.auth)."
                ) from None
            raise ConnectionError(f"{server} gave an unexpected answer ({error.status} {error.message}).") from None
        except InvalidURL:
            raise ValueError(no_url) from None
        except (ValueError, KeyError) as error:
            raise ConnectionError(
                f"{server} is not a dask-gateway server ({_one_line(error)}); check the path of 'address'."
            ) from None
        except (ClientError, OSError) as error:
            reason = getattr(error, "os_error", error)
            raise ConnectionError(f"{server} cannot be reached: {_one_line(reason)}.") from None
    return str(gateway.proxy_address)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= WORDS_SHOWN else text[:WORDS_SHOWN] + "..."
