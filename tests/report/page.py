"""Reads a page as a browser would: its text, its elements, what it would load."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

_VOID = {"meta", "link", "br", "hr", "img", "input"}
_LOADING = {"src", "srcset", "data", "poster", "background", "action"}


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
        self.feed(text)
        self.close()
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            external = name == "href" and not (value or "").startswith("#")
            if name in _LOADING or external:
                self.loads.append(f"{tag} {name}={value}")
        if tag in {"td", "th"}:
            self.cells.append("")
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
            if attributes.get("class") == "figure":
                self.figures[str(attributes["data-for"])] = json.loads(data)
        elif self.open[-1:] == ["style"]:
            self.styles.append(data)
        else:
            self.text += data
            if self.open[-1:] in (["td"], ["th"]):
                self.cells[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
