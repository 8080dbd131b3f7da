"""URLs of files and stores: names as parts of URLs, and URLs without their secrets."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote, urlsplit

__all__ = [
    "file_url",
    "FORMATS",
    "is_loopback",
    "is_safe_for_tokens",
    "location_of",
    "name_in_url",
    "redacted",
    "resolved_name",
    "server_of",
    "split_name",
    "without_secrets",
    "without_values",
]

# Beginnings of paths that name the format of a volume, of which the location follows.
FORMATS = ("precomputed", "zarr", "zarr2", "zarr3", "n5")
FORMAT = re.compile(rf"^(?:{'|'.join(FORMATS)})://(?=\S)")
# Up to the last @ of the host, because passwords may hold one; beyond a "/" only if no port follows the colon.
# A space in one is only looked for in the rest of a line.
USER = re.compile(r"://(?:[^/\s:\[]*:(?!\d*[/\s])(?:[^\s\"]*@|(?!\d+\W)\S[^\"\n]{,80}?@)|[^/\s]*@)")
# Also the path of a URL, as urllib3 names it in its errors.
URL = re.compile(r"(?:[A-Za-z][\w.+-]*://|(?<=url: )/)(?:[^\s'\"<>]|'(?=\w))+")
QUERY = re.compile(r"(?<=[?&;])([^=&;?#\s]+)=[^&;#\s]*")
SECRET = "***"
# A question mark begins a query only if a name and "=" follow; otherwise it belongs to a name.
BEGIN_OF_QUERY = re.compile(r"\?(?=[^=/&?#]+=)")
ESCAPED = re.compile(r"(%[0-9A-Fa-f]{2})")
UNESCAPED = "/:@!$&'()*,;=~"


def location_of(path: str) -> str:
    """Return the path of a source without the format at its beginning.

    >>> location_of("zarr3://s3://bucket/em.zarr"), location_of("https://host/em")
    ('s3://bucket/em.zarr', 'https://host/em')
    """
    return FORMAT.sub("", path)


def redacted(text: str) -> str:
    """Return a text in which the URLs have no user, no password, and no values in their query.

    >>> redacted("Reading https://me:p@ss@host/em/info?token=abc&v=1 failed")
    'Reading https://***@host/em/info?token=***&v=*** failed'
    """
    if "://" not in text and "url: /" not in text:
        return text
    return URL.sub(_without_query, USER.sub(f"://{SECRET}@", text))


def _without_query(match: re.Match[str]) -> str:
    return without_values(match.group())


def without_values(text: str) -> str:
    """Return a URL, or a text that may quote a part of one, without the values of a query.

    >>> without_values("Log in to see /em/info?token=abc")
    'Log in to see /em/info?token=***'
    """
    return QUERY.sub(rf"\1={SECRET}", text) if "?" in text else text


def without_secrets(path: str) -> str:
    """Return the path of a source without user, password and query, as it is recorded.

    >>> without_secrets("precomputed://https://me:p@ss@host/em?token=abc")
    'precomputed://https://host/em'
    """
    path = USER.sub("://", path)
    scheme = location_of(path).removeprefix("graphene://").removeprefix("middleauth+")
    # In a bucket, or on disk, a question mark is part of a name.
    return BEGIN_OF_QUERY.split(path)[0] if scheme.startswith(("http://", "https://", "s3://http")) else path


def name_in_url(name: str) -> str:
    """Return a name, such as a key of a bucket, as the path of a URL: ``a#b+c/d`` is ``a%23b%2Bc/d``."""
    return quote(name, safe="/~")


def resolved_name(name: str) -> str:
    """Return a relative name without ``.``, and with ``..`` at its beginning only, as URLs are resolved.

    >>> resolved_name("a/./b/../c/"), resolved_name("../c"), resolved_name(".")
    ('a/c', '../c', '')
    """
    parts: list[str] = []
    for part in name.rstrip("/").split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def split_name(location: str) -> tuple[str, str]:
    """Return the cloud path of the folder above, and the name below it; the query of a URL stays at its end.

    >>> split_name("s3://bucket/em/color"), split_name("https://host/em/color?token=abc"), split_name("gs://bucket")
    (('s3://bucket/em', 'color'), ('https://host/em?token=abc', 'color'), ('', ''))
    """
    scheme, separator, rest = location.partition("://")
    begin = BEGIN_OF_QUERY.search(rest) if without_secrets(location) != USER.sub("://", location) else None
    path, query = (rest[: begin.start()], rest[begin.start() :]) if begin else (rest, "")
    above, slash, name = path.rstrip("/").rpartition("/")
    return (f"{scheme}{separator}{above}{query}", name) if slash and above else ("", "")


def file_url(base: str, key: str) -> str:
    """Return the URL of a file below a base URL, whose query stays at the end.

    Parameters
    ----------
    base : str
        An HTTP URL as a user writes it. Characters that a URL cannot hold are escaped; ``%XX`` is kept.
    key : str
        The name of the file below `base`; every character stands for itself.

    Examples
    --------
    >>> file_url("https://host/em?token=abc", "8_8_40#1/0-64")
    'https://host/em/8_8_40%231/0-64?token=abc'
    """
    scheme, _, rest = base.partition("://")
    begin = BEGIN_OF_QUERY.search(rest)
    path, query = (rest[: begin.start()], rest[begin.end() :]) if begin else (rest, "")
    host, _, path = path.partition("/")
    pieces = ESCAPED.split(path.strip("/"))
    path = "".join(piece if ESCAPED.fullmatch(piece) else quote(piece, safe=UNESCAPED) for piece in pieces)
    url = "/".join([f"{scheme}://{host}", *filter(None, [path, name_in_url(key.lstrip("/"))])])
    return f"{url}?{query}" if query else url


def server_of(url: str) -> str:
    """Return the server of a source: ``scheme://host``, or ``scheme://bucket`` if it has no host of its own.

    It has neither user nor password.

    >>> server_of("precomputed://https://user:secret@host:8080/a")
    'https://host:8080'
    """
    path = location_of(url).removeprefix("middleauth+")
    endpoint = path.partition("://")[2]
    parts = urlsplit(endpoint if endpoint.startswith(("http://", "https://")) else path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def is_safe_for_tokens(url: str) -> bool:
    """Return True if a token may be sent to a URL: over HTTPS, or to this machine."""
    return urlsplit(url).scheme == "https" or is_loopback(url)


def is_loopback(url: str) -> bool:
    """Return True if a URL is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
