from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from offline.results.compression import RunResult
from tests.sample_files import write_task, write_text
from tests.sample_runs import Listener, of_its_method
from tests.tiny import make_tiny_mixtral

# Four rounds would be two: 8 experts, 3 dropped in rounds of 2 and 1.
SETTINGS: dict[str, Any] = {
    "method": "lottery",
    "keep": 5,
    "rounds": 2,
    "round_tokens": 256,
    "token_cap": 384,
    "length": 32,
    "batch": 4,
    "learning_rate": 1e-3,
    "held_out": 4,
    "search_items": 10,
    "test_items": 10,
    "compare": "none",
    "dtype": "float32",
    "device": "cpu",
}


@dataclass(frozen=True)
class Ground:
    """A tiny model, its text and its task."""

    model: Path
    spec: str  # --calibration
    task: Path

    def flags(self, **more: Any) -> dict[str, Any]:
        """Return the settings of a run."""
        given = {"model": self.model, "task": str(self.task), "calibration": self.spec}
        return SETTINGS | given | more

    def compress(self, out: Path, **more: Any) -> RunResult:
        """Run a lottery to its end."""
        listener = Listener()
        recipe = recipe_of(of_its_method(self.flags(**more)))
        result = compress(recipe, out, reporter=listener)
        wrong = [stage for stage in listener.stages if stage[1] != stage[2]]
        assert not wrong, wrong
        return result


@pytest.fixture(scope="package")  # its environment must not outlive the package
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("ground")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMPRUNE_CACHE", str(folder / "cache"))
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        model = make_tiny_mixtral(folder / "model", hidden=32, heads=1, kv_heads=1, intermediate=48)
        prose = write_text(folder / "prose.txt")
        other = write_text(folder / "other.txt", 1)
        task = write_task(folder)
        yield Ground(model, f"prose={prose}:6,other={other}:4", task)


@pytest.fixture(scope="package")  # its environment must not outlive the package
def won(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outcome of a lottery that nothing disturbed; its rounds are beside it."""
    out = tmp_path_factory.mktemp("won") / "out"
    ground.compress(out)
    return out
