"""What the numbers of a recovery mean, and how page, report and terminal show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from offline.cli.main import cli
from offline.report.recovery_page import render
from offline.report.recovery_tables import recovery_table
from offline.results.recovery import Cell, Mode, Recovery, Subject, SubjectFinetune
from tests.report.page import Page
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.tuning import Tuning

HOSTILE = "</script><img src=x onerror='alert(2)'>"
DATA = (DataIdentity(name=HOSTILE, split="train", count=9, sha256="sha256:0"),)


def cell(
    subject: Subject, mode: Mode, task: str, accuracy: float, in_format: float | None = None
) -> Cell:
    return Cell(
        subject=subject, mode=mode, task=task, metric="acc", accuracy=accuracy,
        low=accuracy - 0.05, high=accuracy + 0.05, items=100, in_format=in_format,
    )  # fmt: skip


def recovery(*cells: Cell) -> Recovery:
    tuning = Tuning(
        trainable="lora", parameters=1000, steps=5, tokens=70, learning_rate=1e-4, data=DATA
    )
    trained = SubjectFinetune(
        subject="model", tuning=tuning, losses=(3.0, 1.5), seconds=61, peak_bytes=2**31,
        trained_bytes=4000,
    )  # fmt: skip
    return Recovery(
        model=f"model {HOSTILE}", base="base", out="out", summary="plain: 4 of 8", shots=5,
        lessons=9, left_out=2, cells=cells, trained=(trained,),
        provenance=Provenance.now("recover", data=DATA, settings={"steps": 5}),
    )  # fmt: skip


FULL = recovery(
    cell("base", "zero-shot", "one", 0.8),
    cell("model", "zero-shot", "one", 0.4),
    cell("base", "k-shot", "one", 0.9),
    cell("model", "k-shot", "one", 0.5),
    cell("base", "sft", "one", 0.95),
    cell("model", "sft", "one", 0.7),
    cell("model", "zero-shot", HOSTILE, 0.3, in_format=0.4),
    cell("model", "sft", HOSTILE, 0.6, in_format=1.0),
)


def test_the_share_won_back_is_of_the_zero_shot_drop() -> None:
    assert FULL.drop("one") == pytest.approx(0.4)
    assert FULL.won_back("one", "k-shot") == pytest.approx(0.25)
    assert FULL.won_back("one", "sft") == pytest.approx(0.75)
    assert FULL.won_back("one", "zero-shot") == 0
    assert FULL.won_back(HOSTILE, "sft") is None  # no base
    gained = recovery(
        *(cell(s, m, "one", a) for s, m, a in
          (("base", "zero-shot", 0.4), ("model", "zero-shot", 0.4), ("model", "sft", 0.9)))
    )  # fmt: skip
    assert gained.drop("one") == 0 and gained.won_back("one", "sft") is None


def test_the_table_puts_base_and_pruned_side_by_side() -> None:
    table = recovery_table(FULL)
    assert [row[:2] for row in table.rows][:3] == [
        ("one", "zero-shot"),
        ("one", "5-shot"),
        ("one", "sft"),
    ]
    row = dict(zip(table.head, table.rows[2], strict=True))
    assert row["against base, points"] == "-25.0" and row["won back"] == "75%"
    assert row["pruned in format"] == "-" and row["items"] == "100"
    alone = recovery_table(recovery(cell("model", "zero-shot", "one", 0.5)))
    assert alone.head == ("task", "mode", "pruned", "95% interval", "items")


def test_the_page_says_it_and_loads_nothing() -> None:
    page = Page(render(FULL))
    assert page.open == [] and page.loads == [] and page.named("img") == []
    assert "base 80.0%, pruned 40.0%, after the finetune 70.0%" in page.words
    assert "2 examples were left out" in page.words
    shown = page.table("Accuracy on held-out items; sft is zero-shot after the supervised finetune")
    tuned = shown.row("one", "sft")
    assert (tuned["base"], tuned["pruned"], tuned["won back"]) == ("95.0%", "70.0%", "75%")
    assert tuned["pruned in format"] == tuned["base in format"] == "-"
    assert shown.column("pruned in format") == ["-", "-", "-", "40.0%", "100.0%"]
    assert page.table("Supervised finetune").row("pruned") == {
        "": "pruned",
        "trained": "lora",
        "parameters": "1,000",
        "steps": "5",
        "tokens with a loss": "70",
        "loss, first tenth": "3.000",
        "last tenth": "1.500",
        "time": "1 min 1 s",
        "peak memory": "2.00 GiB",
    }
    bars = page.figures["recovery"]["data"]
    assert [bar["name"] for bar in bars] == ["base", "pruned"]
    assert len(bars[0]["y"]) == 3 and len(bars[1]["y"]) == 5


def test_a_recovery_without_tasks_has_a_page_too() -> None:
    page = Page(render(recovery()))
    assert page.open == [] and page.figures == {}


def test_report_draws_the_page_again(tmp_path: Path) -> None:
    FULL.save(tmp_path)
    assert Recovery.load(tmp_path) == FULL
    done = CliRunner().invoke(cli, ["report", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert (tmp_path / "report.html").read_text() == render(FULL)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("{}", r"recovery\.json: model: Field required"),
        (None, "has no recovery.json"),
    ],
)
def test_a_damaged_result_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "recovery.json").write_text(content)
    with pytest.raises(PruneError, match=said):
        Recovery.load(tmp_path)
