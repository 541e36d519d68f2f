"""The whole of recover on a tiny model: the table, the checkpoint, and life after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from offline.cli.main import cli
from offline.recover import session
from offline.recover.recipe import RecoverRecipe, training_of
from offline.recover.recover import recover
from offline.results.recovery import RECOVERY_FILE, Recovery
from tests.hub.server import Hub
from tests.report.page import Page
from tests.sample_runs import Listener
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import MAP_FILE, MATRIX_FILE, RoutingMap

FLAGS = ["--steps", "6", "--learning-rate", "0.01", "--shots", "2", "--test-items", "20"]
WHERE = ["--device", "cpu", "--dtype", "float32"]
VARYING = ("seconds", "peak_bytes")  # what another run of the same measures otherwise


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["recover", *map(str, arguments)], catch_exceptions=False)


def run(pruned: Path, tasks: Mapping[str, Path], out: Path, *more: str | Path) -> Result:
    names = ",".join(map(str, tasks.values()))
    return invoke("--model", pruned, "--task", names, "--out", out, *FLAGS, *WHERE, *more)


def again(pruned: Path, base: Path, tasks: Mapping[str, Path], out: Path) -> Recovery:
    """Make the same call as `run` with a base, in this process's reach."""
    recipe = RecoverRecipe.of(
        {"model": pruned, "base": base, "task": ",".join(map(str, tasks.values())), "steps": 6,
         "shots": 2, "test_items": 20, "device": "cpu", "dtype": "float32"}
    )  # fmt: skip
    training = training_of({"learning_rate": 0.01}, recipe.steps)
    return recover(recipe, training, out, reporter=Listener())


def without(value: Any, names: tuple[str, ...] = VARYING) -> Any:
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(v, names) for v in value] if isinstance(value, list) else value


