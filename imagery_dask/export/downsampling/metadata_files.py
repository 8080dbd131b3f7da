"""Replace a metadata file of a volume by its own content with additions, at once, unless somebody else changed it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from imagery_dask.annotations import JsonObject
from imagery_dask.errors import SourceError
from imagery_dask.serialization import json_object
from imagery_dask.storage.atomic_files import Files

__all__ = ["MetadataFile"]

INDENTATION = re.compile(rb"\n( +)")


@dataclass(frozen=True)
class MetadataFile:
    """A JSON file as it was when it was read.

    Parameters
    ----------
    files : Files
        Its folder.
    name : str
        Its name there.
    content : bytes
        What it held.
    """

    files: Files
    name: str
    content: bytes

    @classmethod
    def read(cls, files: Files, name: str) -> MetadataFile | None:
        """Return a file; None if it does not exist.

        Raises
        ------
        SourceError
            It is no JSON object.
        """
        content = files.get(name)
        if content is None:
            return None
        if json_object(content) is None:
            raise SourceError(f"{files.url}/{name} is no JSON object. Correct it, or ask those who made the volume.")
        return cls(files, name, content)

    @property
    def value(self) -> JsonObject:
        """A new copy of what the file says."""
        value: JsonObject = json.loads(self.content)
        return value

    def extend(self, add: Callable[[JsonObject], None]) -> None:
        """Write the file again with additions: on a disk by a rename, in a bucket by one PUT.

        Parameters
        ----------
        add : callable
            Adds to the content; what it does not touch stays, value by value, in the order that it had.

        Raises
        ------
        SourceError
            The file is not what it was when it was read. If it has the additions already, there is nothing to do.
        """
        wanted = self.value
        add(wanted)
        now = self.files.get(self.name)
        if json_object(now) == wanted:
            return
        if now != self.content:
            raise SourceError(
                f"{self.files.url}/{self.name} has changed while levels were added: it was left as it is now, without "
                "them. Run the same command again: the levels are written, and only this file is left."
            )
        # Line by line where it was written so.
        indented = INDENTATION.search(self.content)
        text = json.dumps(wanted, indent=None if indented is None else len(indented[1]))
        self.files.put(self.name, text.encode(), "application/json")
