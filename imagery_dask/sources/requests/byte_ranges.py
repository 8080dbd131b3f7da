"""Read many byte ranges of files, of which neighbours are read together, or all of a file at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from imagery_dask.sources.requests.transport import Blob, Files, Request, complete

__all__ = ["LARGEST_WHOLE", "Place", "get_ranges", "get_whole"]

# Byte ranges of a file are read in one request if they are no farther apart, since a request costs as much as these
# bytes, and up to this size, so that chunks of a large block arrive one by one.
LARGEST_GAP = 2**15
LARGEST_REQUEST = 16 * 2**20
# A file of which all items are wanted is read in one request, if it hardly has more bytes.
LARGEST_WHOLE = 64 * 2**20

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Place(Generic[Item]):
    """Bytes ``start .. stop - 1`` of a file, which hold an item."""

    item: Item
    file: str
    start: int
    stop: int


def get_ranges(
    transport: Files, places: Iterable[Place[Item]], beside: str | None = None, fresh: bool = False
) -> Iterator[tuple[Item, Blob | None]]:
    """Yield the bytes of each item as stored, without compression; None if its file does not exist.

    `beside` and `fresh` are those of each `Request`.
    """
    of_files: dict[str, list[Place[Item]]] = {}
    for place in places:
        of_files.setdefault(place.file, []).append(place)
    runs = [run for of_file in of_files.values() for run in _runs(of_file)]
    requests = [Request(run[0].file, run[0].start, run[-1].stop, fresh, beside=beside) for run in runs]
    for run, (request, blob) in zip(runs, transport.get_many(requests), strict=True):
        for place in run:
            if blob is None or blob.refused_or_absent:
                yield place.item, blob
                continue
            offset = place.start - (request.start or 0)
            content = blob.content[offset : offset + place.stop - place.start]
            if len(run) > 1 or isinstance(transport, _HeldFile):  # an item that is kept must not keep the others
                content = bytes(content)
            yield place.item, Blob(content, None, blob.damage)


def get_whole(transport: Files, names: Iterable[str], beside: str | None) -> Iterator[tuple[str, Files | Blob | None]]:
    """Yield what the byte ranges of each file are read from: its bytes, which were read in one request.

    None for a file that does not exist, a blob if it is `Blob.refused_or_absent`, and `transport` itself for one that
    is damaged, or has more than twice as many bytes as `LARGEST_WHOLE`.
    """
    most = 2 * LARGEST_WHOLE
    for request, blob in transport.get_many(Request(name, most=most, beside=beside) for name in names):
        if blob is None or blob.refused_or_absent:
            yield request.key, blob
            continue
        try:
            content = blob.decompressed(most)
        except Exception:  # of any decompressor
            yield request.key, transport
        else:
            yield request.key, _HeldFile(memoryview(content).cast("B"))


class _HeldFile:
    """The bytes of one file."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def get(self, request: Request) -> Blob | None:
        """Return a byte range of the file."""
        return complete(request, Blob(self._content[request.start : request.stop]))

    def get_many(self, wanted: Iterable[Request]) -> Iterator[tuple[Request, Blob | None]]:
        """Yield byte ranges of the file."""
        return ((request, self.get(request)) for request in wanted)


def _runs(places: list[Place[Item]]) -> Iterator[list[Place[Item]]]:
    """Yield groups of byte ranges of a file that are read together."""
    run: list[Place[Item]] = []
    for place in sorted(places, key=lambda place: place.start):
        gap = place.start - run[-1].stop if run else 0
        if run and not (0 <= gap <= LARGEST_GAP and place.stop - run[0].start <= LARGEST_REQUEST):
            yield run
            run = []
        run.append(place)
    if run:
        yield run
