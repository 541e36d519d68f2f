"""Workloads in YAML."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from loadtest.workload import Item, Workload
from loadtest.workload_file import read_workload
from vllm_moe_prune.errors import PruneError


def load(folder: Path, text: str) -> Workload:
    file = folder / "w.yaml"
    file.write_text(text)
    return read_workload(file)


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"prompt": "from jsonl"}\n')
    (tmp_path / "q.jsonl").write_text('{"question": "a question", "answer": 42}\n')
    workload = load(
        tmp_path,
        """
prompts: ["one", {prompt: two, max_tokens: 5}, {conversation: [hello, and then]}]
workload: more.jsonl
jsonl: {file: q.jsonl, field: question, expected: answer}
synthetic: {count: 3, words: {distribution: constant, median: 40}}
output_tokens: {distribution: values, values: [3, 9], min: 1}
users: 12
turn_pause: 0.5
cancel: {share: 0.5, after: [1, 2]}
load: {arrivals: poisson, stages: [{seconds: 10, rate: 2, to: 6}]}
slo: {ttft_ms: 500}
""",
    )
    texts = [item.text for item in workload.items]
    assert texts[:5] == ["one", "two", "hello", "from jsonl", "a question"]
    assert [item.expected for item in workload.items[:5]] == [None] * 4 + ["42"]
    assert [len(text.split()) for text in texts[5:]] == [40, 40, 40] and len(set(texts)) == 8
    assert (workload.users, workload.turn_pause, workload.load.open) == (12, 0.5, True)
    assert workload.slo.ttft_ms == 500
    asks = list(islice(workload.asks(3), 400))
    assert asks == list(islice(workload.asks(3), 400))
    assert {ask.max_tokens for ask in asks if ask.item.text != "two"} == {3, 9}
    gone = [ask.cancel_after for ask in asks if ask.cancel_after is not None]
    assert 150 < len(gone) < 250 and all(1 <= after <= 2 for after in gone)


def test_a_conversation_sends_all_that_was_said() -> None:
    item = Item(conversation=("hello", "and then"))
    assert item.num_turns == 2
    assert item.turn(()).turns == [{"role": "user", "content": "hello"}]
    assert item.turn(("hi",)).turns == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "and then"},
    ]


def test_prefixes_are_shared_within_groups(tmp_path: Path) -> None:
    workload = load(
        tmp_path,
        "prompts: [a, b, c, {messages: [{role: user, content: d}]}]\n"
        "shared_prefix: {words: 30, groups: 2}\n",
    )
    prefixes = [item.text.rpartition("\n\n")[0] for item in workload.items]
    assert prefixes[0] == prefixes[2] != prefixes[1] == prefixes[3]
    assert len(prefixes[0].split()) == 30
    assert workload.items[3].turns[0]["role"] == "system"


def test_sharegpt_in_either_spelling(tmp_path: Path) -> None:
    talk = [("human", "one two"), ("gpt", "x"), ("human", "three"), ("gpt", "y")]
    rows = [
        {"conversations": [{"from": who, "value": text} for who, text in talk]},
        {"messages": [{"role": "user", "content": "four"}]},
        {"conversations": [{"from": "gpt", "value": "begins by itself"}]},
        {"conversations": []},
    ]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    first = load(tmp_path, "sharegpt: {file: s.json}")
    assert [item.prompt for item in first.items] == ["one two", "four"]
    whole = load(tmp_path, "sharegpt: {file: s.json, turns: all, limit: 1}")
    assert [item.conversation for item in whole.items] == [("one two", "three")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts: []", "has no prompts"),
        ("promts: [a]", "promts: Extra inputs"),
        ("prompts: [a]\nload: {arrivals: poisson}", "load: poisson arrivals need stages"),
        ("prompts: [a]\ncancel: {share: 2, after: [1, 2]}", "cancel.share"),
        ("prompts: [a]\noutput_tokens: {distribution: values}", "values go with"),
        ("sharegpt: {file: absent.json}", "is missing"),
        ("prompts: [", "is not YAML"),
        ("- a", "valid dictionary"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PruneError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
