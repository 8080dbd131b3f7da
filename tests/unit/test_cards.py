"""Summaries are escaped, have no secrets, refer to no other page, and fit into a few lines of text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imagery_dask.cards import Card, CardTable

HOSTILE = "<script>alert('x')</script>\" onmouseover=\"x"


class Tags(HTMLParser):
    """Collects tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_is_a_line_for_each_row() -> None:
    card = Card("Thing", [("a", "1"), ("longer", "2")], [CardTable("t", ["h"], [["cell"]])], ["It broke."])
    assert card.text() == "Thing\n  a       1\n  longer  2\n  Problem: It broke."


def test_html_has_everything_and_refers_to_nothing_else() -> None:
    card = Card(
        "Thing", [("a", "1")], [CardTable("t", ["h"], [["cell"]])], ["It broke."], b"PNG", "Below", "https://v/"
    )
    page = Tags(card.html())
    assert all(word in page.text for word in ("Thing", "a", "1", "t", "h", "cell", "It broke.", "Below"))
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert sources == ["https://v/", "data:image/png;base64,UE5H"]
    assert "url(" not in card.html()
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "prefers-color-scheme: dark" in card.html()
    assert "--jp-content-font-color1" in card.html()


@given(text=st.text() | st.just(HOSTILE))
def test_texts_are_escaped_everywhere(text: str) -> None:
    plain = Tags(Card("t", [("a", "b")], [CardTable("t", ["h"], [["c"]])], ["p"], b"x", "c").html())
    card = Card(text, [(text, text)], [CardTable(text, [text], [[text]])], [text], b"x", text)
    page = Tags(card.html())
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in page.tags] == [sorted(attrs) for _, attrs in plain.tags]


def test_secrets_of_urls_are_shown_nowhere() -> None:
    url = "precomputed://https://me:secret@host/em?token=secret"
    card = Card(url, [("source", url)], [CardTable(url, [url], [[url]])], [url], b"x", url)
    for text in (card.text(), card.html()):
        assert "secret" not in text
        assert re.search(r"https://\*\*\*@host/em\?token=\*\*\*", text)
