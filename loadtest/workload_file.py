"""Workloads in YAML: prompts from several places, and how the load is to run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.load import Load
from loadtest.metrics import Slo
from loadtest.workload import (
    DEFAULT_WORKLOAD,
    Cancel,
    Item,
    Lengths,
    Message,
    Workload,
    load_workload,
    questions_from_jsonl,
    reason,
)
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_yaml, read_json, read_text

_HINT = "docs/loadtest.md lists the fields"
_HUMAN = {"human", "user"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShareGpt(_Part):
    """A file of conversations in ShareGPT's form. ``turns``: ``first`` sentence of each, or ``all``
    as a conversation. ``limit`` is of conversations; shorter ones than ``min_words`` are left out.
    """

    file: Path
    turns: str = Field(default="first", pattern="^(first|all)$")
    limit: int | None = Field(default=None, ge=1)
    min_words: int = Field(default=1, ge=1)


class Jsonl(_Part):
    """The text under ``field`` of any JSONL file's lines; ``expected``: the field of the answer."""

    file: Path
    field: str = "prompt"
    expected: str | None = None
    limit: int | None = Field(default=None, ge=1)


class Synthetic(_Part):
    """``count`` prompts of made-up words, as long as ``words`` says; the server counts tokens."""

    count: int = Field(default=64, ge=1)
    words: Lengths
    seed: int = 0


class SharedPrefix(_Part):
    """The same ``words`` before all prompts, or one of ``groups`` many such texts."""

    words: int = Field(ge=1)
    groups: int = Field(default=1, ge=1)


class WorkloadFile(_Part):
    """The whole file. At least one of ``prompts``, ``workload``, ``jsonl``, ``sharegpt`` and
    ``synthetic`` says what is asked; files are found from the folder of this one."""

    prompts: tuple[str | Item, ...] = ()
    workload: Path | None = None
    jsonl: Jsonl | None = None
    sharegpt: ShareGpt | None = None
    synthetic: Synthetic | None = None
    shared_prefix: SharedPrefix | None = None
    output_tokens: Lengths | None = None
    turn_pause: float = Field(default=0.0, ge=0)
    cancel: Cancel | None = None
    load: Load = Load()
    slo: Slo = Slo()
    users: int | None = Field(default=None, ge=1)


def read_workload(path: Path = DEFAULT_WORKLOAD) -> Workload:
    """Read a workload file: YAML by its suffix, else JSONL.

    :raises PruneError: one line that names the file, and the field or line that is wrong
    """
    return load_yaml(path) if path.suffix in {".yaml", ".yml"} else load_workload(path)


def load_yaml(path: Path) -> Workload:
    """Read a workload's YAML file.

    :raises PruneError: one line that names the file, and the field or line that is wrong
    """
    try:
        fields = parse_yaml(read_text(path, "workload "), f"workload {path}")
    except PruneError as error:
        raise PruneError(error.message, hint=_HINT) from error
    try:
        file = WorkloadFile.model_validate(fields)
    except ValidationError as error:
        raise PruneError(f"workload {path}: {reason(error)}", hint=_HINT) from error
    return _workload(file, path)


def _workload(file: WorkloadFile, path: Path) -> Workload:
    items = [Item(prompt=p) if isinstance(p, str) else p for p in file.prompts]
    lengths = Lengths()
    if file.workload is not None:
        other = read_workload(path.parent / file.workload)
        items, lengths = [*items, *other.items], other.lengths
    if file.jsonl is not None:
        source, wanted = path.parent / file.jsonl.file, file.jsonl
        found = questions_from_jsonl(source, wanted.field, wanted.limit, wanted.expected)
        items += [_item(source, fields) for fields in found if fields["prompt"]]
    if file.sharegpt is not None:
        items += read_sharegpt(path.parent / file.sharegpt.file, file.sharegpt)
    if file.synthetic is not None:
        items += _made_up(file.synthetic)
    if not items:
        raise PruneError(f"workload {path} has no prompts", hint=_HINT)
    if file.shared_prefix is not None:
        items = _prefixed(items, file.shared_prefix)
    return Workload(
        items=tuple(items),
        lengths=file.output_tokens or lengths,
        cancel=file.cancel,
        turn_pause=file.turn_pause,
        load=file.load,
        slo=file.slo,
        users=file.users,
    )


def _item(source: Path, fields: dict[str, str]) -> Item:
    try:
        return Item.model_validate(fields)
    except ValidationError as error:
        raise PruneError(f"{source}: {reason(error)}") from error


def read_sharegpt(path: Path, settings: ShareGpt) -> list[Item]:
    """The sentences of users in a file of ShareGPT's form; conversations that begin otherwise, or
    are too short, are left out.

    :raises PruneError: if it is missing, not such a file, or nothing in it fits
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise PruneError(f"{path} is not a list of conversations")
    items = []
    for row in rows:
        said = _sentences(row)
        if not said or len(said[0].split()) < settings.min_words:
            continue
        whole = settings.turns == "all" and len(said) > 1
        items.append(Item(conversation=tuple(said)) if whole else Item(prompt=said[0]))
        if settings.limit is not None and len(items) == settings.limit:
            break
    if not items:
        raise PruneError(f"{path} holds no conversation that a user begins")
    return items


def _sentences(row: Any) -> list[str]:
    """What the user says in one conversation, in either spelling of its turns."""
    turns = row.get("conversations", row.get("messages")) if isinstance(row, dict) else None
    said = []
    for number, turn in enumerate(turns if isinstance(turns, list) else ()):
        if not isinstance(turn, dict):
            return []
        who, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if number == 0 and who not in _HUMAN:
            return []
        if who in _HUMAN and isinstance(text, str) and text.strip():
            said.append(text)
    return said


def _made_up(settings: Synthetic) -> list[Item]:
    rng = random.Random(settings.seed)
    return [Item(prompt=_words(rng, settings.words.draw(rng))) for _ in range(settings.count)]


_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "no", "ri", "su", "ta", "vo")


def _words(rng: random.Random, number: int) -> str:
    return " ".join("".join(rng.choices(_SYLLABLES, k=2)) for _ in range(number))


def _prefixed(items: list[Item], settings: SharedPrefix) -> list[Item]:
    texts = [_words(random.Random(f"prefix {g}"), settings.words) for g in range(settings.groups)]
    return [_after(texts[n % len(texts)], item) for n, item in enumerate(items)]


def _after(prefix: str, item: Item) -> Item:
    """An item with a text before all that it says."""
    if item.prompt is not None:
        return item.model_copy(update={"prompt": f"{prefix}\n\n{item.prompt}"})
    if item.conversation is not None:
        first, *rest = item.conversation
        return item.model_copy(update={"conversation": (f"{prefix}\n\n{first}", *rest)})
    begin = Message(role="system", content=prefix)
    return item.model_copy(update={"messages": (begin, *(item.messages or ()))})
