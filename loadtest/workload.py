"""What the simulated users ask: a JSONL file of prompts and a distribution of answer lengths.

Each line is ``{"prompt": TEXT}``, ``{"messages": [{"role": ..., "content": ...}, ...]}`` or
``{"conversation": [TEXT, ...]}``, with an optional ``"max_tokens"``, and ``"expected"``: what the
answer of a model that ends by itself should say. The first line may be
``{"output_tokens": {...}}`` (see ``Lengths``): it gives the lengths of the answers whose line has
no ``max_tokens``. YAML files can say more: `workload_file`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.load import Load
from loadtest.metrics import Slo
from loadtest.results import write_atomic
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_json, read_text

DEFAULT_WORKLOAD = Path(__file__).with_name("workload.jsonl")
_FORMAT_HINT = 'a line is {"prompt": "..."} or {"messages": [...]}; see docs/loadtest.md'


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lengths(_Line):
    """How many tokens answers may have, between ``min`` and ``max``.

    ``constant``, ``normal`` and ``lognormal`` are centred on ``median``, ``exponential`` has that
    median; ``uniform`` ignores it. ``sigma`` is the standard deviation of the logarithm, of
    ``normal`` as a share of the median. ``values`` are drawn from, with ``distribution: values``.
    """

    distribution: Literal["constant", "uniform", "normal", "lognormal", "exponential", "values"] = (
        "lognormal"
    )
    median: int = Field(default=64, ge=1)
    sigma: float = Field(default=0.5, ge=0)
    values: tuple[int, ...] | None = Field(default=None, min_length=1)
    min: int = Field(default=8, ge=1)
    max: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Lengths:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if (self.distribution == "values") != (self.values is not None):
            raise ValueError("values go with distribution: values")
        return self

    def draw(self, rng: random.Random) -> int:
        """One length in tokens."""
        if self.distribution == "uniform":
            return rng.randint(self.min, self.max)
        if self.values is not None:
            return min(max(rng.choice(self.values), self.min), self.max)
        return min(max(round(self.median * self._factor(rng)), self.min), self.max)

    def _factor(self, rng: random.Random) -> float:
        if self.distribution == "normal":
            return rng.gauss(1, self.sigma)
        if self.distribution == "exponential":
            return rng.expovariate(math.log(2))
        return rng.lognormvariate(0, self.sigma if self.distribution == "lognormal" else 0.0)


class Message(_Line):
    """One turn of a conversation."""

    role: str
    content: str


class Item(_Line):
    """One line of a workload: a prompt, messages, or a conversation of several answers.

    ``conversation`` are the user's sentences: each is sent with all that was said before it.
    """

    prompt: str | None = Field(default=None, min_length=1)
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    conversation: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None, min_length=1
    )
    max_tokens: int | None = Field(default=None, ge=1)
    expected: str | None = Field(default=None, pattern=r"\w")

    @model_validator(mode="after")
    def _one_of(self) -> Item:
        if self.conversation is not None and self.expected is not None:
            raise ValueError("expected goes with one answer, not with a conversation's")
        given = (self.prompt, self.messages, self.conversation)
        if sum(value is not None for value in given) != 1:
            raise ValueError("give either prompt or messages, or conversation")
        return self

    def turn(self, answers: Sequence[str]) -> Item:
        """The request that follows on ``answers``, of an item that is one conversation."""
        if self.conversation is None:
            return self
        said: list[Message] = []
        for sentence, answer in zip(self.conversation, answers, strict=False):
            said.append(Message(role="user", content=sentence))
            said.append(Message(role="assistant", content=answer))
        said.append(Message(role="user", content=self.conversation[len(answers)]))
        return Item(messages=tuple(said), max_tokens=self.max_tokens)

    @property
    def num_turns(self) -> int:
        """How many requests the item is."""
        return len(self.conversation or (None,))

    @property
    def text(self) -> str:
        """The prompt of a text completion; a conversation's turns become paragraphs."""
        if self.prompt is not None:
            return self.prompt
        if self.conversation is not None:
            return self.conversation[0]
        return "\n\n".join(message.content for message in self.messages or ())

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages of a chat completion; a prompt becomes the user's only turn."""
        if self.messages is None:
            return [{"role": "user", "content": self.text}]
        return [message.model_dump() for message in self.messages]


LineT = TypeVar("LineT", bound=_Line)


class _Header(_Line):
    output_tokens: Lengths


class Cancel(_Line):
    """Users who go away: a ``share`` of them, ``after`` so many seconds, evenly drawn."""

    share: float = Field(gt=0, le=1)
    after: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Cancel:
        if not 0 < self.after[0] <= self.after[1]:
            raise ValueError("after: two numbers of seconds, the first not above the second")
        return self


