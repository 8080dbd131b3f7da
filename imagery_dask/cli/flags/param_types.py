"""Click types of option values that need parsing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from imagery_dask.humanize import size_in_bytes, time_in_seconds
from imagery_dask.validate import expanded_path

if TYPE_CHECKING:
    from imagery_dask.records.parts import Part

__all__ = [
    "CodecType",
    "ColorsType",
    "DurationType",
    "LevelsType",
    "MissingType",
    "RootIdsType",
    "ShapeType",
    "PartType",
    "RegionsType",
    "ShardingType",
    "SizeType",
    "WindowType",
    "WorkersType",
]


class ShapeType(click.ParamType[Any]):
    """Three whole numbers above 0, written X,Y,Z, or one of the given words; ``none`` becomes None.

    Parameters
    ----------
    *words : str
        Words that are accepted instead of a shape.
    """

    def __init__(self, *words: str) -> None:
        self._words = words
        self.name = "|".join(["X,Y,Z", *words])

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of the text."""
        if not isinstance(value, str):
            return value
        if value in self._words:
            return None if value == "none" else value
        try:
            x, y, z = (int(part) for part in value.split(","))
        except ValueError:
            self.fail(
                f"{value!r} is not three whole numbers X,Y,Z{''.join(f', or {w}' for w in self._words)}.", param, ctx
            )
        if min(x, y, z) < 1:
            self.fail(f"{value!r}: a shape must have at least 1 voxel along each axis.", param, ctx)
        return (x, y, z)


class CodecType(click.ParamType[Any]):
    """A codec of zarr with an optional level, ``NAME`` or ``NAME:LEVEL``."""

    name = "name[:level]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, if it names a codec."""
        from imagery_dask.export.zarr.compressors import Compressor

        text = str(value)
        try:
            if text != "auto":
                Compressor.parse(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return text


class ShardingType(click.ParamType[Any]):
    """``auto``, ``none``, or the sharding entry of an info as JSON."""

    name = "auto|none|JSON"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of the text."""
        from imagery_dask.export.precomputed.sharding import Sharding

        if value in ("auto", "none"):
            return None if value == "none" else value
        try:
            entry = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            self.fail(f"{value!r} is neither auto nor none nor a JSON object such as an info's sharding.", param, ctx)
        try:
            return Sharding.from_entry(entry).entry
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DurationType(click.ParamType[Any]):
    """A time such as 30s, 10m or 2h, converted to seconds; a number without a unit is in seconds."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the value of the text."""
        if isinstance(value, int | float):
            return float(value)
        seconds = time_in_seconds(value)
        if seconds is None:
            self.fail(f"{value!r} is not a time such as 30s, 10m or 2h.", param, ctx)
        return seconds


class LevelsType(click.ParamType[Any]):
    """A number of levels, or one of the given words: by default ``auto`` or ``source``."""

    def __init__(self, *words: str) -> None:
        self._words = words or ("auto", "source")
        self.name = "|".join(["N", *self._words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of the text."""
        if isinstance(value, int) or value in self._words:
            return value
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is not a number of levels, {' or '.join(self._words)}.", param, ctx)
        return int(value)


class WorkersType(click.ParamType[Any]):
    """A number of workers, or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of the text."""
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is not a number of workers from 1, or auto.", param, ctx)
        return int(value)


class RootIdsType(click.ParamType[Any]):
    """``all``, ``none``, ids separated by commas, or ``@FILE`` for a file of ids separated by commas or white space."""

    name = "all|none|ID,ID|@FILE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int] | Literal["all"] | None:
        """Return the value of the text."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        if value.lower() == "all":
            return "all"
        if value.lower() == "none":
            return None
        text = value
        if value.startswith("@"):
            try:
                text = Path(expanded_path(value[1:])).read_text()
            except OSError as error:
                self.fail(f"Cannot read {value[1:]!r}: {error.strerror}.", param, ctx)
            except UnicodeDecodeError:
                self.fail(f"{value[1:]!r} is not a text file of ids.", param, ctx)
        ids = []
        for word in text.replace(",", " ").split():
            if not word.isdecimal() or int(word) >= 2**64:
                self.fail(f"Root ids must be whole numbers from 0 to 2**64 - 1; got {word!r}.", param, ctx)
            ids.append(int(word))
        if not ids:
            self.fail(f"{value!r} contains no ids; leave the option out to export every object.", param, ctx)
        return ids


class MissingType(click.ParamType[float]):
    """A percentage such as 0.1%, converted to a fraction, or a whole number."""

    name = "N|P%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | int:
        """Return the value of the text."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            number: float | int = float(value[:-1]) / 100 if value.endswith("%") else int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a percentage such as 0.1% nor a whole number.", param, ctx)
        if not (0 <= number <= 1 if isinstance(number, float) else number >= 0):
            self.fail(f"{value!r}: a percentage must be from 0% to 100%, a number at least 0.", param, ctx)
        return number


class PartType(click.ParamType["Part"]):
    """A part of an export, such as 3/8."""

    name = "I/N"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Part:
        """Return the value of the text."""
        from imagery_dask.records.parts import Part

        if isinstance(value, Part):
            return value
        try:
            return Part.read(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SizeType(click.ParamType[int]):
    """A size in bytes, such as 4GiB (2**30 each) or 4G (10**9 each)."""

    name = "SIZE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the value of the text."""
        size = size_in_bytes(value)
        if size is None:
            self.fail(f"{value!r} is not a size such as 4GiB or 500MB.", param, ctx)
        return size


class WindowType(click.ParamType[tuple[float, float]]):
    """Two numbers, written LOW,HIGH."""

    name = "LOW,HIGH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return the value of the text."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers LOW,HIGH.", param, ctx)
        return (low, high)


class ColorsType(click.ParamType[Any]):
    """A file with one line ``id,r,g,b`` or ``id,r,g,b,a`` per object, converted to a dict of colors by id."""

    name = "FILE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[int, tuple[int, ...]]:
        """Return the colors in the file."""
        if isinstance(value, dict):
            return {int(root_id): tuple(color) for root_id, color in value.items()}
        try:
            lines = [line for line in Path(expanded_path(value)).read_text().splitlines() if line.strip()]
        except OSError as error:
            self.fail(f"Cannot read {value!r}: {error.strerror}.", param, ctx)
        except UnicodeDecodeError:
            self.fail(f"{value!r} is not a text file of colors.", param, ctx)
        colors: dict[int, tuple[int, ...]] = {}
        for line in lines:
            try:
                root_id, *color = (int(word) for word in line.split(","))
            except ValueError:
                self.fail(f"{value!r} must have lines id,r,g,b or id,r,g,b,a; got {line!r}.", param, ctx)
            colors[root_id] = tuple(color)
        return colors


class RegionsType(click.ParamType[Any]):
    """The path of a file of named boxes, or, in a file of options, boxes by name."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value: the file is read when it is known that it is needed."""
        return value
