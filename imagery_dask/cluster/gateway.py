"""dask-gateway: what is wrong with its address or with who asks, at once and in one line.

Its client waits for minutes where nothing answers, and says of a refusal no more than the number of a status. It is
asked for its options first, which starts nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from distributed.comm import get_address_host_port

from imagery_dask.cluster.joining import ANSWER_S, open_connection

if TYPE_CHECKING:
    from distributed.deploy import Cluster

__all__ = ["check_gateway", "closed_for_good", "is_gateway"]

# Arguments of the cluster class that say where the gateway is, and who asks.
CLIENT = ("address", "proxy_address", "public_address", "auth")
REFUSED = (401, 403)
WORDS_SHOWN = 200


def is_gateway(cluster_class: type) -> bool:
    """Whether a class asks a dask-gateway server for its cluster."""
    return str(getattr(cluster_class, "__module__", "")).startswith("dask_gateway.")


def closed_for_good(cluster: Cluster) -> None:
    """Keep a cluster that is closed from closing its client again when it is collected: that fails with a traceback."""
    # All that the client's __del__ looks at (dask-gateway 2026.3).
    cluster.gateway._asynchronous = True


def check_gateway(arguments: Mapping[str, object], found_in: str) -> None:
    """Ask a gateway for its options, and connect to its proxy for schedulers, once each.

    Parameters
    ----------
    arguments : mapping
        Of the cluster class; what they leave open is in dask's configuration.
    found_in : str
        File that has them.

    Raises
    ------
    ValueError
        The address is none, or the authentication is not known or lacks a token.
    ImportError
        The authentication needs a package that is not installed.
    PermissionError
        The gateway refuses this user.
    ConnectionError
        Nothing answers there, or something else.
    """
    given = {name: arguments[name] for name in CLIENT if name in arguments}
    # A loop of its own: a notebook has one in this thread.
    with ThreadPoolExecutor(1) as pool:
        proxy_address = pool.submit(asyncio.run, _ask(given, found_in)).result()
    host, port = get_address_host_port(proxy_address.replace("gateway://", "tcp://"))
    said = f"{found_in}: the gateway's proxy for schedulers ('proxy_address') {proxy_address}"
    with open_connection(host, port, said):
        pass


async def _ask(given: Mapping[str, object], found_in: str) -> str:
    """Ask for options; give the address of the proxy for schedulers."""
    from aiohttp import ClientError, ClientResponseError, InvalidURL
    from dask_gateway import Gateway

    try:
        gateway = Gateway(asynchronous=True, **given)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{found_in}: the authentication {given.get('auth')!r} needs the package {error.name!r}, which is not "
            "installed; 'auth' is basic, kerberos, jupyterhub, or the dotted name of a class."
        ) from None
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"{found_in}: {_words(error)}") from None
    said = f"{found_in}: the gateway {gateway.address}"
    no_address = f"{said}: 'address' must be https://HOST[:PORT][/PATH]."
    if not gateway.address.startswith(("http://", "https://")):
        raise ValueError(no_address)
    async with gateway:
        try:
            await asyncio.wait_for(gateway.cluster_options(), ANSWER_S)
        except TimeoutError:
            raise ConnectionError(f"{said}: no answer within {ANSWER_S:.0f} s. Does a firewall lie between?") from None
        except ModuleNotFoundError as error:
            raise ImportError(f"{said}: its authentication needs the package {error.name!r}.") from None
        except ClientResponseError as error:
            if error.status in REFUSED:
                raise PermissionError(
                    f"{said} refuses this user ({error.status} {error.message}); look at 'auth', and at gateway.auth "
                    "in dask's configuration, where user and password are."
                ) from None
            raise ConnectionError(f"{said} answers as no gateway does ({error.status} {error.message}).") from None
        except InvalidURL:
            raise ValueError(no_address) from None
        except (ValueError, KeyError) as error:
            raise ConnectionError(
                f"{said}: something else answers there ({_words(error)}); look at its path."
            ) from None
        except (ClientError, OSError) as error:
            raise ConnectionError(f"{said} cannot be reached: {_words(getattr(error, 'os_error', error))}.") from None
    return str(gateway.proxy_address)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= WORDS_SHOWN else text[:WORDS_SHOWN] + "..."
