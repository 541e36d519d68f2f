from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from loadtest.compare import CompareResult, compare_command
from loadtest.metrics import Quantiles, Summary
from loadtest.results import Lifetime, SideName, ratios
from loadtest.rounds import ServerFlags, Target
from tests.loadtest.fake_openai import Behaviour, fake_openai

ROOT = Path(__file__).parents[2]


def point(users: int, speed: float, ttft: float | None) -> Summary:
    latency = None if ttft is None else Quantiles(p50=ttft, p95=2 * ttft)
    return Summary(
        users=users,
        seconds=1,
        requests=1,
        errors=0,
        cut=0,
        output_tokens_per_second=speed,
        requests_per_second=1,
        output_tokens_mean=5,
        ttft_ms=latency,
        itl_ms=None,
        e2e_ms=latency,
    )


def life(side: SideName, number: int, speed: float, ttft: float | None = 10) -> Lifetime:
    return Lifetime(
        side=side,
        round=number,
        model="m",
        version=None,
        startup_seconds=None,
        peak_bytes=100 if side == "base" else 60,
        natural_output_tokens=None,
        points=(point(8, speed, ttft),),
    )


def test_ratios_are_made_within_a_round_and_their_median_taken() -> None:
    # The machine is half as fast in the second round and slower still in the third.
    lives = [life("base", 0, 100), life("candidate", 0, 170), life("base", 1, 50)]
    lives += [life("candidate", 1, 90), life("base", 2, 20), life("candidate", 2, 40)]
    speed = next(r for r in ratios(lives) if r.metric == "output_tokens_per_second")
    assert speed.per_round == pytest.approx((1.7, 1.8, 2.0))
    assert speed.median == pytest.approx(1.8)
    assert speed.higher_is_better
    memory = next(r for r in ratios(lives) if r.metric == "peak_bytes")
    assert memory.median == pytest.approx(0.6) and memory.users is None


def test_what_one_side_lacks_has_no_ratio() -> None:
    found = {r.metric for r in ratios([life("base", 0, 0), life("candidate", 0, 5, ttft=None)])}
    assert found == {"output_tokens_mean", "peak_bytes"}


def test_compare_of_two_running_servers(tmp_path: Path) -> None:
    slow, fast = Behaviour(first=0.2, gap=0.04), Behaviour(first=0.1, gap=0.02)
    with fake_openai(slow) as base, fake_openai(fast) as candidate:
        out = tmp_path / "out"
        command = [sys.executable, "-m", "loadtest.compare", "--base", base.url]
        command += ["--candidate", candidate.url, "--users", "2", "--rounds", "1"]
        command += ["--requests", "4", "--natural-requests", "2", "--out", str(out), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr
    result = CompareResult.model_validate_json((out / "compare.json").read_text())
    assert CompareResult.model_validate_json(done.stdout) == result
    assert CompareResult.model_validate_json(result.model_dump_json()) == result
    ttft, itl = result.ratio("ttft_ms_p50", 2), result.ratio("itl_ms_p50", 2)
    speed = result.ratio("output_tokens_per_second", 2)
    assert ttft and itl and speed
    assert 0.4 < ttft.median < 0.75 and 0.4 < itl.median < 0.75
    assert 1.4 < speed.median < 2.2
    assert result.errors == 0
    assert result.ratio("peak_bytes") is None  # these servers are not ours
    natural = [body for body in slow.bodies if "ignore_eos" not in body]
    assert len(natural) == 2
    # Both sides were asked the same things (users of one server race, so order is left out).
    asked = [sorted(json.dumps(b["messages"]) for b in side.bodies) for side in (slow, fast)]
    assert asked[0] == asked[1]
    page = (out / "compare.md").read_text()
    assert "| output tokens/s | 2 |" in page and "natural answer length" in page
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "./absent", "--candidate", "org/name"], "no model folder ./absent"),
        (["--base", "org/a", "--candidate", "org/b"], "no folder org/a here and no model of that"),
        (["--base", "http://127.0.0.1:9", "--candidate", "org/n"], "no OpenAI-compatible server"),
        (["--base", "org/a", "--candidate", "org/b", "--users", "0"], "1 or more"),
        (["--base", "org/a", "--candidate", "org/b", "--users", "8,8"], "given twice"),
        (["--base", "org/a", "--candidate", "org/b", "--workload", "no.jsonl"], "cannot read"),
    ],
)
def test_bad_input_is_one_line_and_status_1(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(compare_command, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert message in done.output and done.output.strip().count("\n") == 0
    assert not (tmp_path / "out" / "compare.json").exists()


def test_both_servers_get_the_same_flags() -> None:
    flags = ServerFlags(dtype="bfloat16", max_model_len=512, enforce_eager=True)
    sides = [Target("org/a"), Target("org/b", load_format="pruned_moe")]
    specs = [flags.spec(side).arguments(1) for side in sides]
    differing = [pair for pair in zip(*specs, strict=True) if pair[0] != pair[1]]
    assert differing == [("org/a", "org/b"), ("auto", "pruned_moe")]
    shown = " ".join(flags.shown())
    assert "--dtype bfloat16" in shown and "--no-enable-prefix-caching" in shown
