"""The table of families in docs/families.md, as the tests that ran have filled it.

A row for every family that there is; a cell that no test has filled says so. What cannot be is a
number in the table and its message below it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.families.serving import SECTIONS, UNCOMPARED
from vllm_moe_prune.layouts import LAYOUTS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- matrix: written by the tests -->\n", "<!-- end of matrix -->\n"
COLUMNS = {
    "transformers": "scored by transformers",
    "scores": "scored by vLLM",
    "plain": "plain",
    "compact": "compact",
    "mapped": "mapped",
    "live": "live",
    "TP2": "TP2",
}
NOT_RUN, NO_MAP = "not run", "no map"
_MESSAGE = re.compile(r"(\d+)\. (.*)")


@dataclass
class Matrix:
    """(family, column) -> what the cell says: a difference, or a message."""

    cells: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, family: str, form: str, parallel: str, found: float | str) -> None:
        """Note one outcome; of several forms on two ranks the worst.

        :param found: largest difference from the reference, or why there is none
        """
        key = (family, form if parallel == "TP1" else parallel)
        text = found if isinstance(found, str) else f"{found:.0e}"
        before = self.cells.get(key, "0")
        if parallel == "TP1" or not _is_number(text) or _worse(text, before):
            self.cells[key] = text

    @classmethod
    def read(cls, written: str) -> Matrix:
        """Return what a table has, with the messages below it."""
        messages = {
            f"({found[1]})": found[2]
            for line in written.splitlines()
            if (found := _MESSAGE.fullmatch(line))
        }
        names = {title: name for name, title in COLUMNS.items()}
        rows = [line.strip("|").split("|") for line in written.splitlines() if line[:1] == "|"]
        head, *rest = [[cell.strip() for cell in row] for row in rows] or [[]]
        cells = {}
        for family, *row in rest:
            for title, cell in zip(head[1:], row, strict=True):
                if cell not in (NOT_RUN, NO_MAP) and not cell.startswith("-"):
                    cells[family.strip("`"), names[title]] = messages.get(cell, cell)
        return cls(cells)

    def table(self) -> str:
        """Return the outcomes as Markdown: a row per family, and messages below."""
        lines = [
            "| `model_type` | " + " | ".join(COLUMNS.values()) + " |",
            "|---" * (len(COLUMNS) + 1) + "|",
        ]
        messages: list[str] = []
        others = {family for family, _ in self.cells} - set(LAYOUTS)
        for family in sorted({*LAYOUTS, *others}):
            row = [self._cell(family, column, messages) for column in COLUMNS]
            lines.append(f"| `{family}` | " + " | ".join(row) + " |")
        notes = [f"{number}. {text}" for number, text in enumerate(messages, 1)]
        return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"

    def _cell(self, family: str, column: str, messages: list[str]) -> str:
        text = self.cells.get((family, column), SECTIONS.get(family))
        text = text or UNCOMPARED.get((family, column))
        if text is None:
            mapped = column != "mapped" or family not in LAYOUTS or LAYOUTS[family].mappable
            return NOT_RUN if mapped else NO_MAP
        if _is_number(text):
            return text
        if text not in messages:
            messages.append(text)
        return f"({messages.index(text) + 1})"

    def write(self) -> None:
        """Put the outcomes between the page's marks; of tests that did not run, cells stay."""
        text = PAGE.read_text()
        before, _, rest = text.partition(BEGIN)
        found, end, after = rest.partition(END)
        assert end, f"{PAGE.name} has no marks for the matrix"
        whole = Matrix(Matrix.read(found).cells | self.cells)
        PAGE.write_text(before + BEGIN + whole.table() + END + after)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d(\.\d+)?(e[+-]\d+)?", text) is not None


def _worse(text: str, before: str) -> bool:
    return not _is_number(before) or float(text) >= float(before)
