"""`vmprune check --probes`, asking servers whose every answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline.check.answer_log import LOG_FILE
from offline.check.asking import Asked
from offline.check.built_in import built_in
from offline.check.deployed import check_answers, folder_of
from offline.check.served import Target, as_deployed
from offline.cli.progress import Silence
from offline.engines.server import Endpoint
from offline.results.check import TOLD_ONLY, AnswerCheck, Measure
from offline.results.intervals import wilson
from serve.server import ServerSpec
from tests.check.speaking import Fault, Speaker
from tests.command import invoke, one_error, run
from tests.engines.served import serving
from vllm_moe_prune.errors import PruneError

ASKED = Asked(built_in(100), ("greedy",), 512)


def checked(
    out: Path, base: Speaker, pruned: Speaker, asked: Asked = ASKED, **more: Any
) -> AnswerCheck:
    with serving(base) as base_url, serving(pruned) as url:
        # The name of an address is not the same twice: a run that continues has the old ones.
        base_url, url = more.pop("urls", (base_url, url))
        targets = (Target("base", "base", url=base_url), Target("pruned", "pruned", url=url))
        return check_answers(out, targets, asked, reporter=Silence(), **more)


FOUND: dict[Fault, tuple[Measure, str]] = {
    "loops": ("loops", "prose"),
    "thinks on": ("thinking_open", "thinking"),
    "wrong call": ("tool_call_unparsed", "tools"),
    "wrong code": ("code_unparsed", "code"),
    "silence": ("empty", "chats"),
    "unparsed thinking": ("empty_while_thinking", "thinking"),
}


@pytest.mark.parametrize(
    "faults",
    [("loops", "thinks on", "wrong call", "wrong code"), ("silence", "unparsed thinking")],
)
def test_what_goes_wrong_is_found_with_its_rate_and_interval(
    faults: tuple[Fault, ...], tmp_path: Path
) -> None:
    pruned = Speaker(faults=dict.fromkeys(faults, 0.7))
    result = checked(tmp_path / "out", Speaker(), pruned)
    for fault in faults:
        measure, kind = FOUND[fault]
        row = result.row(measure, kind)
        assert row is not None and row.base is not None and row.difference is not None
        wrong = {p.digest for p in ASKED.probes if asked_of(p) in pruned.wrongs[fault]}
        true = len({p.digest for p in ASKED.probes if p.kind == kind} & wrong)
        assert (row.pruned.count, row.pruned.n, row.base.count) == (true, 20, 0)
        assert (row.pruned.low, row.pruned.high) == wilson(true / 20, 20)
        assert row.difference.low > 0
        assert row.finding == ("undecided" if measure in TOLD_ONLY else "more")
        assert len(row.examples) == 3 and set(row.examples) <= wrong
    expected = {FOUND[fault][0] for fault in faults} | {"unfinished", "thinking_open"}
    assert {r.measure for r in result.rows if r.finding == "more"} <= expected
    assert result.verdict == "worse"


def asked_of(probe: Any) -> str:
    body = probe.body[1]
    return json.dumps(body.get("messages") or body["prompt"])


def test_a_healthy_model_is_undecided_and_says_what_it_would_take(tmp_path: Path) -> None:
    result = checked(tmp_path / "out", Speaker(), Speaker(seed=1))
    assert result.verdict == "undecided"
    row = result.row("loops")
    assert row is not None and row.probes_needed is not None and row.probes_needed > 1000
    assert AnswerCheck.load(folder_of(tmp_path / "out")) == result
    assert result.row("code_unparsed") == result.row("code_unparsed", "code")


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    out, asked = tmp_path / "out", Asked(ASKED.probes[:20], ("greedy", "own"), 64)
    base, broken = Speaker(), Speaker(fails_after=15)
    with serving(base) as base_url, serving(broken) as url:
        targets = (Target("base", "b", url=base_url), Target("pruned", "p", url=url))
        with pytest.raises(PruneError, match="status 500: out of memory"):
            check_answers(out, targets, asked, reporter=Silence())
        log = folder_of(out) / LOG_FILE
        lines = log.read_text().splitlines()
        kept = len([line for line in lines if json.loads(line)["side"] == "pruned"])
        assert (len(base.asked), kept) == (40, 15)
        log.write_text("\n".join(lines) + '\n{"side":"pruned","pro')  # as a kill leaves it
        broken.fails_after = None
        before = len(broken.asked)
        result = check_answers(out, targets, asked, reporter=Silence())
        assert (len(base.asked), len(broken.asked) - before) == (40, 25)
        more = Asked(ASKED.probes[:25], ("greedy",), 64)
        check_answers(out, targets, more, reporter=Silence())
        assert len(base.asked) == 45
        whole = check_answers(tmp_path / "fresh", targets, asked, reporter=Silence())
        assert (whole.rows, whole.lengths) == (result.rows, result.lengths)
        with pytest.raises(PruneError, match=r"another base .*add --force to ask anew"):
            check_answers(out, targets[1:], more, reporter=Silence())
        check_answers(out, targets[1:], more, force=True, reporter=Silence())
        assert {json.loads(line)["side"] for line in log.read_text().splitlines()} == {"pruned"}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    checked(tmp_path / "out", Speaker(), Speaker(), Asked(ASKED.probes[:5], ("greedy",), 64))
    log = folder_of(tmp_path / "out") / LOG_FILE
    log.write_text("{}\n" + log.read_text())
    settings = json.loads((log.parent / "settings.json").read_text())
    urls = (settings["base"]["url"], settings["pruned"]["url"])
    with pytest.raises(PruneError, match="line 1 is damaged"):
        checked(tmp_path / "out", Speaker(), Speaker(), urls=urls)


def test_what_a_server_refuses_is_left_out_on_both_sides(tmp_path: Path) -> None:
    no_tools = Speaker(refuses=("tools",), tells_tokens=False)
    result = checked(tmp_path / "out", Speaker(), no_tools)
    assert list(result.skipped) == ["tools"]
    assert "status 400: no such field" in result.skipped["tools"]
    assert {row.kind for row in result.rows} == {"all", "chats", "prose", "code", "thinking"}
    assert result.unit == "words"
    with pytest.raises(PruneError, match=r"refuses every probe: .*no such field"):
        checked(tmp_path / "none", Speaker(refuses=("max_tokens",)), Speaker())


def test_a_server_that_knows_no_token_ids_is_asked_without(tmp_path: Path) -> None:
    plain, loops = Speaker(refuses=("return_token_ids",)), Speaker(faults={"loops": 1.0})
    result = checked(tmp_path / "out", plain, loops, Asked(ASKED.probes, ("greedy",), 512))
    row = result.row("loops", "prose")
    assert row is not None and (row.pruned.count, result.unit) == (20, "words")
    assert result.skipped == {}


def test_how_answers_are_drawn_is_an_axis(tmp_path: Path) -> None:
    ways = ("greedy", "own", "temperature=0.7,top_p=0.8")
    base, pruned = Speaker(), Speaker(faults={"silence": 1.0})
    result = checked(tmp_path / "out", base, pruned, Asked(ASKED.probes[:25], ways, 64))
    assert result.samplings == ways
    found = [{k: b.get(k) for k in ("temperature", "top_p", "seed")} for b in base.asked]
    seeds = {one["seed"] for one in found}
    assert {one["temperature"] for one in found} == {0.0, None, 0.7}
    assert len(seeds) == 26  # one for each probe, none where nothing is drawn
    assert [b.get("seed") for b in pruned.asked if b.get("top_p")] != []
    row = result.row("empty", "chats", ways[2])
    assert row is not None and row.pruned.rate == 1.0


def test_more_tokens_than_the_server_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"takes 512 with its prompt .*--tokens 384"):
        checked(tmp_path / "out", Speaker(length=512), Speaker())


def test_the_command_asks_two_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    own = tmp_path / "own.jsonl"
    lines = [{"kind": "prose", "prompt": f"Number {n} is"} for n in range(30)]
    lines += [{"prompt": f"What is {n}?"} for n in range(10)]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("--prompts", own, "--tokens", 400, "--sampling", "greedy")
    loops = Speaker(faults={"loops": 1.0})
    with serving(Speaker()) as base, serving(loops) as url:
        ask = ("check", tmp_path / "mine", "--endpoint", url, "--base-endpoint", base, *words)
        done = invoke(*map(str, ask), "--json")
        assert done.exit_code == 1
        told = json.loads(done.stdout)
        assert told["ok"] is False and "checks" not in told
        result = AnswerCheck.model_validate(told["answers"])
        assert (result.probes, result.source, result.verdict) == (40, str(own), "worse")
        text = invoke(*map(str, ask), "--served-name", "first", "--force").stdout
        assert "100.0 (88.6 to 100.0)" in text  # of prose
        assert "WORSE than the base: loops (all, greedy) 100.0 % against 0.0 %" in text
        assert "no doubling" not in text and "no rate doubled" not in text
        alone = invoke("check", str(tmp_path / "one"), "--endpoint", base, *map(str, words))
        assert alone.exit_code == 0
        assert "no base to compare with" in alone.stdout
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind": "prose", "messages": [{}]}', "line 1: prose is a `prompt`"),
        ('{"kind": "tools", "prompt": "x"}', "line 1: probes of the kind `tools` have `tools`"),
        ('{"prompt": "x", "messages": [{}]}', "line 1: a probe has a `prompt` or `messages`"),
        ('{"kind": "songs", "prompt": "x"}', "line 1: kind"),
        ('{"kind": "tools", "prompt": "x", "tools": [{}]}', "line 1: a tool is"),
        ("", "holds no probes"),
        ('{"prompt": "x"}', "holds 1 different probes, not 9"),
    ],
)
def test_a_file_that_holds_no_probes_is_refused(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text(f"{line}\n")
    words = ("--prompts", tmp_path / "p.jsonl", "--probes", "9", "--endpoint", "http://127.0.0.1:9")
    assert said in one_error(*run("check", tmp_path / "out", *words, capsys=capsys))
    assert not folder_of(tmp_path / "out").exists()


def test_no_key_of_the_user_s_is_kept(tmp_path: Path) -> None:
    words = ["--hf-token", "SECRET", "--max-model-len", "64", "--hf_token=SECRET"]
    spec = as_deployed(ServerSpec(tmp_path), words, dtype="auto", eager=False, ranks=1)
    target = Target("pruned", "pruned", spec=spec)
    assert "SECRET" not in str(target.identity) + target.described.model_dump_json()
    assert "SECRET" in str(spec.arguments(1))
    for word in ("--api-key=k", "--api_key"):
        with pytest.raises(PruneError, match="is chosen by the check"):
            as_deployed(spec, [word], dtype="auto", eager=False, ranks=1)
    with pytest.raises(PruneError, match="must not hold a password"):
        Endpoint.find("http://me:SECRET@127.0.0.1:9")
