"""A second opinion: what `vllm bench serve` says of the requests that locust sent."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from loadtest.compare import compare_command
from loadtest.judgement import verdict
from loadtest.metrics import Record, summarise
from loadtest.ratios import second_opinions
from loadtest.report import write_comparison
from loadtest.results import CompareResult, Lifetime, Settings, load_result
from loadtest.table import DISAGREE, markdown
from loadtest.vllm_bench import BenchResult, check, read_bench, write_data_set
from tests.loadtest.scripted import Script, scripted
from vllm_moe_prune.errors import PruneError

# Written by vLLM 0.32's `vllm bench serve`: six requests, two at a time, to the scripted server.
RECORDED = Path(__file__).with_name("vllm_bench.json")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked beforehand does not need vLLM itself."""
    monkeypatch.setattr("loadtest.vllm_bench.find_spec", lambda _: object())


def test_its_numbers_are_those_that_it_printed() -> None:
    said = json.loads(RECORDED.read_text())
    point = read_bench(RECORDED).summary("chat", 2)
    assert (point.requests, point.errors, point.users) == (6, 0, 2) and said["completed"] == 6
    assert point.output_tokens == said["total_output_tokens"]
    assert point.output_tokens_per_second == said["output_throughput"]
    for name, theirs in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        found = getattr(point, f"{name}_ms")
        expected = [said[f"p{percent}_{theirs}_ms"] for percent in (50, 95, 99)]
        assert [found.p50, found.p95, found.p99] == pytest.approx(expected)


def test_failed_requests_are_counted_and_a_verdict() -> None:
    fields = json.loads(RECORDED.read_text())
    told = ["Traceback (most recent call last):\n  ...\nTimeoutError: gone\n", *[""] * 5]
    fields |= {"errors": told, "ttfts": [0.1, 0.0, *fields["ttfts"][2:]]}  # a refusal, the second
    point = BenchResult.model_validate(fields).summary("chat", 2)
    assert (point.requests, point.errors, point.first_error) == (4, 2, "TimeoutError: gone")
    life = _life("base", 0, [], point)
    assert list(verdict(Settings(users=(2,)), [life])) == [
        "base, round 1, 2 users: vllm bench serve: 2 of 6 requests failed: TimeoutError: gone"
    ]


def test_a_result_of_another_form_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    fields = json.loads(RECORDED.read_text())
    for wrong in ({"ttfts": []}, {"itls": [0.1]}, {"duration": "long"}):
        file.write_text(json.dumps({**fields, **wrong}))
        with pytest.raises(PruneError, match=r"result\.json") as caught:
            read_bench(file)
        assert "\n" not in str(caught.value)


def _life(side: str, number: int, ours: list[Record], theirs: object) -> Lifetime:
    fields = {"side": side, "round": number, "model": "m", "version": None, "peak_bytes": None}
    fields |= {"startup_seconds": None, "natural_output_tokens": None, "second": (theirs,)}
    points = (summarise(ours, 2),) if ours else ()
    return Lifetime.model_validate({**fields, "points": points})


def _slower(records: list[Record], factor: float) -> list[Record]:
    """The same requests, every time a little off and all of them longer by a factor."""
    rng = np.random.default_rng(0)
    found = []
    for record in records:
        scale = factor * rng.uniform(0.99, 1.01)
        arrivals = tuple(scale * at for at in record.arrivals)
        found.append(
            record.model_copy(update={"arrivals": arrivals, "ended": scale * record.ended})
        )
    return found


def test_where_they_disagree_by_more_than_their_intervals_the_page_says_so(tmp_path: Path) -> None:
    bench = read_bench(RECORDED)
    theirs, point = bench.records("chat"), bench.summary("chat", 2)
    # Locust saw the base as vllm bench did, and the candidate at half its speed.
    ours = {"base": _slower(theirs, 1.0), "candidate": _slower(theirs, 2.0)}
    lives = [_life(side, number, ours[side], point) for side in ours for number in range(2)]
    found = second_opinions(lives, lambda life, _: ours[life.side], lambda *_: theirs)
    assert {(r.candidate, r.users) for r in found} == {("base", 2), ("candidate", 2)}
    result = CompareResult(
        **{"base": "a", "candidate": "b", "server_arguments": (), "created": "now", "ratios": ()},
        settings=Settings(users=(2,), rounds=2, engine="vllm-bench"),
        lifetimes=tuple(lives),
        second=found,
    )
    (tmp_path / "compare.json").write_text(result.model_dump_json())
    assert load_result(tmp_path / "compare.json") == result
    drawn = write_comparison(tmp_path).read_text()
    for page in (markdown(result), drawn):
        line = next(row for row in page.splitlines() if "disagree by more than" in row)
        assert "time to first token, p50, ms (candidate, 2 users)" in line
        assert "(base, 2 users)" not in line
    apart = [row for row in markdown(result).splitlines() if f"| {DISAGREE}" in row]
    # Everything but the length of answers, and nothing of the base.
    assert len(apart) == 9 and all("| 2 | candidate |" in row for row in apart)
    assert f'<tr class="bad"><td>{DISAGREE}end-to-end latency, p95, ms</td>' in drawn


