"""Tell a refused file from one that does not exist, where a server answers HTTP 403 for both.

A bucket that does not allow listing answers 403 for an object that does not exist. Whether a server does so is found
out by a control: a file is asked for that surely does not exist, beside one that is readable.
"""

from __future__ import annotations

import logging
import posixpath
import threading
from collections.abc import Callable
from uuid import uuid4

from imagery_dask.errors import AccessRefusedError
from imagery_dask.sources.files.failures import code_of, status_of

__all__ = ["AbsenceControl", "says_no_reason"]

FORBIDDEN = 403
# Codes of a 403 that say no more than that. Others, such as ``ExpiredToken``, are no answer about the file.
NO_REASON = {"403", "AccessDenied", "Forbidden"}

_logger = logging.getLogger("imagery_dask")


class AbsenceControl:
    """Finds out, once, if a server answers 403 for files that do not exist. Safe to use from many threads.

    Parameters
    ----------
    name : str
        The folder, for the log.
    exists : callable
        Asks for a file by its key. Returns True if it exists; raises `AccessRefusedError` if access is refused.
    """

    def __init__(self, name: str, exists: Callable[[str], bool]) -> None:
        self._name, self._exists = name, exists
        self._lock = threading.Lock()  # so that threads whose requests are refused together ask once
        self._known: dict[str, bool] = {}

    def hides_absence(self, beside: str) -> bool:
        """Return True if the server answers 403 for a file that does not exist beside a readable one.

        False if the latter is not readable now: permission may have been withdrawn, or a token have expired.
        """
        with self._lock:
            if beside not in self._known and self._is_readable(beside):
                self._known[beside] = self._is_refused(posixpath.join(posixpath.dirname(beside), _absent_name()))
                if self._known[beside]:
                    _logger.warning(
                        "%s is on a server that answers HTTP 403 both for files that do not exist and for files that "
                        "it refuses. Chunks with this answer are missing or refused; they are filled and counted "
                        "apart (refused_or_absent), or an error with missing='error'. Permission to list the bucket "
                        "lets the two be told apart.", self._name,
                    )  # fmt: skip
            return self._known.get(beside, False)

    def _is_readable(self, key: str) -> bool:
        try:
            return self._exists(key)
        except AccessRefusedError:
            return False

    def _is_refused(self, key: str) -> bool:
        try:
            self._exists(key)
        except AccessRefusedError:
            return True
        return False


def says_no_reason(error: Exception) -> bool:
    """Return True for a 403 that may be the answer for a file that does not exist."""
    return status_of(error) == FORBIDDEN and code_of(error) in NO_REASON


def _absent_name() -> str:
    return f"imagery-dask-control-{uuid4().hex}"
