"""The table of families in docs/families.md, as the tests that ran have filled it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- matrix: written by the tests -->\n", "<!-- end of matrix -->\n"


@dataclass
class Matrix:
    """(family, form, parallel) -> what the cell says."""

    cells: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def add(self, family: str, form: str, parallel: str, worst: float | None) -> None:
        """Note one outcome.

        :param worst: largest difference of a log-probability; None: vLLM cannot
        """
        self.cells[family, form, parallel] = "vLLM cannot" if worst is None else f"{worst:.0e}"

    @classmethod
    def read(cls, table: str) -> Matrix:
        """Return what a table has."""
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ] or [[], []]
        cells = {}
        for family, *row in rows:
            for column, cell in zip(head[1:], row, strict=True):
                form, parallel = column.split(", ")
                cells[family.strip("`"), form, parallel] = cell
        return cls(cells)

    def table(self) -> str:
        """Return the outcomes as Markdown: a row per family."""
        columns = list(dict.fromkeys((form, parallel) for _, form, parallel in sorted(self.cells)))
        head = [f"{form}, {parallel}" for form, parallel in columns]
        lines = ["| `model_type` | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
        for family in sorted({family for family, _, _ in self.cells}):
            cells = [self.cells.get((family, *column), "") for column in columns]
            lines.append(f"| `{family}` | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        """Put the outcomes between the page's marks; of tests that did not run, cells stay."""
        text = PAGE.read_text()
        before, _, rest = text.partition(BEGIN)
        found, end, after = rest.partition(END)
        assert end, f"{PAGE.name} has no marks for the matrix"
        whole = Matrix(Matrix.read(found).cells | self.cells)
        PAGE.write_text(before + BEGIN + whole.table() + END + after)
