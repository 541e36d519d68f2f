"""How a run puts its questions: options of generation are read as lm-eval reads them."""

from __future__ import annotations

import pytest

from offline.tasks.prompting import PLAIN, Prompting, gen_kwargs_of, sampled
from vllm_moe_prune.errors import PruneError


def test_options_are_read_as_lm_eval_reads_them() -> None:
    from lm_eval.utils import simple_parse_args_string

    text = "max_gen_toks=512,top_k=-1,until='a b',do_sample=True,temperature=1.5"
    assert gen_kwargs_of(text) == simple_parse_args_string(text)
    assert gen_kwargs_of('{"until": ["\\n", "Q:"]}') == {"until": ["\n", "Q:"]}


def test_options_of_every_request() -> None:
    assert PLAIN.generation == {}
    asked = Prompting(think_end="</think>", gen_kwargs="max_gen_toks=9,top_k=1", max_gen_tokens=7)
    assert asked.generation == {"max_gen_toks": 7, "top_k": 1, "think_end": "</think>"}


def test_a_temperature_is_for_tasks_that_say_greedy_too() -> None:
    assert Prompting(gen_kwargs="temperature=0.6").generation["do_sample"] is True
    assert "do_sample" not in Prompting(gen_kwargs="temperature=0").generation


def test_one_prompting_in_two_spellings_is_one() -> None:
    spellings = ("top_k=1,until=x", '{"until": "x", "top_k": 1}')
    assert len({Prompting(gen_kwargs=text) for text in spellings}) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_gen_toks", "no KEY=VALUE"),
        ('{"until": ', "not JSON"),
        ("[1]", "no KEY=VALUE"),
        ("presence_penalty=1.5", "'presence_penalty' is not offered"),
        ("temperature=hot", "temperature is 'hot'"),
    ],
)
def test_options_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(PruneError, match=said):
        Prompting(gen_kwargs=text)


def test_which_options_sample() -> None:
    assert not sampled(gen_kwargs_of("temperature=0,do_sample=true"))
    assert not sampled(gen_kwargs_of("temperature=0.6,do_sample=false"))
    assert sampled(gen_kwargs_of("temperature=0.6"))
    assert sampled(gen_kwargs_of("do_sample=true"))


@pytest.mark.parametrize("fields", [{"max_gen_tokens": 0}, {"think_end": ""}])
def test_an_answer_of_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(PruneError):
        Prompting(**fields)  # type: ignore[arg-type]