def test_the_table_the_checkpoint_and_the_map(
    pruned: Path, base: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(pruned, tasks, out, "--base", base, "--json")
    result = Recovery.load(out)
    assert json.loads(done.stdout) == json.loads(result.to_json())

    cells = [(c.subject, c.mode, c.task) for c in result.cells]
    wanted = [
        (subject, mode, task)
        for task in tasks
        for mode in ("zero-shot", "k-shot", "sft")
        for subject in ("base", "model")
    ]
    assert sorted(cells) == sorted(wanted)
    assert all(c.low <= c.accuracy <= c.high and c.items == 20 for c in result.cells)
    for cell in result.cells:
        assert (cell.in_format is None) == (cell.task == "colours")
        assert cell.in_format is None or cell.in_format >= cell.accuracy
    assert [done.subject for done in result.trained] == ["base", "model"]
    assert all(done.tuning.steps == 6 and done.losses[1] < done.losses[0]
               for done in result.trained)  # fmt: skip

    before, after = RoutingMap.load(pruned), RoutingMap.load(out)
    assert after.tuned == (*before.tuned, result.trained[1].tuning)
    assert after.digest() == before.digest() and after.matrices.keys() == before.matrices.keys()
    assert all((after.matrices[name] == before.matrices[name]).all() for name in after.matrices)
    names = {data.name for data in after.tuned[-1].data}
    assert names == set(tasks)
    assert Checkpoint.open(out).tensors == Checkpoint.open(pruned).tensors
    changed = {
        name
        for name, values in load_file(out / "model.safetensors").items()
        if not np.array_equal(values, Checkpoint.open(pruned).tensor(name).numpy())
    }
    assert any("experts" in name for name in changed) and any("gate" in name for name in changed)

    assert not (out / "vmprune_result.json").exists()
    page = Page((out / "report.html").read_text())
    shown = page.table("Accuracy on held-out items; sft is zero-shot after the supervised finetune")
    rows = [(task, mode) for task in tasks for mode in ("zero-shot", "2-shot", "sft")]
    assert sorted(zip(shown.column("task"), shown.column("mode"), strict=True)) == sorted(rows)
    assert "won back" in shown.head
    kept = sorted(f.name for f in out.with_name("out.run").iterdir() if f.is_dir())
    assert kept == []  # neither the base's weights nor a second copy of the model's


def test_the_cells_are_what_eval_measures(
    pruned: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    out, task = tmp_path / "out", tasks["colours"]
    run(pruned, {"colours": task}, out)
    result = Recovery.load(out)
    assert result.base is None and {c.subject for c in result.cells} == {"model"}
    for model, mode, more in (
        (pruned, "zero-shot", ()),
        (pruned, "k-shot", ("--shots", "2")),
        (out, "sft", ()),
    ):
        words = ["eval", "--model", model, "--task", task, "--limit", "20", "--json", *more, *WHERE]
        found = json.loads(CliRunner().invoke(cli, [str(w) for w in words]).stdout)
        cell = result.cell("model", mode, "colours")  # type: ignore[arg-type]
        assert cell is not None
        assert (found["accuracy"], found["low"]) == (cell.accuracy, cell.low)


def test_learning_a_rule_shows_on_held_out_items(
    pruned: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = ("--learning-rate", "0.003", "--steps", "80", "--shots", "0")
    run(pruned, tasks, out, *more)
    result = Recovery.load(out)
    for task in tasks:
        before, after = (result.cell("model", mode, task) for mode in ("zero-shot", "sft"))
        assert before is not None and after is not None
        assert before.high < after.low, (before, after)


class Killed(BaseException):
    """Ends a run as a signal would: no handler of errors looks at it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Let the given call of a function of the session, counted from 0, end the run."""
    whole: Callable[..., Any] = getattr(session, name)
    calls = iter(range(1000))

    def stopping(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return whole(*arguments, **named)

    monkeypatch.setattr(session, name, stopping)


@pytest.fixture(scope="module")
def undisturbed(
    pruned: Path, base: Path, tasks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    again(pruned, base, tasks, out)
    return out


@pytest.mark.parametrize(
    ("name", "call", "left"),
    [  # of 12 numbers and 2 finetunes: the base's finetune and 6 numbers, then the model's
        pytest.param("finetune", 0, (12, 2), marks=pytest.mark.slow),
        pytest.param("measure", 2, (10, 1), marks=pytest.mark.slow),
        ("measure", 5, (7, 1)),
        pytest.param("finetune", 1, (6, 1), marks=pytest.mark.slow),
        ("measure", 11, (1, 0)),
    ],
)
def test_a_killed_run_continues_to_the_same_result(
    name: str,
    call: int,
    left: tuple[int, int],
    pruned: Path,
    base: Path,
    tasks: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Path,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, name, call)
        again(pruned, base, tasks, out)
    assert not out.exists()
    counts = {"measure": 0, "finetune": 0}
    for counted in counts:
        _count(monkeypatch, counted, counts)
    again(pruned, base, tasks, out)
    assert (counts["measure"], counts["finetune"]) == left

    found, wanted = (json.loads((o / RECOVERY_FILE).read_text()) for o in (out, undisturbed))
    assert without(found) == without(wanted)
    assert sorted(f.name for f in out.iterdir()) == sorted(f.name for f in undisturbed.iterdir())
    for file in ("model.safetensors", MAP_FILE, MATRIX_FILE):
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


def _count(monkeypatch: pytest.MonkeyPatch, name: str, counts: dict[str, int]) -> None:
    real: Callable[..., Any] = getattr(session, name)

    def counting(*arguments: Any, **named: Any) -> Any:
        counts[name] += 1
        return real(*arguments, **named)

    monkeypatch.setattr(session, name, counting)


def test_a_run_with_other_settings_is_not_continued(
    pruned: Path, tasks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, "finetune", 0)
        run(pruned, tasks, out)
    with pytest.raises(PruneError, match="holds a run with other settings"):
        run(pruned, tasks, out, "--learning-rate", "0.02")


def test_a_checkpoint_and_its_base_are_taken_from_the_hub(
    hub: Hub, pruned: Path, base: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    commits = (hub.publish("me/half", pruned), hub.publish("Org/Tiny", base))
    task = {"colours": tasks["colours"]}
    done = run(Path("me/half"), task, tmp_path / "out", "--base", "Org/Tiny", "--shots", "0")
    assert done.exit_code == 0, done.output
    told = Recovery.load(tmp_path / "out").provenance.settings
    assert (told["model"], told["base_model"]) == ("me/half", "Org/Tiny")
    assert (told["commit"], told["base_commit"]) == commits
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: tiny\ntags:\n- mixture-of-experts\n")
