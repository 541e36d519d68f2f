from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from loadtest.make_workload import workload_command
from loadtest.workload import Item, Lengths, load_workload, save_workload
from vllm_moe_prune.errors import PruneError


def test_shipped_workload_has_varied_prompts() -> None:
    workload = load_workload()
    texts = {item.text for item in workload.items}
    assert len(texts) == len(workload.items) >= 60
    assert any(item.messages for item in workload.items)


def test_same_seed_same_requests_other_seed_others() -> None:
    workload = load_workload()
    first, again, other = (list(islice(workload.requests(seed), 150)) for seed in (3, 3, 4))
    assert first == again != other


def test_a_pass_asks_every_item_once() -> None:
    workload = load_workload()
    asked = [item.text for item, _ in islice(workload.requests(0), len(workload.items))]
    assert sorted(asked) == sorted(item.text for item in workload.items)


def test_own_max_tokens_wins_over_the_distribution_and_the_cap_over_both(tmp_path: Path) -> None:
    file = tmp_path / "w.jsonl"
    save_workload(
        file, [Item(prompt="a", max_tokens=7), "b"], Lengths(distribution="constant", median=20)
    )
    lengths = {item.text: tokens for item, tokens in islice(load_workload(file).requests(0), 2)}
    assert lengths == {"a": 7, "b": 20}
    assert {tokens for _, tokens in islice(load_workload(file).requests(0, cap=5), 2)} == {5}


@given(
    st.sampled_from(["constant", "uniform", "lognormal"]),
    st.integers(1, 500),
    st.floats(0, 3),
    st.integers(1, 50),
    st.integers(0, 500),
    st.integers(),
)
def test_drawn_lengths_stay_in_bounds(
    kind: Literal["constant", "uniform", "lognormal"],
    median: int,
    sigma: float,
    low: int,
    width: int,
    seed: int,
) -> None:
    lengths = Lengths(distribution=kind, median=median, sigma=sigma, min=low, max=low + width)
    assert low <= lengths.draw(random.Random(seed)) <= low + width


def test_lognormal_lengths_centre_on_the_median() -> None:
    rng = random.Random(0)
    drawn = sorted(Lengths(median=64, min=1, max=9999).draw(rng) for _ in range(2001))
    assert drawn[1000] == pytest.approx(64, rel=0.06)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"promt": "b"}\n', "line 2"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}\n', "either prompt or"),
        ('{"prompt": ""}\n', "line 1: prompt"),
        ("not json\n", "line 1"),
        ('{"prompt": "a", "max_tokens": 0}\n', "max_tokens"),
        ('{"output_tokens": {"min": 9, "max": 3}}\n{"prompt": "a"}\n', "min 9 is above max 3"),
        ('{"conversation": ["a", "b"], "expected": "c"}\n', "expected goes with one answer"),
        ('{"prompt": "a", "expected": "?"}\n', "line 1: expected"),
        ("\n\n", "no prompts"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(PruneError, match=message) as caught:
        load_workload(file)
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"workload .* is missing"):
        load_workload(tmp_path / "absent.jsonl")


def test_command_makes_a_workload_from_any_jsonl(tmp_path: Path) -> None:
    source, out = tmp_path / "items.jsonl", tmp_path / "w.jsonl"
    source.write_text("".join(json.dumps({"question": f"q{n}", "a": n}) + "\n" for n in range(5)))
    arguments = [str(source), "--out", str(out), "--field", "question", "--limit", "3"]
    arguments += ["--expected", "a"]
    done = CliRunner().invoke(workload_command, [*arguments, "--median", "9", "--max", "30"])
    assert done.exit_code == 0, done.output
    made = load_workload(out)
    assert [(item.text, item.expected) for item in made.items] == [
        ("q0", "0"),
        ("q1", "1"),
        ("q2", "2"),
    ]
    assert (made.lengths.median, made.lengths.max) == (9, 30)


@pytest.mark.parametrize(
    "extra", [["--field", "answer"], ["--expected", "answer"], ["--min", "50", "--max", "3"]]
)
def test_command_refuses_in_one_line_with_status_1(tmp_path: Path, extra: list[str]) -> None:
    source = tmp_path / "items.jsonl"
    source.write_text('{"prompt": "a"}\n')
    out = tmp_path / "w.jsonl"
    done = CliRunner().invoke(workload_command, [str(source), "--out", str(out), *extra])
    assert done.exit_code == 1
    assert done.output.startswith("error: ") and done.output.count("\n") == 1
    assert not out.exists()