@dataclass(frozen=True, slots=True)
class Ask:
    """What one ticket sends: an item, the bound of each answer and when the user goes away."""

    item: Item
    max_tokens: int
    cancel_after: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts, the distribution of answer lengths and, from YAML, how the load is to run.

    ``turn_pause``: seconds that a user thinks between the turns of a conversation.
    """

    items: tuple[Item, ...]
    lengths: Lengths
    cancel: Cancel | None = None
    turn_pause: float = 0.0
    load: Load = field(default_factory=Load)
    slo: Slo = field(default_factory=Slo)
    users: int | None = None

    def asks(self, seed: int, cap: int | None = None) -> Iterator[Ask]:
        """Endless; the same for the same seed."""
        rng = random.Random(f"cancel {seed}")
        for item, tokens in self.requests(seed, cap):
            after = None
            if self.cancel is not None and rng.random() < self.cancel.share:
                after = rng.uniform(*self.cancel.after)
            yield Ask(item, tokens, after)

    def requests(self, seed: int, cap: int | None = None) -> Iterator[tuple[Item, int]]:
        """Endless (item, max_tokens) pairs, the same for the same seed.

        Every pass over the items is a new permutation; ``cap`` bounds max_tokens.
        """
        rng = random.Random(seed)
        while True:
            for item in rng.sample(self.items, len(self.items)):
                drawn = self.lengths.draw(rng)  # always, so that the sequence is one per seed
                tokens = item.max_tokens or drawn
                yield item, tokens if cap is None else min(tokens, cap)


def load_workload(path: Path = DEFAULT_WORKLOAD) -> Workload:
    """Read a workload of JSONL.

    :raises PruneError: if it is missing, has a bad line (its number is named) or no prompt
    """
    try:
        text = read_text(path, "workload ")
    except PruneError as error:
        raise PruneError(error.message, hint=_FORMAT_HINT) from error
    numbered = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    lengths = Lengths()
    if numbered and '"output_tokens"' in numbered[0][1]:
        lengths = _parse(_Header, path, *numbered.pop(0)).output_tokens
    items = tuple(_parse(Item, path, number, line) for number, line in numbered)
    if not items:
        raise PruneError(f"workload {path} has no prompts", hint=_FORMAT_HINT)
    return Workload(items, lengths)


def save_workload(
    path: Path, items: Iterable[Item | str | dict[str, str]], lengths: Lengths | None = None
) -> None:
    """Write a workload of ``items`` (a string is a prompt, a dict the fields of one) to ``path``.

    Items may be a benchmark's questions, handed in as strings.

    :raises PruneError: if there are none, or an empty one
    """
    header = _Header(output_tokens=lengths or Lengths())
    try:
        fields = ({"prompt": item} if isinstance(item, str) else item for item in items)
        lines = [Item.model_validate(item) for item in fields]
    except ValidationError as error:
        raise PruneError(f"workload: {reason(error)}") from error
    if not lines:
        raise PruneError(f"no prompts for workload {path}")
    rows = [header, *lines]
    write_atomic(path, "".join(f"{row.model_dump_json(exclude_none=True)}\n" for row in rows))


def check_free(path: Path, source: Path) -> None:
    """Refuse to write a workload over anything but a workload.

    :raises PruneError: if ``path`` is ``source``, or something that `save_workload` did not write
    """
    if not path.exists():
        return
    hint = "choose another --out, or move it away"
    if path.samefile(source):
        raise PruneError(f"{path} is what the prompts are read from", hint=hint)
    with path.open("rb") as stream:
        if not stream.readline().startswith(b'{"output_tokens":'):
            raise PruneError(f"{path} is no workload and is not replaced", hint=hint)


def questions_from_jsonl(
    path: Path, field: str = "prompt", limit: int | None = None, expected: str | None = None
) -> list[dict[str, str]]:
    """Fields of items: the text under ``field`` of each line of any JSONL file, at most ``limit``.

    :param expected: the field of what the answer should say, if there is one
    :raises PruneError: if the file is missing, or a line is not JSON or lacks the field
    """
    rows = [line for line in read_text(path).split("\n") if line.strip()]
    names = {"prompt": field} | ({"expected": expected} if expected else {})
    found = []
    for number, row in enumerate(rows[:limit], 1):
        values = parse_json(row, f"{path} line {number}")
        for name in names.values():
            if not isinstance(values, dict) or name not in values:
                raise PruneError(
                    f"{path} line {number}: no field {name!r}", hint="name one with --field"
                )
        found.append({key: str(values[name]) for key, name in names.items()})
    return found


def _parse(model: type[LineT], path: Path, number: int, line: str) -> LineT:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        raise PruneError(
            f"workload {path} line {number}: {reason(error)}", hint=_FORMAT_HINT
        ) from error


def reason(error: ValidationError) -> str:
    """The first complaint about a workload, with the name of the field."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
