"""The table of families in docs/families.md, as the tests that ran have filled it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- matrix: written by the tests -->\n", "<!-- end of matrix -->\n"


@dataclass
class Matrix:
    """(family, form, parallel) -> largest difference of a log-probability; None: vLLM cannot."""

    cells: dict[tuple[str, str, str], float | None] = field(default_factory=dict)

    def add(self, family: str, form: str, parallel: str, worst: float | None) -> None:
        """Note one outcome."""
        self.cells[family, form, parallel] = worst

    def table(self) -> str:
        """Return the outcomes as Markdown: a row per family."""
        columns = list(dict.fromkeys((form, parallel) for _, form, parallel in sorted(self.cells)))
        head = [f"{form}, {parallel}" for form, parallel in columns]
        lines = ["| `model_type` | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
        for family in sorted({family for family, _, _ in self.cells}):
            cells = [self._cell(family, *column) for column in columns]
            lines.append(f"| `{family}` | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def _cell(self, family: str, form: str, parallel: str) -> str:
        if (family, form, parallel) not in self.cells:
            return ""
        worst = self.cells[family, form, parallel]
        return "vLLM cannot" if worst is None else f"{worst:.0e}"

    def write(self) -> None:
        """Put the table between its marks in the page."""
        text = PAGE.read_text()
        before, _, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        assert end, f"{PAGE.name} has no marks for the matrix"
        PAGE.write_text(before + BEGIN + self.table() + END + after)
