"""What `vmprune check` lets pass and what not: every limit from both sides, without a server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from offline.check import check as module
from offline.check.answers import Answer
from offline.check.check import CheckItem, CheckResult, check
from offline.check.probes import CHAT_PROMPTS, PROMPTS
from offline.check.reference import LocalReference
from offline.cli.check import check as command
from offline.engines.local.transformers import TransformersEngine
from serve.server import ServerSpec
from tests.sample_maps import uniform_map

VOCABULARY = 5
# What `Reference` gives a position's own token, and every other one.
LIKELIEST = 2.0 - math.log(math.exp(2) + VOCABULARY - 1)
OTHER = -math.log(math.exp(2) + VOCABULARY - 1)


class Reference:
    """Stands for transformers: after n tokens, token n (mod 5) is the likeliest by far."""

    def logits(self, input_ids: list[list[int]]) -> torch.Tensor:
        (ids,) = input_ids
        found = torch.zeros(1, len(ids), VOCABULARY)
        for place in range(len(ids)):
            found[0, place, (place + 1) % VOCABULARY] = 2.0
        return found


def judged(prompts: list[list[int]], answers: list[Answer], dtype: str) -> dict[str, CheckItem]:
    inputs = module.CheckInputs(Path(), ServerSpec(Path()), Path(), None, dtype)
    reference = LocalReference(Reference())  # type: ignore[arg-type]
    found = module._parity(reference, prompts, answers, dtype, inputs.limits)
    return {finding.name: finding for finding in found}


def answer(prompt: list[int], length: int, *, off: float = 0.0, wrong: int = 0) -> Answer:
    """Return the reference's own tokens, the first ``wrong`` of them others, with their
    log-probabilities moved by ``off``."""
    places = range(len(prompt), len(prompt) + length)
    tokens = [(place + (number < wrong)) % VOCABULARY for number, place in enumerate(places)]
    exact = [OTHER if number < wrong else LIKELIEST for number in range(length)]
    return Answer(tuple(tokens), tuple(value + off for value in exact))


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 0.002), ("bfloat16", 0.05)])
@pytest.mark.parametrize("side", [1, -1])
def test_log_probabilities_may_differ_by_the_limit_in_the_mean(
    dtype: str, limit: float, side: int
) -> None:
    prompts = [[1, 2, 3], [4]]
    for share, ok in ((0.0, True), (0.99, True), (1.01, False), (100.0, False)):
        answers = [answer(prompt, 8, off=side * share * limit) for prompt in prompts]
        found = judged(prompts, answers, dtype)["parity of log-probabilities"]
        assert (found.ok, found.limit) == (ok, limit)
        assert found.value == pytest.approx(share * limit, abs=1e-6)


def test_it_is_the_mean_over_all_tokens_and_the_largest_is_told() -> None:
    prompts = [[1], [1]]
    answers = [answer([1], 10, off=0.0039), answer([1], 10)]
    found = judged(prompts, answers, "float32")["parity of log-probabilities"]
    assert found.ok and found.value == pytest.approx(0.00195, abs=1e-6)
    assert found.detail == (
        "mean difference to transformers over 20 tokens in float32, largest 0.0039"
    )
    answers = [answer([1], 10, off=0.0041), answer([1], 10)]
    assert not judged(prompts, answers, "float32")["parity of log-probabilities"].ok


@pytest.mark.parametrize(
    ("dtype", "least", "wrong", "ok"),
    [
        ("float32", 0.99, 0, True),
        ("float32", 0.99, 1, True),
        ("float32", 0.99, 2, False),
        ("bfloat16", 0.9, 10, True),
        ("bfloat16", 0.9, 11, False),
        ("bfloat16", 0.9, 100, False),
    ],
)
def test_so_many_of_100_greedy_tokens_may_be_others(
    dtype: str, least: float, wrong: int, ok: bool
) -> None:
    prompts = [[1] * length for length in range(1, 11)]
    answers = [
        answer(prompt, 10, wrong=min(10, max(0, wrong - 10 * number)))
        for number, prompt in enumerate(prompts)
    ]
    found = judged(prompts, answers, dtype)["parity of greedy tokens"]
    assert (found.ok, found.limit) == (ok, least)
    assert found.value == pytest.approx(1 - wrong / 100)


def test_16_tokens_of_each_answer_are_compared() -> None:
    prompt, same, other = [1, 2], answer([1, 2], 16), answer([1, 2], 40, off=9.0, wrong=40)
    tail = Answer(same.tokens + other.tokens[16:], same.logprobs + other.logprobs[16:])
    found = judged([prompt], [tail], "float32")
    assert found["parity of greedy tokens"].value == 1.0
    assert found["parity of log-probabilities"].ok
    last = answer([1, 2], 16, wrong=16)
    broken = Answer(same.tokens[:15] + last.tokens[15:], same.logprobs)
    assert judged([prompt], [broken], "float32")["parity of greedy tokens"].value == 15 / 16


@pytest.mark.parametrize(
    ("looping", "before", "limit", "ok"),
    [
        ([0.5, 0.5], None, 0.5, True),
        ([0.25, 0.75], None, 0.5, True),  # it is the mean
        ([0.5, 0.502], None, 0.5, False),
        ([1.0, 1.0], None, 0.5, False),
        ([0.5], 0.0, 0.5, True),  # a base that never repeats makes it no stricter
        ([0.501], 0.25, 0.5, False),
        ([0.75], 0.5, 0.75, True),  # a base that repeats gives room: a quarter more
        ([0.751], 0.5, 0.75, False),
        ([1.0], 0.625, 0.875, False),
        ([1.0], 0.75, 1.0, True),
    ],
)
def test_repetition_may_be_half_or_a_quarter_above_the_base(
    looping: list[float], before: float | None, limit: float, ok: bool
) -> None:
    found = module._collapse(looping, before)
    assert (found.ok, found.limit) == (ok, limit)
    assert found.value == pytest.approx(sum(looping) / len(looping))
    assert ("the base repeats" in found.detail) == (before is not None)


@pytest.mark.parametrize(
    ("tokens", "chats", "empty"),
    [((1, 2), ["yes", "no"], 0), ((), ["yes"], 1), ((1,), [" \n", "no", ""], 2), ((), [""], 2)],
)
def test_no_answer_may_be_empty(tokens: tuple[int, ...], chats: list[str], empty: int) -> None:
    found, _ = module._endpoint([Answer(tokens, (0.0,) * len(tokens))], chats)
    assert (found.ok, found.value, found.limit) == (empty == 0, empty, 0)


@pytest.mark.parametrize(
    ("logprobs", "broken"),
    [((-1.0, -9e9), 0), ((-1.0, math.nan), 1), ((-math.inf, math.nan), 2), ((math.inf, 0.0), 1)],
)
def test_every_log_probability_is_finite(logprobs: tuple[float, ...], broken: int) -> None:
    _, found = module._endpoint([Answer((1, 2), logprobs), Answer((3,), (-1.0,))], ["yes"])
    assert (found.ok, found.value, found.limit) == (broken == 0, broken, 0)


class FakeServer:
    """Answers as transformers would with a map of its own, at the seam where HTTP begins."""

    startup_seconds = 1.5

    def __init__(self, engine: TransformersEngine, routing_map: Any) -> None:
        self.engine, self.routing_map = engine, routing_map
        self.spoken = "something"

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def post(self, _: FakeServer, path: str, body: dict[str, Any]) -> Any:
        if path.endswith("chat/completions"):
            assert body["messages"][0]["content"] in CHAT_PROMPTS
            return {"message": {"content": self.spoken}}
        self.engine.apply(self.routing_map)
        (said,) = self.engine.greedy([body["prompt"]], body["max_tokens"])
        tokens = [f"token_id:{token}" for token in said.token_ids]
        return {"logprobs": {"tokens": tokens, "token_logprobs": list(said.log_probs)}}


@pytest.mark.parametrize("same", [True, False])
def test_a_server_that_does_not_follow_the_map_fails(
    same: bool,
    engine: TransformersEngine,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = uniform_map(model, [(0, 1, 2, 3), (4, 5, 6, 7)])
    served = asked if same else uniform_map(model, [(0, 1, 2, 4), (3, 5, 6, 7)])
    asked.save(tmp_path)
    fake = FakeServer(engine, served)
    monkeypatch.setattr(module, "Server", lambda spec, log: fake)
    monkeypatch.setattr("offline.check.answers._post", fake.post)
    result = check(tmp_path, model, dtype="float32", log=tmp_path / "log")
    found = {finding.name: finding for finding in result.checks}
    assert list(found) == [
        "parity of log-probabilities",
        "parity of greedy tokens",
        "repetition in a few texts",
        "answers are not empty",
        "log-probabilities are finite",
    ]
    assert f"over {16 * len(PROMPTS)} tokens" in found["parity of log-probabilities"].detail
    assert found["parity of log-probabilities"].ok == same
    assert found["parity of greedy tokens"].ok == same
    assert found["answers are not empty"].ok and found["log-probabilities are finite"].ok
    assert (result.served_as, result.startup_seconds) == ("pruned_moe", 1.5)
    assert result.ok == same


def invoked(folder: Path, monkeypatch: pytest.MonkeyPatch, ok: bool, *words: str) -> Result:
    """Run the command with a check that found this in place of a server."""
    checks = (
        CheckItem("parity", True, 0.001, 0.002, "of tokens"),
        CheckItem("no collapse", ok, 0.625, 0.5, "of text"),
    )
    result = CheckResult("out", "auto", 1.0, checks)
    monkeypatch.setattr(module, "check", lambda *_, **__: result)
    folder.mkdir()
    return CliRunner().invoke(command, [str(folder), *words])


@pytest.mark.parametrize(("ok", "status", "mark"), [(True, 0, "ok  "), (False, 1, "FAIL")])
def test_the_command_ends_with_1_if_one_check_fails(
    ok: bool, status: int, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = invoked(tmp_path / "out", monkeypatch, ok)
    assert done.exit_code == status
    assert done.stdout.splitlines() == [
        "ok   parity: 0.001 (limit 0.002); of tokens",
        f"{mark} no collapse: 0.625 (limit 0.5); of text",
    ]
    saved = json.loads((tmp_path / "out" / "check.json").read_text())
    assert saved["ok"] == ok
    assert [one["ok"] for one in saved["checks"]] == [True, ok]


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_with_json_it_ends_alike(
    ok: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = invoked(tmp_path / "out", monkeypatch, ok, "--json")
    assert done.exit_code == status
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "check.json").read_text())
