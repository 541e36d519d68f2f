"""The whole of compress on a tiny random model: evidence, repeatability, and life after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from offline.cli.main import cli
from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from offline.engines.base import Engine
from offline.engines.local.transformers import TransformersEngine
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.methods.baselines import most_used
from offline.results.compression import RESULT_FILE, RunResult
from offline.tasks.catalog import get_task
from offline.tasks.results import TaskResult
from offline.tasks.splits import load_items
from tests.sample_runs import Listener, log_of, of_its_method
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap

SETTINGS: dict[str, Any] = {
    "keep": 4,
    "groups": "layer",
    "evaluations": 12,
    "initial": 6,
    "finalists": 3,
    "search_items": 15,
    "selection_items": 15,
    "random_maps": 3,
    "phases": "prune",
    "racing": False,
    "seeding": False,
    "dtype": "float32",
    "device": "cpu",
}


def run(
    engine: Engine,
    model: Path,
    task: Path,
    out: Path,
    listener: Listener | None = None,
    **more: Any,
) -> RunResult:
    recipe = recipe_of(of_its_method(SETTINGS | {"model": model, "task": str(task)} | more))
    reporter = listener or Listener()
    return compress(recipe, out, make_engine=lambda _: engine, reporter=reporter)


def keys_of(out: Path) -> list[tuple[str, str]]:
    """Return what was evaluated, in order: the map and how."""
    return [(e["digest"], e["kind"]) for e in log_of(out)]


def test_a_run_leaves_the_checkpoint_the_map_and_the_evidence(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    listener, out = Listener(), tmp_path / "out"
    result = run(engine, model, task_file, out, listener)
    assert RunResult.load(out) == result
    routing_map = RoutingMap.load(out)
    assert routing_map.digest() == result.map_digest
    assert Checkpoint.open(out).expert_counts() == {0: 4, 1: 4}
    assert [(layer.layer, layer.kept) for layer in result.layers] == [
        (layer.layer, layer.experts.kept) for layer in routing_map.layers
    ]
    assert all(done == total for _, total, done in listener.stages), listener.stages
    sizes = (result.base_size, result.pruned_size)
    assert [size.experts for size in sizes] == [16, 8]
    assert sizes[1].expert_bytes * 2 == sizes[0].expert_bytes == 2 * 8 * 3 * 64 * 96 * 4
    assert sizes[1].num_bytes == Checkpoint.open(out).num_bytes
    assert result.seconds.keys() == {"search", "held-out"}
    _check_quality(result)
    _check_search(result)
    _check_provenance(result, task_file)
    reopened = TransformersEngine(out, device="cpu", dtype="float32")
    held_out = reopened.evaluate(get_task(str(task_file)), "test")
    found = result.quality_of("eep")
    assert found is not None and found.accuracy == held_out.accuracy


def _check_quality(result: RunResult) -> None:
    assert [(q.variant, q.split, q.maps, q.items) for q in result.quality] == [
        ("base", "test", 1, 30),
        ("random", "test", 3, 30),
        ("frequency", "test", 1, 30),
        ("eep", "test", 1, 30),
        ("eep", "search", 1, 15),
        ("eep", "selection", 1, 15),
    ]
    for entry in result.quality:
        assert entry.low <= entry.accuracy <= entry.high
        assert entry.accuracy == pytest.approx(sum(entry.each) / entry.maps)


def _check_search(result: RunResult) -> None:
    assert [point.evaluation for point in result.search] == list(range(1, 13))
    best = 0.0
    for point in result.search:
        best = max(best, point.fitness)
        assert point.best == best
        assert point.tokens > 0
    searched = result.quality_of("eep", "search")
    assert searched is not None and searched.accuracy <= best


def _check_provenance(result: RunResult, task_file: Path) -> None:
    made = result.provenance
    assert (made.method, made.seed) == ("eep", 0)
    assert made.settings["keep"] == 4
    assert [(d.name, d.split, d.count) for d in made.data] == [
        ("colours", "search", 15),
        ("colours", "selection", 15),
    ]
    task = get_task(str(task_file))
    splits = [{i.key for i in load_items(task, s)} for s in ("search", "selection", "test")]
    assert [len(keys) for keys in splits] == [15, 15, 30]
    assert len(set.union(*splits)) == 60  # nothing that decides is measured on


def test_the_same_seed_gives_the_same_map_byte_by_byte(
    engine: TransformersEngine,
    model: Path,
    task_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    outs = [tmp_path / name for name in ("one", "two", "other")]
    results = [
        run(engine, model, task_file, out, seed=seed)
        for out, seed in zip(outs, (0, 0, 1), strict=True)
    ]
    assert results[0].map_digest == results[1].map_digest
    assert (outs[0] / MAP_FILE).read_bytes() == (outs[1] / MAP_FILE).read_bytes()
    assert keys_of(outs[0]) == keys_of(outs[1])
    assert keys_of(outs[0]) != keys_of(outs[2])


def test_frequency_keeps_the_experts_that_its_usage_shows(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    result = run(engine, model, task_file, tmp_path / "out", method="frequency", random_maps=0)
    space = Space.of(MoeShape.of(Checkpoint.open(model)), 4)
    usage = {layer.layer: layer.usage for layer in result.layers}
    kept = {layer.layer: layer.kept for layer in result.layers}
    assert kept == most_used(space, usage)
    assert len({sum(counts) for counts in usage.values()}) == 1  # tokens x top-k in each layer
    assert [q.variant for q in result.quality] == ["base", "frequency"]
    assert result.search == ()


class Mortal:
    """An engine that dies after some evaluations."""

    def __init__(self, engine: TransformersEngine, lives: int) -> None:
        self._engine, self.lives, self.evaluations = engine, lives, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def evaluate(self, *arguments: Any, **options: Any) -> TaskResult:
        if self.evaluations == self.lives:
            raise KeyboardInterrupt
        self.evaluations += 1
        return self._engine.evaluate(*arguments, **options)


@pytest.mark.parametrize("lives", [3, 14])
def test_an_interrupted_run_continues_where_it_was(
    lives: int, engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    whole = run(engine, model, task_file, tmp_path / "whole")
    out: Any = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Mortal(engine, lives), model, task_file, out)
    assert not out.exists()
    assert len(log_of(out)) == lives
    second = Mortal(engine, 10**6)
    assert run(second, model, task_file, out).map_digest == whole.map_digest
    assert second.evaluations == len(log_of(out)) - lives
    assert keys_of(out) == keys_of(tmp_path / "whole")


def test_a_run_with_other_settings_does_not_take_up_the_log_of_another(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Mortal(engine, 2), model, task_file, out)
    with pytest.raises(PruneError, match=r"out\.run holds a run with other settings"):
        run(engine, model, task_file, out, seed=1)
    assert len(log_of(out)) == 2


def test_kill_9_during_the_search_and_the_same_command_continues(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = SETTINGS | {"evaluations": 40, "model": model, "task": task_file, "out": out}
    arguments = arguments_of(settings)
    _killed_when_the_log_has(3, arguments, out)
    before = log_of(out)
    assert 3 <= len(before) < 40
    assert not out.exists()
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    whole = run(engine, model, task_file, tmp_path / "whole", evaluations=40)
    assert RunResult.load(out).map_digest == whole.map_digest
    after = log_of(out)
    assert after[: len(before)] == before
    assert keys_of(out) == keys_of(tmp_path / "whole")
    assert {"report.html", RESULT_FILE} <= {file.name for file in out.iterdir()}
    card = ModelCard.load(out / "README.md")  # drawn before the output had its name
    assert card.data.model_name == "out" and card.data.eval_results
    assert "## What was measured" in card.text


def arguments_of(settings: dict[str, Any]) -> list[str]:
    arguments = ["compress"]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments


def _killed_when_the_log_has(lines: int, arguments: list[str], out: Path) -> None:
    """Start `vmprune` in a process of its own and kill it in the middle of the search."""
    log = out.with_name(out.name + ".run") / "evaluations.jsonl"
    command = [sys.executable, "-c", "from offline.cli.main import main; main()", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        deadline = time.monotonic() + 240
        while not log.exists() or log.read_bytes().count(b"\n") < lines:
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
