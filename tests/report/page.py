"""Reads a page as a browser would: its text, its elements, what it would load."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

_VOID = {"meta", "link", "br", "hr", "img", "input"}
_LOADING = {"src", "srcset", "data", "poster", "background", "action"}


@dataclass
class Shown:
    """One table of a page: its caption, its headings, and its rows with their own headings."""

    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)

    @property
    def head(self) -> list[str]:
        return self.rows[0]

    @property
    def body(self) -> list[list[str]]:
        """Return the rows below the headings; each is as long as these."""
        assert all(len(row) == len(self.head) for row in self.rows), self.rows
        return self.rows[1:]

    def row(self, *names: str) -> dict[str, str]:
        """Return the one row that begins with these cells, by heading."""
        (found,) = [row for row in self.body if row[: len(names)] == list(names)]
        return dict(zip(self.head, found, strict=True))

    def column(self, heading: str) -> list[str]:
        return [row[self.head.index(heading)] for row in self.body]


class Page(HTMLParser):
    """Collects what the tests ask for; an element closed out of turn is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.figures: dict[str, dict[str, Any]] = {}
        self.text = ""
        self.cells: list[str] = []
        self.tables: list[Shown] = []
        self.feed(text)
        self.close()
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            external = name == "href" and not (value or "").startswith("#")
            if name in _LOADING or external:
                self.loads.append(f"{tag} {name}={value}")
        if tag == "table":
            self.tables.append(Shown())
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in {"td", "th"}:
            self.cells.append("")
            self.tables[-1].rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            attributes = self.tags[-1][1]
            self.scripts.append(data)
            if attributes.get("type") == "application/json":
                name = attributes.get("data-for") or attributes["id"]
                self.figures[str(name)] = json.loads(data)
        elif self.open[-1:] == ["style"]:
            self.styles.append(data)
        else:
            self.text += data
            if self.open[-1:] in (["td"], ["th"]):
                self.cells[-1] += data
                self.tables[-1].rows[-1][-1] += data
            elif "caption" in self.open:
                self.tables[-1].caption += data

    def table(self, caption: str) -> Shown:
        """Return the one table with this caption."""
        (found,) = [table for table in self.tables if table.caption == caption]
        return found

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
