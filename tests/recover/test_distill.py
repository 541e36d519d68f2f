"""`vmprune recover --distill`: the base teaches what it expects, of text or of a task's items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.finetune.teaching import Teaching
from offline.recover import session
from offline.results.recovery import Recovery
from tests.command import invoke
from tests.finetune.samples import bytes_of
from tests.report.page import Page
from tests.sample_files import write_text
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.routing_map import RoutingMap

FLAGS = ("--steps", "4", "--learning-rate", "0.01", "--batch", "4", "--shots", "0")
WHERE = ("--test-items", "10", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    return write_text(tmp_path / "prose.txt")


def distil(pruned: Path, base: Path, out: Path, *more: str | Path) -> Recovery:
    words = ("recover", "--model", pruned, "--base", base, "--out", out, *FLAGS, *WHERE)
    done = invoke(*words, *more)
    assert done.exit_code == 0, done.output
    return Recovery.load(out)


def changed(before: Path, after: Path) -> set[str]:
    old, new = bytes_of(before), bytes_of(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


def test_gates_are_taught_by_any_text_and_the_base_is_not_trained(
    pruned: Path, base: Path, tasks: dict[str, Path], prose: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, folder = tmp_path / "out", tmp_path / "teacher"
    text = ("--distill", "router", "--data", f"prose={prose}:10", "--length", "24")
    words = (*text, "--measure", tasks["colours"], "--teacher", folder)
    found = distil(pruned, base, out, *words)
    gates = {name for name in Checkpoint.open(pruned).tensors if name.endswith("gate.weight")}
    assert changed(pruned, out) == gates
    modes = [(cell.subject, cell.mode) for cell in found.cells]
    assert sorted(modes) == [
        ("base", "zero-shot"), ("model", "distilled"), ("model", "zero-shot"),
    ]  # fmt: skip
    assert [done.subject for done in found.trained] == ["model"]
    told = RoutingMap.load(out).tuned[-1].data
    assert [(one.name, one.split, one.count) for one in told] == [
        ("prose", "", 10), (base.name, "next tokens", 10 * 23),
    ]  # fmt: skip
    page = Page((out / "report.html").read_text())
    assert page.open == [] and "The base taught, and was not trained" in page.words
    what = "distilled is zero-shot after the base's next tokens were learnt"
    shown = page.table(f"Accuracy on held-out items; {what}")
    assert shown.row("colours", "distilled")["base"] == "-"
    assert page.table("Distillation").row("pruned")["trained"] == "router"

    monkeypatch.setattr(Teaching, "_reader", None)  # the base cannot be asked again
    again = distil(pruned, base, tmp_path / "again", *text, "--teacher", folder)
    assert again.cells == () and not changed(out, tmp_path / "again")


def test_answers_of_tasks_are_taught_at_their_places(
    pruned: Path, base: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    found = distil(
        pruned, base, tmp_path / "out", "--distill", "router+experts", "--task", tasks["colours"]
    )
    assert any("experts" in name for name in changed(pruned, tmp_path / "out"))
    (done,) = found.trained
    assert [one.name for one in done.tuning.data] == ["colours", base.name]
    lessons, places = done.tuning.data
    assert places.count == 2 * lessons.count  # an answer of one word, and the end of text
    (kept,) = (tmp_path / "out.run" / "teacher").iterdir()
    assert (kept / "tokens.npy").is_file()


def test_a_killed_one_goes_on_without_asking_again(
    pruned: Path, base: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Ends a run as a signal would."""

    def stopping(*given: Any, **named: Any) -> Any:
        raise Killed

    words = ("--distill", "all", "--data", f"{prose}:6", "--length", "24", "--steps", "2")
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(session, "finetune", stopping)
        distil(pruned, base, out, *words)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Teaching, "_reader", None)
        distil(pruned, base, out, *words)
    distil(pruned, base, tmp_path / "whole", *words)
    assert not changed(out, tmp_path / "whole")
    assert changed(pruned, out) > {n for n in bytes_of(out) if "gate" in n or "experts" in n}
    distil(pruned, base, out, *words, "--seed", "1", "--force")  # over a run that kept a teacher
