"""`Prompting`: how a task's questions are put to a model, and how long it may answer.

Imports no torch, no lm-eval.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offline.tasks.generation_options import check_options
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json

THINK_END = "think_end"  # the key under which a request's options name the end of thinking


@dataclass(frozen=True, slots=True)
class Prompting:
    """What is said about all questions of a run, in the terms of lm-evaluation-harness.

    The default changes nothing: prompts are plain text and answers as long as the task says.

    :param apply_chat_template: whether prompts go through the tokenizer's chat template; a text
        names one of several templates
    :param system_instruction: what the system turn (without a template: the prompt) begins with
    :param fewshot_as_multiturn: whether examples are turns of their own; only with a template
    :param think_end: text up to which a generated answer does not count, such as ``</think>``
    :param gen_kwargs: a JSON object (see `gen_kwargs_of`) that updates the tasks' own
        ``generation_kwargs``
    :param max_gen_tokens: of every generated answer, instead of what the tasks say
    """

    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    think_end: str | None = None
    gen_kwargs: str = "{}"
    max_gen_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_gen_tokens is not None and self.max_gen_tokens < 1:
            raise PruneError(f"an answer of {self.max_gen_tokens} tokens is none")
        if self.think_end == "":
            raise PruneError("the end of thinking is an empty text", hint="such as </think>")
        generation = gen_kwargs_of(self.gen_kwargs)
        # What is spelt in another way asks for the same requests and is the same prompting.
        object.__setattr__(self, "gen_kwargs", json.dumps(generation, sort_keys=True))

    @property
    def generation(self) -> dict[str, Any]:
        """Return what updates a task's ``generation_kwargs``: the options of each request.

        With `think_end` under the key ``think_end``, which engines take out again.
        """
        options = gen_kwargs_of(self.gen_kwargs)
        if sampled(options):  # or a task that says `do_sample: false` would stay greedy
            options["do_sample"] = True
        if self.max_gen_tokens is not None:
            options["max_gen_toks"] = self.max_gen_tokens
        if self.think_end is not None:
            options[THINK_END] = self.think_end
        return options


def gen_kwargs_of(text: str | Mapping[str, Any]) -> dict[str, Any]:
    """Read options of generation: a JSON object, or ``KEY=VALUE,...`` as lm-eval's own flag.

    :raises PruneError: if it is neither, or has an option that no engine honours
    """
    options = _read(text) if isinstance(text, str) else dict(text)
    check_options(options)
    until = options.get("until", [])
    for stop in until if isinstance(until, list) else [until]:
        if not isinstance(stop, str) or not stop:
            raise PruneError(
                f"the generation option until is {until!r}: it is a text or a list of texts, none "
                "of them empty",
                hint="a number stands between quotes: until='5'",
            )
    return options


def sampled(options: Mapping[str, Any]) -> bool:
    """Return whether options of generation ask for answers that are not greedy.

    lm-evaluation-harness samples if ``do_sample`` says so and the temperature is not 0.
    """
    temperature = options.get("temperature")
    warm = temperature is not None and float(temperature) > 0
    return bool(options.get("do_sample", warm)) and (temperature is None or warm)


def _read(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return _once(text, [_pair(text, p.strip()) for p in text.split(",") if p.strip()])
    try:
        found = parse_json(text, "it", functools.partial(_once, text))
    except PruneError as error:
        raise PruneError(f"--gen-kwargs {text}: {error.message}") from None
    if not isinstance(found, dict):
        raise PruneError(f"--gen-kwargs {text}: no JSON object")
    return found


def _once(text: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise PruneError(f"--gen-kwargs {text}: {twice} is given twice")
    return found


def _pair(text: str, part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals or not key.strip():
        raise PruneError(
            f"--gen-kwargs {text}: {part!r} is no KEY=VALUE",
            hint='such as max_gen_toks=512, or a JSON object such as {"until": ["\\n\\n"]}',
        )
    return key.strip(), _value(value.strip())


def _value(text: str) -> Any:
    """Return a number or a truth value as lm-eval reads it, else the text, quoted or not."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


PLAIN = Prompting()
