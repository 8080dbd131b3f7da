"""Summaries of objects, which notebooks show as HTML and terminals as text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from imagery_dask.urls import redacted

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Card", "CardTable"]


@dataclass(frozen=True, slots=True)
class CardTable:
    """A table of a card, which its text leaves out.

    Parameters
    ----------
    title : str
        What is listed.
    heads : sequence of str
        Names of the columns.
    rows : sequence of sequence of str
        Cells.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Card:
    """A summary of an object. URLs in it are shown without secrets, and all text is escaped in HTML.

    Parameters
    ----------
    title : str
        What the object is.
    rows : sequence of tuple of 2 str
        Labels and values.
    tables : sequence of CardTable
        More values.
    problems : sequence of str
        What is wrong, as sentences.
    picture : bytes, optional
        PNG to show beside the rows.
    caption : str
        Text below the picture.
    link : str, optional
        URL of a viewer.
    """

    title: str
    rows: Sequence[tuple[str, str]]
    tables: Sequence[CardTable] = field(default=())
    problems: Sequence[str] = field(default=())
    picture: bytes | None = None
    caption: str = ""
    link: str | None = None

    def text(self) -> str:
        """Return the title and a line for each row and problem."""
        width = max((len(label) for label, _ in self.rows), default=0) + 2
        lines = [f"  {label:<{width}}{value}" for label, value in self.rows]
        return redacted("\n".join([self.title, *lines, *(f"  Problem: {problem}" for problem in self.problems)]))

    def html(self) -> str:
        """Return a fragment of HTML that refers to nothing but the viewer, in the colors of the page around it."""
        picture = None if self.picture is None else base64.b64encode(self.picture).decode()
        return _template().render(card=self, picture=picture)


@cache
def _template() -> Template:
    # Imported when the first card is shown.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("imagery_dask", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: redacted(value) if type(value) is str else value,
    )  # fmt: skip
    return environment.get_template("card.html.j2")
