"""What pages of reports are made of: a frame with its style, tables, numbers. Whatever is given as text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ["COLORS", "Markup", "items", "numbers", "page", "section", "table"]

# Okabe and Ito's colours, which differ for colour-blind people too; the last word of a state is its class.
COLORS = {
    "done": "#009e73", "repeated": "#56b4e9", "zero roots": "#cc79a7", "missing chunks": "#e69f00",
    "not done": "var(--none)", "failed": "#d55e00", "damaged": "var(--ink)",
}  # fmt: skip

# HTML that has been made here; plain text is str, and is escaped where it is put into a page.
Markup = str

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6676; --line: #dfe3e8; --paper: #fff; --card: #f6f7f9;
  --none: #c9ced6; --accent: #0072b2; --bad: #b34700; --good: #00744f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --soft: #9aa5b5; --line: #333b47; --paper: #14181e;
  --card: #1c222a; --none: #4a535f; --accent: #56b4e9; --bad: #f08b4b; --good: #35c79b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 14px/1.5 system-ui, "Segoe UI", Roboto, Helvetica,
  Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 28px 56px; }
h1 { font-size: 22px; line-height: 1.3; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 34px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 13px; font-weight: 600; margin: 18px 0 8px; }
p { margin: 6px 0; overflow-wrap: anywhere; }
.soft, figcaption, th, .slab, svg text { color: var(--soft); fill: var(--soft); }
.verdict { margin: 16px 0; padding: 10px 14px; border-left: 4px solid var(--good); background: var(--card); }
.verdict.bad { border-color: var(--bad); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 16px 0 6px; }
.numbers div { background: var(--card); border-radius: 6px; padding: 9px 12px; }
.numbers b { display: block; font-size: 19px; line-height: 1.3; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.numbers .bad b { color: var(--bad); }
.numbers span { color: var(--soft); font-size: 12px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; font-weight: 600; white-space: nowrap; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td:first-child { min-width: 60px; }
td.n, th.n { width: 1%; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 11px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0; font-size: 13px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px;
  vertical-align: -1px; }
.slabs { display: flex; flex-wrap: wrap; gap: 12px 14px; align-items: flex-end; }
.slab { font-size: 11px; text-align: center; font-variant-numeric: tabular-nums; }
.slab svg { margin: 0 auto 3px; }
.cross { stroke: var(--paper); stroke-width: .12; fill: none; }
.previews { display: flex; flex-wrap: wrap; gap: 16px; }
figure { margin: 0; width: 236px; }
figure img, figure .none { display: block; width: 236px; height: 236px; object-fit: contain; background: #000;
  border-radius: 4px; image-rendering: auto; }
figure .none { color: #aab; padding: 16px; font-size: 12px; overflow: hidden; overflow-wrap: anywhere; }
figcaption { font-size: 12px; margin-top: 5px; overflow-wrap: anywhere; }
details { margin-top: 10px; } summary { cursor: pointer; }
code { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media print { details, .numbers div { break-inside: avoid; } }
"""


def page(title: str, body: Iterable[Markup]) -> str:
    """Whole page: one file, which refers to no other."""
    states = "".join(
        f".{name.split()[0]} {{ fill: {color}; background: {color}; }}\n" for name, color in COLORS.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{states}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: Markup) -> Markup:
    """Part of a page under a heading."""
    return "\n".join([f"<section>\n<h2>{escape(title)}</h2>", *parts, "</section>"])


def numbers(values: Iterable[tuple[str, str, bool]]) -> Markup:
    """Headline numbers: what each is of, the number, and whether it is bad news."""
    cells = (
        f"<div{' class=bad' if bad else ''}><b>{escape(value)}</b><span>{escape(label)}</span></div>"
        for label, value, bad in values
    )
    return f'<div class="numbers">{"".join(cells)}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """Table; whole numbers stand at the right of their column."""
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[at], int) for row in rows) for at in range(len(heads))]
    head = "".join(f"<th{_side(r)}>{escape(name)}</th>" for name, r in zip(heads, right, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td{_side(r)}>{escape(_text(v))}</td>' for v, r in zip(row, right, strict=True))}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def items(texts: Iterable[str]) -> Markup:
    """List of sentences."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _side(right: bool) -> str:
    return " class=n" if right else ""


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
