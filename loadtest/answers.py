"""What a model answers where it decides itself when to end: how long, how alike, how right.

A pruned model that answers faster may answer something else. Greedy answers to the same requests
are compared word by word with the base's, and with what the workload expects where it says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import sqrt
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_moe_prune.errors import PruneError, one_line
from vllm_moe_prune.reading import MissingFileError, read_text

ANSWERS = "answers.jsonl"  # in the folder of a lifetime
_WORDS = re.compile(r"\w+")
_Z = 1.959964


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(_Frozen):
    """One of them, to the request of that number; ``text`` is None if none came.

    ``right``: whether it has what is expected; None where nothing is.
    """

    index: int
    text: str | None
    tokens: int
    right: bool | None = None


class Answers(_Frozen):
    """Those of one side, against the base's; the base's against its own of another round.

    ``compared``: as many requests both answered, ``equal`` of them with the same text. ``alike``:
    the mean share of words before the first that differs. ``right`` of ``expected``.
    """

    side: str
    asked: int
    answered: int
    compared: int
    equal: int
    alike: float | None
    right: int
    expected: int

    @classmethod
    def of(cls, side: str, answers: Sequence[Answer], others: Sequence[Answer]) -> Answers:
        """Compare a side's answers with others to the same requests, if there are any."""
        texts = {other.index: other.text for other in others}
        pairs = [
            (one.text, other)
            for one in answers
            if one.text is not None and (other := texts.get(one.index)) is not None
        ]
        judged = [one.right for one in answers if one.right is not None]
        shares = [alike(*pair) for pair in pairs]
        return cls(
            side=side,
            asked=len(answers),
            answered=sum(one.text is not None for one in answers),
            compared=len(pairs),
            equal=sum(one == other for one, other in pairs),
            alike=sum(shares) / len(shares) if shares else None,
            right=sum(judged),
            expected=len(judged),
        )


def alike(one: str, other: str) -> float:
    """The share of the longer text's words that come before the first that differs."""
    words = one.split(), other.split()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*words, strict=False)))
    longer = max(map(len, words))
    return same / longer if longer else 1.0


def is_right(text: str, expected: str) -> bool:
    """Whether the words of what is expected stand in a text, whatever the case and the marks."""
    said, wanted = (" ".join(_WORDS.findall(one.casefold())) for one in (text, expected))
    return f" {wanted} " in f" {said} "


def proportion(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; ``total`` is above 0."""
    share, more = count / total, _Z**2 / total
    half = _Z * sqrt(share * (1 - share) / total + more / (4 * total))
    return max(0.0, (share + more / 2 - half) / (1 + more)), (share + more / 2 + half) / (1 + more)


def mean_tokens(answers: Iterable[Answer]) -> float | None:
    """Mean length of those that came."""
    tokens = [answer.tokens for answer in answers if answer.text is not None]
    return sum(tokens) / len(tokens) if tokens else None


def write_answers(folder: Path, answers: Iterable[Answer]) -> None:
    """Write a line for each."""
    lines = (answer.model_dump_json() + "\n" for answer in answers)
    (folder / ANSWERS).write_text("".join(lines), encoding="utf-8")


def read_answers(folder: Path) -> list[Answer]:
    """Read them; none where none were asked.

    :raises PruneError: one line that names the file
    """
    file = folder / ANSWERS
    try:
        lines = read_text(file).split("\n")
        return [Answer.model_validate_json(line) for line in lines if line]
    except MissingFileError:
        return []
    except ValidationError as error:
        raise PruneError(f"{file} holds what is no answer: {one_line(error)}") from error
