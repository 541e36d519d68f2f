"""`GatesResult`: which gates a pruned model passes, fails, or leaves open."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from offline.results.estimate import Estimate
from offline.results.result_file import ResultFile

GATES_FILE = "gates_result.json"
Verdict = Literal["pass", "fail", "undecided"]
EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "undecided": 3}  # 2 is that of wrong words


class GateResult(BaseModel):
    """One gate: what it is about, its limit, what was measured, and what follows from it.

    ``bound`` says which side of the limit is right. ``measured`` is None where nothing was, and
    ``detail`` then says why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str
    name: str
    bound: Literal["at most", "at least"]
    limit: float
    verdict: Verdict
    measured: Estimate | None = None
    detail: str = ""


class GatesResult(ResultFile):
    """All gates of a file, for one model."""

    file_name = GATES_FILE
    made_by = "a command with --gate"

    schema_version: int = 1
    model: str
    gates: tuple[GateResult, ...]

    @property
    def verdict(self) -> Verdict:
        """Fail if a gate fails, else undecided if one is open, else pass."""
        found = {gate.verdict for gate in self.gates}
        return "fail" if "fail" in found else "undecided" if "undecided" in found else "pass"

    @property
    def exit_code(self) -> int:
        """Return 0, 1 or 3, what a command ends with."""
        return EXIT_CODES[self.verdict]
