"""HTML from Python values: everything is escaped, but for what was made here before."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def to_html(value: Any) -> Html:
    """A value as HTML; its text escaped unless it is HTML."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, /, *content: Any, **attributes: Any) -> Html:
    """An element. `class_` is the attribute `class`, `data_x` is `data-x`; an attribute that is None is left out."""
    words = [name]
    words += [f'{key.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for key, v in attributes.items() if v is not None]
    return Html(f"<{' '.join(words)}>{''.join(map(to_html, content))}</{name}>")


def join(parts: Iterable[Any], between: str = "\n") -> Html:
    """Parts one after the other."""
    return Html(between.join(map(to_html, parts)))


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, texts: int = 1) -> Html:
    """A table in a box that scrolls by itself; the first `texts` columns are text, the others numbers, to the right."""
    kinds = [None if place < texts else "number" for place in range(len(headings))]
    head = tag("tr", *(tag("th", text, class_=kind) for text, kind in zip(headings, kinds, strict=True)))
    body = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")
