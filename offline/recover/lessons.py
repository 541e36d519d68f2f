"""What a supervised finetune learns from: prompts with their answers, of tasks or of a file.

Nothing whose question is among the held-out items of a task that is trained on or measured: a
question is told by its words, however they are spaced, cased and punctuated. Sources that share
questions exist: `basic_skills_arithmetic` and `basic_skills_arithmetic_gen` do.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offline.data.chat_template import render, unbegun
from offline.finetune.examples import Examples, supervised
from offline.recover.instructions import Instructions
from offline.results.text_use import TextUse
from offline.tasks.catalog import Task
from offline.tasks.items import Item
from offline.tasks.splits import load_items, training_items
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity, sha256_text

_HELD_OUT = ("selection", "test")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One example: the answer follows the prompt as it is, and only the answer has a loss.

    ``question`` is what may not be a held-out item's, ``source`` the task or the file.
    """

    source: str
    question: str
    prompt: str
    answer: str

    @property
    def key(self) -> str:
        """The question, comparable with `Item.key`."""
        return Item("", self.question).key


@dataclass(frozen=True, slots=True)
class Lessons:
    """All examples in the order of training; ``left_out`` had a held-out item's question."""

    each: tuple[Lesson, ...]
    left_out: int
    use: Mapping[str, TextUse] = field(default_factory=dict)  # of sources of text, by their names

    @property
    def count(self) -> int:
        """Examples in all."""
        return len(self.each)

    def examples(self, tokenizer: Any, *, length: int, seed: int) -> Examples:
        """Return what is trained on: a loss on the answers alone (see `supervised`)."""
        return supervised(self.pairs, tokenizer, length=length, identity=self.identity, seed=seed)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return (prompt, answer) of each."""
        return [(lesson.prompt, lesson.answer) for lesson in self.each]

    @property
    def identity(self) -> tuple[DataIdentity, ...]:
        """Name each source's examples by their content."""
        found = []
        for source in dict.fromkeys(lesson.source for lesson in self.each):
            texts = [f"{o.prompt}\0{o.answer}" for o in self.each if o.source == source]
            digest = sha256_text("\0".join(texts))
            found.append(DataIdentity(name=source, split="train", count=len(texts), sha256=digest))
        return tuple(found)


def task_lessons(task: Task, tokenizer: Any = None) -> list[Lesson]:
    """Return a task's own training items, asked and answered as in evaluations.

    :param tokenizer: of transformers, for a task that is asked in its chat template
    :raises PruneError: if the data cannot be had
    """
    between = "" if task.prompting.apply_chat_template else " "  # as lm-eval does
    return [
        Lesson(task.name, item.query, _asked(task, item.query, tokenizer), between + item.answer)
        for item in training_items(task)
    ]


def _asked(task: Task, query: str, tokenizer: Any) -> str:
    system = task.prompting.system_instruction
    if not task.prompting.apply_chat_template:
        return f"{system}\n\n{query}" if system else query
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": query})
    return unbegun(render(tokenizer, turns, add_generation_prompt=True), tokenizer)


def instruction_lessons(given: Instructions) -> list[Lesson]:
    """Return the examples of a source.

    :raises PruneError: as `Instructions.read`
    """
    return [Lesson(given.name, *each) for each in given.read()]


def mix_lessons(
    found: Sequence[Lesson], held_out: Iterable[Task], *, count: int | None, seed: int
) -> Lessons:
    """Mix the examples of all sources, without what the tasks' held-out items ask.

    :param held_out: tasks whose selection and test items must not be learnt
    :param count: examples to take; all if None
    :raises PruneError: if none is left
    """
    asked = {
        item.key
        for task in held_out
        for split in _HELD_OUT
        for item in load_items(task, split)  # type: ignore[arg-type]  # two of the splits
    }
    allowed = [lesson for lesson in found if lesson.key not in asked]
    left_out = len(found) - len(allowed)
    if not allowed:
        raise PruneError(
            f"there is nothing to train on: all {left_out} examples ask what held-out items ask"
        )
    random.Random(seed).shuffle(allowed)
    return Lessons(tuple(allowed[:count]), left_out)
