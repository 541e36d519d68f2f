"""Listening to a run, and reading what it logged."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline.compress.methods import DEFAULT_METHOD, METHODS
from offline.compress.recipe.recipe import fields_of


@dataclass
class Listener:
    """Notes the stages and how many of their steps were made."""

    stages: list[list[Any]] = field(default_factory=list)

    def stage(self, title: str, total: int) -> None:
        self.stages.append([title, total, 0])

    def step(self, amount: int = 1, note: str = "") -> None:
        self.stages[-1][2] += amount


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = (out.with_name(out.name + ".run") / "evaluations.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def of_its_method(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the method of some settings does not have, and would refuse."""
    known = fields_of(METHODS[settings.get("method", DEFAULT_METHOD)].recipe)
    return {name: value for name, value in settings.items() if name in known}
