"""A lottery killed in any phase of any round goes on to the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offline.compress import lottery as compress_module
from offline.lottery import play as play_module
from offline.lottery import round as round_module
from offline.runs.owned import MANIFEST
from tests.lottery.conftest import Ground

# (what is killed, where it is found, the name there, at which call); in the order of a run
ROUND: list[tuple[Any, str, int]] = [
    (round_module, "calibrate", 1),  # scored, but not written
    (round_module.RoutingMap, "save", 1),  # written, but without its name
    (round_module, "build", 1),  # pruned: written
    (round_module, "measure", 1),  # measured, but not written
    (torch.optim.AdamW, "step", 2),  # in the middle of the finetune
    (round_module, "finetune", 1),  # tuned: written
    (round_module, "measure", 1),
    (round_module.RoundRecord, "save", 1),  # over
    (play_module, "delete", 1),  # half of what is not needed is gone
]
LAST: list[tuple[Any, str, int]] = [
    (compress_module, "finish", 1),
    (compress_module, "measure_as_it_is", 1),
    (compress_module, "size_of", 1),
]


def _killed(place: Any, name: str, call: int, run: Callable[[], Any]) -> int:
    """Run in a process of its own, which dies right after the call; return its exit code."""

    def child() -> None:
        torch.set_num_threads(1)
        original, calls = getattr(place, name), [0]

        def dying(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(place, name, dying)
        run()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(300)
    assert process.exitcode is not None, f"{name} hangs"
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    """Return what must be the same: all but the times that things took."""
    timed = ("vmprune_result.json", "report.html", MANIFEST)  # which knows the result by content
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.name not in timed}


@pytest.mark.slow
def test_a_run_killed_in_every_phase_ends_with_the_same_bytes(
    ground: Ground, won: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for place, name, call in (*ROUND, *ROUND, *LAST):
        code = _killed(place, name, call, lambda: ground.compress(out))
        assert code == -signal.SIGKILL, (name, code)
        assert not out.exists()
    ground.compress(out)
    assert contents(out) == contents(won)
    again, before = (folder.with_name("out.run") for folder in (out, won))
    for number in (1, 2):
        for name in ("pruned.json", "tuned.json", "map/routing_map.json", "scores/scores.json"):
            file = Path(f"round-0{number}") / name
            assert (again / file).read_bytes() == (before / file).read_bytes(), file


@pytest.mark.parametrize("lost", ["round-02/map", "round-02/round.json", "base.json"])
def test_what_is_missing_is_made_again(
    ground: Ground, won: Path, tmp_path: Path, lost: str
) -> None:
    """From the last round's beginning on; weights that are gone make it begin with the first."""
    out = tmp_path / "out"
    shutil.copytree(won.with_name("out.run"), tmp_path / "out.run")
    gone = tmp_path / "out.run" / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    ground.compress(out)
    assert contents(out) == contents(won)


def test_a_finished_run_that_is_forced_begins_anew(
    ground: Ground, won: Path, tmp_path: Path
) -> None:
    from offline.compress.compress import compress
    from offline.compress.recipe.reading import recipe_of
    from tests.sample_runs import Listener

    shutil.copytree(won, tmp_path / "out")
    shutil.copytree(won.with_name("out.run"), tmp_path / "out.run")
    recipe = recipe_of(ground.flags())
    compress(recipe, tmp_path / "out", reporter=Listener(), force=True)
    assert contents(tmp_path / "out") == contents(won)
