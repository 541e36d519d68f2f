from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from loadtest.compare import CompareResult, compare_command
from loadtest.configurations import read_configurations
from loadtest.judgement import verdict
from loadtest.metrics import Quantiles, Summary
from loadtest.ratios import ratios
from loadtest.results import Lifetime, Settings, SideName, load_result
from loadtest.target import Target
from tests.loadtest.scripted import Script, scripted
from vllm_moe_prune.errors import PruneError

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
    slow = Script(first=0.2, gap=0.04, only="plain", key="secret")
    fast = Script(first=0.1, gap=0.02, only="plain", key="secret", first_modes=("plain",) * 6)
    fast.first_modes += ("503",)
    with scripted(slow) as base, scripted(fast) as candidate:
        out = tmp_path / "out"
        command = [sys.executable, "-m", "loadtest.compare", "--base", base.url]
        command += ["--candidate", candidate.url, "--users", "2", "--rounds", "1"]
        command += ["--requests", "6", "--natural-requests", "2", "--out", str(out), "--json"]
        command += ["--seed", "0", "--max-tokens", "9", "--client-lag-ms", "0"]
        command += ["--records", "parquet"]
        done = subprocess.run(
            [*command, "--api-key-env", "MY_KEY"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=100,
            env={**os.environ, "MY_KEY": "secret"},
        )
    # One of the candidate's requests was refused: a row, a verdict and the exit status.
    assert done.returncode == 1
    assert "FAILED: candidate, round 1, 2 users: 1 of 6 requests failed: HTTP 503" in done.stderr
    result = load_result(out / "compare.json")
    assert CompareResult.model_validate_json(done.stdout) == result
    assert result.failed("candidate", 2) == (1, 6) and result.failed("base", 2) == (0, 6)
    page = (out / "compare.md").read_text()
    assert "| FAILED requests | 2 | 0 of 6 | 1 of 6 |" in page
    ttft, tpot = result.ratio("ttft_ms_p50", 2), result.ratio("tpot_ms_p50", 2)
    assert ttft and tpot
    assert 0.4 < ttft.median < 0.75 and 0.4 < tpot.median < 0.75
    for ratio in (ttft, tpot):
        assert ratio.low is not None and ratio.high is not None
        assert ratio.low <= ratio.median <= ratio.high
    lengths = result.ratio("output_tokens_mean", 2)
    assert lengths and lengths.median == 1
    assert result.ratio("peak_bytes") is None  # these servers are not ours
    # What is needed to do it again.
    assert result.settings.seed == 0 and result.machine["cores"] and result.versions["locust"]
    natural = [body for body in base.bodies if "ignore_eos" not in body]
    assert len(natural) == 2
    # Both say the same; the base was not asked twice in one round.
    assert "| natural answers: the base's word for word |  | - | 2 of 2 |" in page
    assert result.answers[1].alike == 1
    assert (out / "rounds" / "1-base" / "users-2.parquet").exists()
    # Both sides were asked the same things (users of one server race, so order is left out).
    asked = [sorted(json.dumps(b["messages"]) for b in side.bodies) for side in (base, candidate)]
    assert asked[0] == asked[1]
    assert (
        "natural answer length" in page
        and "<title>Serving compared</title>" in ((out / "loadtest.html").read_text()[:400])
    )
    written = [file.read_bytes() for file in out.rglob("*") if file.is_file()]
    assert not any(b"secret" in text for text in written)
    assert not list(out.glob("*.tmp"))


def test_a_server_that_hangs_ends_the_comparison_in_one_line(tmp_path: Path) -> None:
    with scripted(Script(only="hangs")) as server:
        arguments = ["--base", server.url, "--candidate", server.url, "--request-timeout", "1s"]
        began = time.monotonic()
        done = CliRunner().invoke(compare_command, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and time.monotonic() - began < 20
    assert "answered none of 1 requests: no answer after 1 s" in done.output
    assert not (tmp_path / "out" / "compare.json").exists()


@pytest.mark.slow
def test_a_server_that_is_killed_ends_the_comparison_with_a_verdict(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with scripted(Script(first=0.05, gap=0.01, only="plain")) as other:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.loadtest.scripted", "--gap", "0.1", "--only", "plain"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        command = [sys.executable, "-m", "loadtest.compare", "--base", other.url]
        command += ["--candidate", url, "--users", "2,3", "--rounds", "2", "--out", str(out)]
        child = subprocess.Popen(
            [*command, "--requests", "12", "--max-tokens", "16"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        records = out / "rounds" / "1-candidate" / "users-2.jsonl"
        while not records.exists() or not records.read_text():
            time.sleep(0.05)
            assert child.poll() is None
        server.kill()
        server.wait()
        _, said = child.communicate(timeout=200)
    assert child.returncode == 1
    assert "FAILED: candidate, round 1, 2 users: " in said and "Traceback" not in said
    assert "FAILED: candidate, round 1: the server was gone in the end" in said
    assert "the server answers no more: the comparison ends here" in said
    result = load_result(out / "compare.json")
    failed, total = result.failed("candidate", 2)
    assert failed > 5 and total == 12 and result.failed("candidate", 3) == (0, 0)
    assert result.ratio("ttft_ms_p50", 2) is not None and len(result.lifetimes) == 2
    assert (out / "loadtest.html").exists()


def test_a_ratio_of_several_candidates_has_the_name_of_each() -> None:
    lives = [life("base", 0, 100), life("top-1", 0, 170), life("plain", 0, 150)]
    speeds = [r for r in ratios(lives) if r.metric == "output_tokens_per_second"]
    assert {r.candidate: r.median for r in speeds} == {"top-1": 1.7, "plain": 1.5}


def test_requests_that_did_not_end_are_a_verdict() -> None:
    settings = Settings(users=(8,), requests=4)
    short = point(8, 5, None).model_copy(update={"requests": 3})
    lives = [life("base", 0, 100).model_copy(update={"points": (short,)})]
    assert list(verdict(settings, lives)) == [
        "base, round 1, 8 users: 0 requests were cut, 3 of 4 ended"
    ]


def test_configurations_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sides.yaml"
    file.write_text(
        "- {name: base, model: http://a:1}\n"
        "- {name: top-1, model: b, load_format: pruned_moe, serve_args: [--seed, '0']}\n"
    )
    found = read_configurations(file)
    assert list(found) == ["base", "top-1"]
    assert found["top-1"] == Target("b", "pruned_moe", arguments=("--seed", "0"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: base, model: a}", "two configurations or more"),
        ("- {name: a, model: a}\n- {name: b, model: b}", "the first configuration is called base"),
        ("- {name: base}\n- {name: b, model: b}", "model: Field required"),
        ("[", "is not YAML"),
    ],
)
def test_a_wrong_file_of_configurations_is_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "sides.yaml"
    file.write_text(text)
    with pytest.raises(PruneError, match=message) as caught:
        read_configurations(file)
    assert "\n" not in str(caught.value)


def test_an_older_comparison_loads_and_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "compare.json"
    latency = {"p50": 1.0, "p95": 2.0}
    summary = {
        **{"users": 8, "seconds": 1.0, "requests": 1, "errors": 0, "cut": 0},
        **{"output_tokens_per_second": 5.0, "requests_per_second": 1.0, "output_tokens_mean": 5.0},
        **{"ttft_ms": latency, "itl_ms": None, "e2e_ms": latency, "first_error": None},
    }
    side = {
        **{"side": "base", "round": 0, "model": "m", "version": None, "startup_seconds": None},
        **{"peak_bytes": None, "natural_output_tokens": None, "points": [summary]},
    }
    ratio = {"metric": "ttft_ms_p50", "users": 8, "per_round": [1.0], "median": 1.0}
    old = {
        **{"schema_version": 1, "base": "a", "candidate": "b", "created": "then"},
        "settings": {"users": [8], "rounds": 2, "duration": 20.0, "requests": None},
        **{"server_arguments": ["--seed"], "lifetimes": [side, {**side, "side": "candidate"}]},
        "ratios": [{**ratio, "higher_is_better": False}],
    }
    file.write_text(json.dumps(old))
    found = load_result(file)
    assert found.ratio("ttft_ms_p50", 8) and found.candidates == ("candidate",)
    file.write_text('{"schema_version": 7}')
    with pytest.raises(PruneError, match="is no comparison: schema_version") as caught:
        load_result(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "./absent", "--candidate", "org/name"], "no model folder ./absent"),
        (["--base", "org/a", "--candidate", "org/b"], "no folder org/a here and no model of that"),
        (["--base", "http://127.0.0.1:9", "--candidate", "org/n"], "no OpenAI-compatible server"),
        (["--base", "org/a", "--candidate", "org/b", "--users", "0"], "1 or more"),
        (["--base", "org/a", "--candidate", "org/b", "--users", "8,8"], "given twice"),
        (
            ["--base", "org/a", "--candidate", "http://127.0.0.1:9", "--kv-cache-memory", "1GiB"],
            "the memory of http://127.0.0.1:9 was set when it was started",
        ),
        (
            ["--base", "a", "--candidate", "b", "--kv-cache-memory", "1G", "--memory-share", "0.5"],
            "are two comparisons",
        ),
        (
            ["--base", "org/a", "--candidate", "org/b", "--workload", "no.jsonl"],
            "no.jsonl is missing",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_1(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(compare_command, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert message in done.output and done.output.strip().count("\n") == 0
    assert not (tmp_path / "out" / "compare.json").exists()
