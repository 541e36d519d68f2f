"""`vmprune sweep --engine vllm`, all of it: from scores by vLLM to a checkpoint of its choice."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from offline.results.sweep import SweepResult
from tests.command import invoke
from tests.sample_files import write_text
from tests.sweep.samples import KINDS, NAMES, flags_of
from vllm_moe_prune.checkpoint import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.vllm]


def test_a_sweep_in_vllm_from_scores_to_a_checkpoint(
    base: Path, task_file: Path, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "text.txt")
    read = ("--length", "16", "--calibration", f"{text}:8")
    where = ("--model", base, "--engine", "vllm", "--dtype", "float32")
    scored = invoke("score", *where, *read, "--out", tmp_path / "scores")
    assert scored.exit_code == 0, scored.output
    prose = tmp_path / "prose.jsonl"
    prose.write_text(
        "".join(json.dumps({"text": f"the cat sees {n} fish"}) + "\n" for n in range(9))
    )
    gates = tmp_path / "gates.yaml"
    gates.write_text(f"text: prose={prose}\naccuracy_drop: 1\nperplexity_ratio: 9\n")
    asked = (*where, "--scores", tmp_path / "scores", "--task", task_file, "--gate", gates)
    settings = {**KINDS, "speed_rounds": 8, "slack": 1}
    done = invoke("sweep", *asked, *flags_of(settings), "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    result = SweepResult.load(tmp_path / "out")
    assert {point.name for point in result.points} | set(result.skipped) == NAMES
    assert result.chosen is not None and result.chosen.speed is not None
    speed = result.chosen.speed
    assert speed.engine == "vllm" and speed.ratio.low is not None
    assert (
        speed.ratio.low
        <= speed.ratio.value
        == pytest.approx(speed.tokens_per_second / speed.base_tokens_per_second)
    )
    assert all(point.held_out is not None and point.text for point in result.points)
    built = invoke(*shlex.split(result.chosen.command)[1:-1], tmp_path / "built")
    assert built.exit_code == 0, built.output
    assert Checkpoint.open(tmp_path / "built").num_bytes == result.chosen.num_bytes
