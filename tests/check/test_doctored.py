"""`vmprune check --probes` on real models in real vLLM: what their weights do is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.check.deployed import folder_of
from offline.results.check import AnswerCheck, Measure
from offline.results.intervals import wilson
from tests.check.doctored import BROKEN, HEALTHY, make_speaking_mixtral, write_prompts
from tests.command import invoke

COUNT = 20
# The flags that it will be served with.
ARGS = ("--max-model-len", "1024", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@pytest.mark.vllm
@pytest.mark.slow
def test_loops_open_thinking_and_wrong_calls_of_real_weights_are_found(tmp_path: Path) -> None:
    base = make_speaking_mixtral(tmp_path / "base", HEALTHY)
    pruned = make_speaking_mixtral(tmp_path / "pruned", BROKEN)
    again = make_speaking_mixtral(tmp_path / "again", HEALTHY)
    prompts = write_prompts(tmp_path / "prompts.jsonl", COUNT)
    ask = ["--base", str(base), "--prompts", str(prompts), "--no-parity", "--eager", "--json"]
    ask += ["--tokens", "512", "--dtype", "float32", "--sampling", "greedy", "--sampling", "own"]
    ask += ["--", *ARGS]
    done = invoke("check", str(pruned), *ask)
    result = AnswerCheck.model_validate(json.loads(done.stdout)["answers"])
    expected: dict[tuple[Measure, str], int] = {
        ("loops", "chats"): COUNT,
        ("unfinished", "chats"): COUNT,
        ("thinking_open", "thinking"): COUNT,
        ("empty_while_thinking", "thinking"): 0,  # nothing takes thinking out of the answer
        ("tool_call_unparsed", "tools"): COUNT,
        ("no_tool_call", "tools"): 0,
        ("loops", "thinking"): 0,
        ("loops", "tools"): 0,
    }
    for way in ("greedy", "own"):
        for (measure, kind), count in expected.items():
            row = result.row(measure, kind, way)
            if row is None:
                assert measure == "empty_while_thinking"
                continue
            assert row.base is not None and (row.base.count, row.pruned.count) == (0, count), row
            assert (row.pruned.low, row.pruned.high) == wilson(count / COUNT, COUNT)
            assert (row.finding == "more") == (count > 0)
    assert (done.exit_code, result.verdict, result.unit) == (1, "worse", "tokens")
    assert "--enforce-eager" in result.pruned.arguments
    assert set(ARGS) <= set(result.pruned.arguments) & set(result.base.arguments)  # type: ignore[union-attr]
    assert AnswerCheck.load(pruned) == AnswerCheck.load(folder_of(pruned)) == result

    logs = [folder_of(pruned) / f"{side}.log" for side in ("base", "pruned")]
    before = [log.stat().st_mtime_ns for log in logs]
    same = json.loads(invoke("check", str(pruned), *ask).stdout)["answers"]
    assert same["rows"] == json.loads(done.stdout)["answers"]["rows"]
    assert [log.stat().st_mtime_ns for log in logs] == before  # no server was started

    # The same weights, served as vLLM does by default: compiled.
    healthy = invoke("check", str(again), *[word for word in ask if word != "--eager"])
    facts = json.loads(healthy.stdout)["answers"]
    assert (healthy.exit_code, facts["verdict"]) == (0, "undecided")
    assert all(row["pruned"]["count"] == 0 for row in facts["rows"])
    for side in ("base", "pruned"):
        assert "--enforce-eager" not in facts[side]["arguments"]
        log = (folder_of(again) / f"{side}.log").read_text()
        assert "enforce_eager=False" in log and "for the compilation" in log
