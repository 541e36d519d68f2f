"""EEP's tasks as lm-eval YAML files: the paper's prompts, answers and held-out items."""

from __future__ import annotations

from pathlib import Path


def are_papers(tasks: str) -> bool:
    """Return whether all of ``NAME[:...],...`` are tasks or groups of this folder."""
    known = {file.stem for file in Path(__file__).parent.glob("*.yaml")}
    return all(part.strip().partition(":")[0] in known for part in tasks.split(","))
