"""`vmprune check --gate`, asking servers whose every answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.check.speaking import Speaker
from tests.command import invoke
from tests.engines.served import serving


@pytest.mark.parametrize(
    ("limits", "share", "code", "verdict"),
    [
        ("loops: 0.3\nlength: 2", 0.0, 0, "pass"),
        ("loops: 0.02", 1.0, 1, "fail"),
        ("loops: {rate: 1}", 1.0, 0, "pass"),  # worse than the base, and within what is allowed
        ("loops: 0.3\nagreement: 0.9", 0.0, 3, "undecided"),  # which no probe measures
    ],
)
def test_gates_decide_what_a_check_ends_with(
    limits: str, share: float, code: int, verdict: str, tmp_path: Path
) -> None:
    own, gates = tmp_path / "own.jsonl", tmp_path / "gates.yaml"
    lines = [{"kind": "prose", "prompt": f"Number {n} is"} for n in range(40)]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    gates.write_text(limits)
    words = ("--prompts", own, "--tokens", 400, "--sampling", "greedy", "--gate", gates)
    with serving(Speaker()) as base, serving(Speaker(faults={"loops": share})) as url:
        ask = ("check", tmp_path / "mine", "--endpoint", url, "--base-endpoint", base, *words)
        done = invoke(*map(str, ask))
        again = invoke(*map(str, ask), "--json")
    assert done.exit_code == again.exit_code == code, done.output
    assert f"gates: {verdict}" in done.stdout
    judged = json.loads(again.stdout.splitlines()[-1])
    assert {gate["measure"] for gate in judged["gates"]} == {
        line.partition(":")[0] for line in limits.splitlines()
    }
    assert not (tmp_path / "mine").exists()