def test_without_a_count_of_tokens_only_times_are_compared() -> None:
    bench = read_bench(RECORDED)
    ours = [r.model_copy(update={"output_tokens": None}) for r in bench.records("chat")]
    lives = [_life("base", 0, ours, bench.summary("chat", 2))]
    found = second_opinions(lives, lambda *_: ours, lambda *_: bench.records("chat"))
    assert {r.metric[:4] for r in found} == {"ttft", "itl_", "e2e_"}


@pytest.mark.usefixtures("installed")
def test_the_data_set_is_what_locust_sends(tmp_path: Path) -> None:
    work = tmp_path / "work.jsonl"
    work.write_text('{"prompt": "wörd\\u2028"}\n{"conversation": ["b"], "max_tokens": 3}\n')
    settings = Settings(workload=str(work), max_tokens=5, seed=4)
    check(settings)
    write_data_set(tmp_path / "set.jsonl", 3, settings)
    rows = [json.loads(line) for line in (tmp_path / "set.jsonl").read_text().split("\n") if line]
    assert len(rows) == 3
    assert {(r["prompt"], r["output_tokens"]) for r in rows} == {("wörd\u2028", 5), ("b", 3)}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("workload", "extra", "message"),
    [
        ("prompts: [{conversation: [a, b]}]", (), "conversations of several turns, which vllm"),
        ("prompts: [a]\ncancel: {share: 0.1, after: [1, 2]}", (), "users who go away"),
        (
            "prompts: [a]\nload: {arrivals: poisson, stages: [{seconds: 1, rate: 2}]}",
            (),
            "has a load of its own",
        ),
        ("prompts: [a]", ("--duration", "5s"), "not by the clock (hint: give --requests"),
    ],
)
def test_what_it_cannot_do_is_refused_at_the_start(
    tmp_path: Path, workload: str, extra: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "work.yaml"
    file.write_text(workload)
    # Nobody answers at these addresses: they are not asked before.
    command = ["--base", "http://127.0.0.1:9", "--candidate", "http://127.0.0.1:9", *extra]
    command += ["--engine", "vllm-bench", "--workload", str(file), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(compare_command, command)
    assert done.exit_code == 1 and message in done.output, done.output
    assert done.output.strip().count("\n") == 0


def test_without_vllm_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("loadtest.vllm_bench.find_spec", lambda _: None)
    command = ["--base", "http://a", "--candidate", "http://b", "--engine", "vllm-bench"]
    done = CliRunner().invoke(compare_command, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and done.output.strip().count("\n") == 0
    assert "is to give a second opinion, is not installed (hint: leave --engine out" in done.output


@pytest.mark.slow
@pytest.mark.vllm
def test_both_engines_measure_servers_whose_every_token_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    monkeypatch.setenv("MY_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    slow = Script(first=0.4, gap=0.08, only="no role", key="secret")
    fast = Script(first=0.2, gap=0.04, only="plain", key="secret")
    out = tmp_path / "out"
    with scripted(slow) as base, scripted(fast, str(certificate)) as candidate:
        command = ["--base", f"{base.url}/v1", "--candidate", candidate.url, "--users", "2"]
        command += ["--rounds", "1", "--requests", "6", "--natural-requests", "0", "--json"]
        command += ["--max-tokens", "9", "--client-lag-ms", "0", "--api-key-env", "MY_KEY"]
        command += ["--engine", "vllm-bench", "--ca", str(certificate), "--out", str(out)]
        done = CliRunner().invoke(compare_command, command)
    assert done.exit_code == 0, done.output
    result = load_result(out / "compare.json")
    # The same prompts with the same bounds, from both; the last six are those of vllm bench.
    theirs = [body for body in base.bodies if "max_completion_tokens" in body][-6:]
    ours = [body for body in base.bodies if body.get("max_tokens", 0) > 8][-6:]
    words = ["\n\n".join(said["content"] for said in b["messages"]) for b in ours]
    assert sorted(zip(words, (b["max_tokens"] for b in ours), strict=True)) == sorted(
        (b["messages"][0]["content"][0]["text"], b["max_completion_tokens"]) for b in theirs
    )
    for field in ("ignore_eos", "temperature", "seed", "model", "stream_options"):
        assert {repr(b[field]) for b in theirs} == {repr(b[field]) for b in ours}
    ratios = {(r.candidate, r.metric): r.median for r in result.second}
    for metric in ("ttft_ms_p50", "tpot_ms_p50", "itl_ms_p50", "e2e_ms_p50"):
        assert 0.85 < ratios["base", metric] < 1.15
    assert ratios["base", "output_tokens_mean"] == ratios["candidate", "output_tokens_mean"] == 1
    # It takes a chunk that only names the role for the first token, and this server sends one.
    assert ratios["candidate", "ttft_ms_p50"] < 0.2
    page = (out / "loadtest.html").read_text()
    assert f"<td>{DISAGREE}prefill: time to first token, p50, ms</td><td>2</td><td>candid" in page
    written = [file.read_text() for file in out.rglob("*") if file.is_file()]
    assert not any("secret" in text for text in written)
